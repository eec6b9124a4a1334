"""Commands of the home and the machine: query, verify, gc, audit-trail, deid-key, deid-score, doctor."""

from pathlib import Path

import click

from med_assets.cli.commands import Section, Value, one_of, program, table, workspace
from med_assets.errors import ConfigurationError
from med_assets.storage.escaping import csv
from med_assets.storage.names import DEIDENTIFICATION

SECTION = Section("Home and machine")

FEW_VALUES = 4
"""More values that may stay are counted in the table of rules, and listed as CSV."""


@SECTION.command()
@click.argument("sql", type=Value("SQL"), help="such as: select * from raw_cases")
@click.option("--format", type=one_of("table", "csv", "json"), default="table", help="how to print rows")
def query(sql: str, format: str) -> None:
    """Run SQL over the tables of the lake."""
    from med_assets.catalog import query_tables

    rows = query_tables(workspace(), sql)
    match format:
        case "csv":
            print(csv(rows), end="")
        case "json":
            print(rows.to_json(orient="records", indent=1))
        case _:
            print(table(rows))


@SECTION.command()
@click.option("--repair", is_flag=True, help="remove what can be computed again, and name the command that does it")
def verify(repair: bool) -> int:
    """Read every stored artifact back, and list what is damaged or lost with the way to restore it.

    Fails when anything is.
    """
    from med_assets.operations import integrity

    ws = workspace()
    damages = integrity.examine(ws)
    removed = integrity.remove_damaged(ws, damages) if repair else []
    for damage in damages:
        print(f"{'removed' if damage in removed else damage.state:8} {damage.key}")
    for remedy in sorted({damage.remedy for damage in damages}):
        print(f"  -> {remedy}")
    if damages and not repair and any(damage.again and damage.state == "corrupt" for damage in damages):
        print("corrupt artifacts stand in the way of that: give `med-assets verify --repair` first")
    if not damages:
        print("all artifacts are as they were written")
    return int(len(damages) > len(removed))


@SECTION.command()
@click.option("--days", type=Value("N", float), default=7.0, help="keep what changed within this many days")
@click.option(
    "--interrupted",
    is_flag=True,
    help="also jobs without a result that nobody runs: their trainings can't be resumed then",
)
@click.option("--list", "listed", is_flag=True, help="name everything that is removed")
@click.option("--yes", is_flag=True, help="remove it; without this nothing is")
def gc(days: float, interrupted: bool, listed: bool, yes: bool) -> int:
    """Show the space of all programs by kind and experiment, and remove what nothing current refers to.

    That is finished jobs with their logs, checkpoints of earlier trainings that were never champion, and predictions, scores, analyses
    and prepared cases that no table, no kept checkpoint, no version of a dataset and no job refers to; in a shared home also what
    unfinished uploads, jobs and stages left in the bucket, and earlier tables. There a thing goes when two calls, an hour or more
    apart, find it unneeded. Fails when an artifact is missing afterwards that was there. `med-assets prune` is the same.
    """
    from med_assets.operations import integrity, pruning
    from med_assets.operations.bucket_pruning import FIRST_LOOK

    if days < 0:
        raise ConfigurationError(f"expected --days of 0 or more, got {days:g}")
    ws = workspace()
    found = pruning.examine(ws, days, interrupted=interrupted)
    rows = [
        {"kind": one.kind, "of": one.owner, "n": one.n, "MB": round(one.bytes / 1e6, 1)}
        | {"removable": one.removable_n, "removable MB": round(one.removable_bytes / 1e6, 1)}
        for one in pruning.totals(found)
    ]
    print(table(rows))
    going = [one for one in found if not one.kept]
    size = f"{len(going)} of {len(found)}, {sum(one.bytes for one in going) / 1e6:.1f} MB"
    waiting = sum(one.kept == FIRST_LOOK for one in found)
    if waiting:
        print(
            f"{waiting} are unneeded at this first look; they go when a call an hour from now or later finds them so again"
        )
    for one in going if listed else ():
        print(f"{one.name}  {one.owner}, {one.age_days:.0f} days")
    if not yes:
        print(f"nothing was removed; --yes removes {size}")
        return 0
    before = integrity.missing(ws)
    removed = pruning.remove(ws, found)
    lost = sorted(set(integrity.missing(ws)) - set(before))
    print(f"removed {len(removed)}, {sum(one.bytes for one in removed) / 1e6:.1f} MB")
    print(f"missing now: {', '.join(lost)}" if lost else "all artifacts that the tables name are there as before")
    return int(bool(lost))


EARLIER_NAMES = {"prune": gc}
"""Commands by a name that they had before."""


@SECTION.command()
@click.option("--elements", is_flag=True, help="of each batch the elements by rule, outcome and keyword too")
@click.option(
    "--complete",
    is_flag=True,
    help="append an entry, marked as written afterwards, for each row of a decision that has none",
)
def audit_trail(elements: bool, complete: bool) -> int:
    """Verify the signed chain of what intake did and people decided, and print it.

    Fails when an entry was changed, is missing or stands in another place, when a decision in the tables has no entry or
    an entry no row, and says which.
    """
    from med_assets.cli import trail

    ws = workspace()
    return trail.show(ws, elements=elements, completed=complete)


