"""What of the tables of a shared home nothing needs any more: old commits, and objects that no kept commit names.

Kept are all tables as of any commit of the last days, so that readers of a moment ago and `S3Lake.at` go on, all objects that are younger,
since a commit that names them may be on its way, and the entries of the log by which its end is found. What a version of a
dataset needs lies in the artifact of that version.
"""

import time
from collections.abc import Iterable

from med_assets.errors import ConfigurationError
from med_assets.storage.lake import Unreferenced
from med_assets.storage.s3.bucket import in_words
from med_assets.storage.s3.index import pages
from med_assets.storage.s3.log import Log, milestones, side_by_side
from med_assets.storage.s3.table_log import TableLog, checkpoint_name
from med_assets.storage.s3.table_state import changes_of

DAY_S = 86400.0

LEAST_DAYS = 1.0
"""Days for which all is kept, whatever is asked for: no commit and no reader takes so long, and clocks differ by less."""


def unreferenced(log: TableLog, older_than_days: float) -> list[Unreferenced]:
    """Objects of the tables that nothing needs and that are older, in the order in which they are to be removed.

    They are listed: an object that a listing lacks yet stays until the next time. Raises ConfigurationError for less than LEAST_DAYS.
    """
    if older_than_days < LEAST_DAYS:
        raise ConfigurationError(
            f"expected objects of tables to be kept for {LEAST_DAYS:g} day or more, got {older_than_days:g}: what is being written or "
            "read now would be lost"
        )
    now, newest = time.time(), log.state(0.0)
    if newest.number == 0:
        return []
    since = _newest_before(log, newest.number, int((now - older_than_days * DAY_S) * 1e9))
    base, entries = log.history(since)
    named = {part.name(table, each) for table, found in base.tables.items() for each, part in found.parts.items()}
    for entry in entries:
        named |= {part.name(table, each) for table, each, part in changes_of(entry) if part is not None}
    marks = milestones(newest.number)
    kept = {f"log/{Log.name(number)}" for number in (*marks, *range(base.number, newest.number + 1))}
    kept |= {checkpoint_name(number) for number in range(base.number, newest.number + 1)} | named
    found = []
    with in_words("listing the tables"):
        for under in ("log/", "checkpoints/", "data/"):
            for one in pages(log.client, log.location, under):
                name, age_days = log.location.name(one.key), (now - one.modified) / DAY_S
                if name not in kept and age_days > older_than_days and _is_before(name, newest.number):
                    found.append(Unreferenced(name, one.size, age_days))
    return found


def remove(log: TableLog, found: Iterable[Unreferenced]) -> None:
    """Remove objects that `unreferenced` named; a removal that was stopped goes on with the next. Raises RemoteFailed."""

    def delete(one: Unreferenced) -> None:
        with in_words("removing from the tables"):
            log.client.delete_object(Bucket=log.location.bucket, Key=log.location.key(one.name))

    found = list(found)
    # Commits before what they name: an earlier commit is not there any more, rather than there without its rows.
    for data in (False, True):
        side_by_side(delete, [one for one in found if one.name.startswith("data/") is data])


def _newest_before(log: TableLog, newest: int, time_ns: int) -> int:
    """Number of the newest commit that is no later than a time, 0 for none; one that is not kept any more is older."""
    low, high = 0, newest + 1
    while high - low > 1:
        middle = (low + high) // 2
        entry = log.log.read(middle)
        if entry is None or int(entry.content["time_ns"]) <= time_ns:
            low = middle
        else:
            high = middle
    return low


def _is_before(name: str, newest: int) -> bool:
    """Whether an object is none of a commit that came since."""
    number = name.rpartition("/")[2].partition(".")[0]
    return name.startswith("data/") or (number.isdecimal() and int(number) <= newest)
