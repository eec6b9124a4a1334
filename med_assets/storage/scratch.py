"""Scratch folders for files that may identify patients: one for each process, gone when the process is.

A process holds a lock for as long as it lives. What a killed process left behind, such as originals that it was unpacking, is
removed by the next command, since nobody holds its lock any more.
"""

import fcntl
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

PREFIX, LOCK = "scratch-", ".lock"

EARLIER_S = 86400.0
"""Age in seconds from which a scratch folder of a version without locks counts as left behind."""

_held: list[int] = []
"""Open locks of this process; closed, and so let go of, by the system at its end."""


def scratch(home: Path) -> Path:
    """This process's own scratch folder below the home, readable by its owner alone; another where the home was removed since."""
    found = _of_process(home, os.getpid())
    if not found.is_dir():
        _of_process.cache_clear()
        found = _of_process(home, os.getpid())
    return found


@cache
def _of_process(home: Path, pid: int) -> Path:
    folder = home / "tmp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for gone in [handle for handle in _held if os.fstat(handle).st_nlink == 0]:  # with its home
        _held.remove(gone)
        os.close(gone)
    while True:
        handle, name = tempfile.mkstemp(prefix=f"{PREFIX}{pid}-", suffix=LOCK, dir=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name) and os.path.samestat(os.fstat(handle), os.stat(name)):
            break  # else another process took it for one that was left behind
        os.close(handle)
    _held.append(handle)
    own = Path(name.removesuffix(LOCK))
    own.mkdir(mode=0o700)
    return own


def remove_abandoned(home: Path) -> int:
    """Remove the scratch folders of processes that are gone; returns how many."""
    removed = 0
    for lock in (home / "tmp").glob(f"{PREFIX}*{LOCK}"):
        try:
            handle = os.open(lock, os.O_RDWR)
        except OSError:  # gone already, or in a home that can't be written and so not cleaned, but still be read
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            folder = lock.with_name(lock.name.removesuffix(LOCK))
            shutil.rmtree(folder, ignore_errors=True)
            if (
                not folder.exists()
            ):  # else a process that is about to end still writes to it; the next command removes the rest
                lock.unlink(missing_ok=True)
                removed += 1
        finally:
            os.close(handle)
    for folder in (home / "tmp").glob("tmp*"):  # of versions before there were locks
        if folder.is_dir() and time.time() - folder.stat().st_mtime > EARLIER_S:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
