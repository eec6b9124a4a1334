"""What the kernel of this machine logged of late about GPUs, memory and tasks that hang; Linux alone has this log.

Only lines about those are kept, and paths are cut out of them.
"""

import errno
import os
import re
import time
from collections import deque
from pathlib import Path

LOG = Path("/dev/kmsg")
"""The kernel's ring buffer: each read returns one record, `priority,number,microseconds since the start,flags;text`."""

LAST_S = 3600.0
"""How far back lines are of interest, s."""

MOST_LINES = 50

RECORD_BYTES = 8192
"""The kernel's own bound of a record."""

OF_INTEREST = re.compile(
    r"\b(nvrm|xid|nvidia|amdgpu|i915|drm|dxgk\w*|oom\S*|out of memory|hung_task|blocked for more than|soft lockup|hard lockup|"
    r"rcu\S* .*stall|mce|machine check|aer|pcie bus error|i/o error|segfault)",
    re.IGNORECASE,
)
"""GPU drivers, memory that ran out, tasks and processors that hang, and faults of memory, bus and disks."""

_PATH = re.compile(r"/[^\s,;:)\]]+")


def recent(log: Path = LOG) -> list[str]:
    """Return the newest lines of interest, oldest first, each with its age in s, or one line that says why there are none."""
    try:
        source = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return [f"not readable ({error.strerror}); root may read it, others where kernel.dmesg_restrict is 0"]
    found: deque[str] = deque(maxlen=MOST_LINES)
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    try:
        while record := _next(source):
            head, _, text = record.partition(";")
            fields = head.split(",")
            if len(fields) < 3 or not fields[2].isdigit():
                continue
            age = now - int(fields[2]) / 1e6
            line = text.partition("\n")[0]
            if age <= LAST_S and OF_INTEREST.search(line):
                found.append(f"{max(age, 0.0):.0f} s ago: {_PATH.sub('(path)', line)}")
    except OSError as error:
        found.append(f"reading ended ({error.strerror})")
    finally:
        os.close(source)
    return list(found) or [f"nothing about GPUs, memory or tasks that hang in the last {LAST_S / 60:.0f} min"]


def _next(source: int) -> str:
    """Return the next record, empty after the last one."""
    while True:
        try:
            return os.read(source, RECORD_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""
        except OSError as error:
            # The record was overwritten while it was read; the next read gets the oldest that is left.
            if error.errno != errno.EPIPE:
                raise
