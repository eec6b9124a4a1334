"""How the process of a training ended: its exit status and the end of its log, which outlive the job's folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from med_assets.launch import jobs
from med_assets.storage.files import read_json, write_json

ENDING = "ending.json"
"""File of a checkpoint that holds it."""


@dataclass(frozen=True)
class Ending:
    """How the process of a training ended, kept beside its weights."""

    return_code: int | None
    """Its exit status; None where it was not known, as of a training without a supervisor."""
    log_tail: tuple[str, ...]
    """The last lines of its log, the home in them named by its variable."""

    @classmethod
    def of(cls, job: Path, home: Path) -> Self:
        """Read how the process of a job folder ended. `home` is the folder of the workspace, which the log may name."""
        lines = jobs.tail(job).replace(str(home), "$MED_ASSETS_HOME").splitlines()
        return cls(jobs.exit_status(job), tuple(lines))

    def write(self, folder: Path) -> None:
        """Write it into the folder of a checkpoint."""
        write_json(folder / ENDING, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from the folder of a checkpoint; unknown for one from before it was kept."""
        path = folder / ENDING
        if not path.is_file():
            return cls(None, ())
        kept = read_json(path)
        return cls(kept["return_code"], tuple(kept["log_tail"]))
