"""Events of a job, one JSON line each in its `events.jsonl`: starts, stops, hangs, kills, corrupt checkpoints.

The supervisor and the training process both append. A line that a crash cut off is passed over.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


def note(job: Path, event: str, **facts: Any) -> None:
    """Append one event with the time in seconds since 1970, and make it durable."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, sort_keys=True) + "\n"
    with (job / EVENTS).open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def events(job: Path) -> list[dict[str, Any]]:
    """Return the events of a job, oldest first."""
    found = []
    if (job / EVENTS).is_file():
        for line in (job / EVENTS).read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found
