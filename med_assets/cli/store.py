"""Commands of the home and the machine: query, verify, prune, audit-trail, doctor."""

import click

from med_assets.cli.commands import Section, Value, one_of, table, workspace
from med_assets.errors import ConfigurationError
from med_assets.storage.escaping import csv

SECTION = Section("Home and machine")


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
    from med_assets.cli import integrity

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
def prune(days: float, interrupted: bool, listed: bool, yes: bool) -> int:
    """Show the disk space of all programs by kind and experiment, and remove what nothing current refers to.

    That is finished jobs with their logs, checkpoints of earlier trainings that were never champion, and predictions, scores, analyses
    and prepared cases that no table and no kept checkpoint refers to. Fails when an artifact is missing afterwards that was there.
    """
    from med_assets.cli import integrity, pruning

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
    if ws.store_location is not None:
        print("the store is a bucket: only jobs are looked at")
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


@SECTION.command()
@click.option("--elements", is_flag=True, help="of each batch the elements by rule, outcome and keyword too")
def audit_trail(elements: bool) -> int:
    """Verify the signed chain of what intake did and people decided, and print it.

    Fails when an entry was changed, is missing or stands in another place, and says which.
    """
    from med_assets.cli import trail

    ws = workspace()
    return trail.show(ws, elements=elements)


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
