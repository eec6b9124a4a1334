"""What all that starts and follows a training agrees on: the files of its job folder, and its command."""

import sys
from pathlib import Path

LOG, RESULT, LOCK = "log.txt", "result.json", "launch.lock"
"""Files of a job folder: what the training said, its result once it is done, and the lock held while it is started."""

TEACHER = "teacher.json"
"""File of a job folder that says which checkpoint it is distilled from, and where that and the store are."""

RELEASED = "released"
"""Folder of a job with the released files that training reads beside its initial weights, each under its name."""

ADAPTERS = "adapters.pt"
"""File beside the weights with the adapters alone, for a network that is another's weights and these."""

TAIL_LINES = 20
"""Lines of the log that a failure quotes."""


def command(job: Path, resume: str = "auto") -> list[str]:
    """The training command, as a person would type it."""
    return [sys.executable, "-m", "med_assets.training", str(job), "--resume", resume]


def tail(job: Path) -> str:
    """The end of a job's log."""
    path = job / LOG
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:]) if path.is_file() else ""
