"""Memory of this machine that a process may still take."""

from pathlib import Path

import psutil


def free_host() -> int:
    """Return the bytes of memory that this process may still take: of the machine, and of the control groups it is in."""
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
