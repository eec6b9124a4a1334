"""What all that starts and follows a job agrees on: the files of its folder, and its command."""

import sys
from enum import StrEnum
from pathlib import Path

from med_assets.storage.files import read_json

LOG, RESULT, LOCK = "log.txt", "result.json", "launch.lock"
"""Files of a job folder: the log of its process, its result once it is done, and the lock held while it is started."""

FOLLOWED = "lock"
"""File of a job folder whose lock is held by the process that follows the training and publishes its checkpoint."""

EXIT_STATUS = "exit_status"
"""File of a job folder with the exit status of its supervisor, once that has ended."""

KIND = "kind"
"""File of a job folder with its kind; one without it is a training, as those of earlier versions are."""

CHECKPOINT, PREDICTIONS = "checkpoint", "predictions"
"""In the folder of a job that predicts: the file with the folder of its checkpoint, and the store of what it has predicted."""

TEACHER = "teacher.json"
"""File of a job folder that says which checkpoint it is distilled from, and where that and the store are."""

RELEASED = "released"
"""Folder of a job with the released files that training reads beside its initial weights, each under its name."""

ADAPTERS = "adapters.pt"
"""File beside the weights with the adapters alone, for a network that is another's weights and these."""

PRELOADED = {
    "med_assets.training": (
        "med_assets.training.job",
        "med_assets.training.predict",
        "monai.inferers.utils",
        "monai.losses.dice",
    )
}
"""What `storage.preloaded.parents` imports for the processes of many short jobs, with what most networks and predictors use of MONAI."""

TAIL_LINES = 20
"""Lines of the log that a failure quotes."""


class Kind(StrEnum):
    """What a job does, as messages call it."""

    TRAINING = "training"
    PREDICTION = "prediction"
    STAGE = "stage"


def kind(job: Path) -> Kind:
    """The kind of a job."""
    path = job / KIND
    return Kind(path.read_text(encoding="utf-8").strip()) if path.is_file() else Kind.TRAINING


def title(job: Path) -> str:
    """Program and experiment of a job, for people."""
    program = (job / "program").read_text(encoding="utf-8").strip()
    return f"{program}/{read_json(job / 'experiment.json').get('name', '')}"


def command(job: Path, resume: str = "auto") -> list[str]:
    """The command of a job, as a person would type it."""
    return [sys.executable, "-m", "med_assets.training", str(job), "--resume", resume]


def tail(job: Path) -> str:
    """The end of a job's log."""
    path = job / LOG
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:]) if path.is_file() else ""


def exit_status(job: Path) -> int | None:
    """The exit status of a job's process; None while it runs, where it was killed, and of a job without a supervisor."""
    path = job / EXIT_STATUS
    return int(path.read_text(encoding="utf-8")) if path.is_file() else None