@SECTION.command()
@click.argument("profile", type=one_of(*DEIDENTIFICATION), help="profile of de-identification")
@click.option("--more", is_flag=True, help="only what it keeps beyond the strict profile")
@click.option("--csv", "as_csv", is_flag=True, help="as CSV, with all values that may stay")
def deid_rules(profile: str, more: bool, as_csv: bool) -> None:
    """Print the rules of a profile: each element that may stay, what happens to it, and which values it may have.

    Every element that has no rule is removed.
    """
    import pandas as pd

    from med_assets.deidentification.profile import Action
    from med_assets.deidentification.profiles import PROFILES
    from med_assets.deidentification.rules import beyond_strict, rules

    chosen = PROFILES[profile]
    rows = [
        {
            "tag": rule.tag, "element": rule.keyword, "VR": rule.vr, "rule": rule.action.name.lower(),
            "values": "|".join(rule.values) if as_csv or len(rule.values) <= FEW_VALUES else f"{len(rule.values)} values",
        }
        for rule in (beyond_strict(chosen) if more else rules(chosen))
    ]  # fmt: skip
    if as_csv:
        print(csv(pd.DataFrame(rows)), end="")
        return
    print(table(rows))
    for action in sorted({row["rule"] for row in rows}):
        print(f"{action}: {Action[action.upper()].value}")
    print(f"profile {chosen.label}: {len(rows)} rules; every other element is removed")


@SECTION.command()
@program
@click.argument("dest", type=Value("DEST", Path), help="new folder for the key")
@click.option("-n", "--number", type=Value("N", int), default=2, help="how many cases")
@click.option(
    "--characteristics", is_flag=True, help="ask for sex, age and weight too, as the profile research keeps them"
)
def deid_key(program: str, dest: Path, number: int, characteristics: bool) -> None:
    """Write synthetic cases with planted identity, and the answer key that deid-score reads."""
    from med_assets.deidentification.answer_key import ANSWERS, ORIGINALS, write_key
    from med_assets.program import get

    if dest.exists():
        raise ConfigurationError("expected a folder that does not exist yet, got one that does; name another")
    get(program).write_phantoms(dest / ORIGINALS, number, 1)
    print(
        f"wrote {write_key(dest, characteristics=characteristics)} checks to {ANSWERS} and {number} case(s) to {ORIGINALS}"
    )


@SECTION.command()
@click.argument("key", type=Value("KEY", Path), help="folder of the key, as deid-key wrote it")
@click.argument(
    "deidentified",
    type=Value("FOLDER", Path),
    help="folder of the de-identified objects, such as store/raw of the home",
)
@click.option(
    "--uids", type=Value("FILE", Path), help="CSV id_old,id_new of another tool; by default the UIDs of this home"
)
@click.option("--patients", type=Value("FILE", Path), help="the same of patient ids")
def deid_score(key: Path, deidentified: Path, uids: Path | None, patients: Path | None) -> None:
    """Score a folder of de-identified objects by an answer key, and write what the scorer of MIDI-B reads.

    The score tells what was removed and what was kept: a strict allow-list loses points for descriptions.
    """
    from pydicom.datadict import keyword_for_tag

    from med_assets.deidentification import score as scoring
    from med_assets.deidentification.answer_key import ANSWERS, read_key

    if (uids is None) != (patients is None):
        raise ConfigurationError("expected --uids and --patients together, got one of them")
    answers = read_key(key / ANSWERS)
    mapping = (
        scoring.read_mapping(uids, patients) if uids and patients else scoring.mapping_of(answers, workspace().key)
    )
    found = scoring.score(answers, deidentified, mapping)
    print(
        table(
            {
                "check": str(one.check), "n": one.n, "passed": one.passed,
                "share": f"{one.passed / one.n:.2%}", "95 % interval": f"{one.low:.2%} to {one.high:.2%}",
            }
            for one in found.shares
        )
    )  # fmt: skip
    for (check, tag), n in sorted(found.failed.items()):
        print(f"failed: {check} of {keyword_for_tag(tag) or f'{tag:08x}'}, {n} times")
    if found.missing:
        print(f"missing: {found.missing} objects of the key")
    print(f"for the scorer of MIDI-B: {scoring.write_for_scorer(key, deidentified, mapping)}")


@SECTION.command()
@click.argument(
    "part", type=one_of("s3"), required=False, help="only the buckets of landing zone and store, up to a write"
)
def doctor(part: str | None) -> int:
    """Check installation, configuration, disk and accelerator, and say what to do.

    Fails when a check does.
    """
    from med_assets.cli.doctor import BAD, examine, examine_s3

    findings = examine() if part is None else examine_s3()
    for finding in findings:
        print(f"{finding.state:4}  {finding.subject}: {finding.found}")
        if finding.advice:
            print(f"      -> {finding.advice}")
    return int(any(finding.state == BAD for finding in findings))
