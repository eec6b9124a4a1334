"""Memory of this machine that a process may still take, and memory that it takes once for many arrays."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
"""Options of mallopt(3)."""


def keep_freed_memory() -> None:
    """Let this process keep the memory of arrays that are gone, for the next ones; without glibc nothing happens.

    The system clears each page that it gives out: of volumes that is as much work as most of what is done with them.
    """
    if (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Give the system what `keep_freed_memory` has kept."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(ctypes.c_size_t(0))


@contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no garbage while the rows of many cases are made.

    They refer to nothing that refers to them, and each look goes through all that the process has loaded.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _of_glibc(function: str) -> Any:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def free_host() -> int:
    """Return the bytes of memory that this process may still take: of the machine, and of the control groups it is in."""
    import psutil

    limits = [psutil.virtual_memory().available]
    for limit, used in _groups():
        try:
            limits.append(int(limit.read_text()) - int(used.read_text()) + _cached(limit.with_name("memory.stat")))
        except (OSError, ValueError):
            continue  # no limit ("max"), or no such file in this version of the kernel
    return max(0, min(limits))


def _cached(statistics: Path) -> int:
    """Bytes of a group that hold files, which the system gives up when a process needs them; 0 where that is not known."""
    try:
        lines = statistics.read_text().splitlines()
    except OSError:
        return 0
    found = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    return found.get("total_inactive_file", found.get("inactive_file", 0))  # the first in version 1


def _groups() -> list[tuple[Path, Path]]:
    """Files with the limit and the use of each memory control group of this process, versions 2 and 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        group = root / path.lstrip("/")
        files += [(level / limit, level / used) for level in (group, *group.parents) if level.is_relative_to(root)]
    return files
