"""The audit trail as lines for people: what it says, and what is wrong with it."""

from collections import Counter
from collections.abc import Iterator

from med_assets.deidentification.audit_trail import Broken, Entry, Kind, entries, verify
from med_assets.deidentification.audited_rows import Unmatched, append_waiting, complete, unmatched
from med_assets.deidentification.tally import Counts, totals
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace
from med_assets.storage.escaping import visible


def show(ws: Workspace, *, elements: bool, completed: bool = False) -> int:
    """Print every entry that can be read, what is broken, and which rows and entries lack each other; returns 1 where any is, else 0.

    An entry that a killed process left waiting is appended first; with `completed` all rows without an entry get one.
    """
    if append_waiting(ws):
        print("the entry of a decision whose process was killed is now in the chain")
    broken, strays = verify(ws), list[Unmatched]()
    try:
        strays = complete(ws) if completed else unmatched(ws)
    except ConfigurationError:
        print("rows and entries were not compared, since an entry can't be read")
    n = 0
    try:
        for entry in entries(ws):
            n += 1
            for line in lines(entry, elements=elements):
                print(line)
    except ConfigurationError as error:
        print(error)
    for each in broken:
        print(line_about(each))
    for stray in strays:
        print(line_about_stray(stray))
    if not broken and not strays:
        print(f"{n} entries, each as it was written and in its place" if n else "no entries yet")
    return int(bool(broken or strays))


def line_about(broken: Broken) -> str:
    """A line about a broken entry."""
    return f"broken: entry {broken.number}: {broken.reason}"


def line_about_stray(stray: Unmatched) -> str:
    """A line about a row without an entry, or an entry without a row, and what to do."""
    about = f"{stray.kind} {stray.program} {stray.subject}"
    if stray.number is not None:
        return visible(
            f"entry without row: entry {stray.number}: {about}: the tables no longer say this; restore them from a backup"
        )
    return visible(
        f"row without entry: {about}: the tables say this and the chain does not; find out who wrote it, then run "
        "med-assets audit-trail --complete"
    )


def lines(entry: Entry, *, elements: bool) -> Iterator[str]:
    """What an entry says."""
    head = f"{entry.number} {entry.at} {entry.kind} {entry.program} {entry.subject} by {entry.person}"
    if entry.kind != Kind.BATCH:
        yield visible(f"{head}: {', '.join(f'{name} {value}' for name, value in sorted(entry.content.items()))}")
        return
    cases = entry.content["cases"].values()
    statuses = Counter(case["status"] for case in cases)
    all_of = merged([case["elements"] for case in cases])
    yield visible(
        f"{head}: {', '.join(f'{n} {status}' for status, n in sorted(statuses.items())) or 'no case'}; profile {entry.content['profile']}, "
        f"ocr {entry.content['ocr']}; elements {', '.join(f'{n} {outcome}' for outcome, n in totals(all_of).items())}"
    )
    for rule, outcomes in sorted(all_of.items()) if elements else ():
        for outcome, names in sorted(outcomes.items()):
            yield f"    {rule}: {outcome}: {', '.join(f'{name} {n}' for name, n in sorted(names.items()))}"


def merged(counts: list[Counts]) -> dict[str, dict[str, dict[str, int]]]:
    """The sum of the counts of several cases."""
    out: dict[str, dict[str, dict[str, int]]] = {}
    for each in counts:
        for rule, outcomes in each.items():
            for outcome, names in outcomes.items():
                into = out.setdefault(rule, {}).setdefault(outcome, {})
                for name, n in names.items():
                    into[name] = into.get(name, 0) + n
    return out
