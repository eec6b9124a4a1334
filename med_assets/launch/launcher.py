"""The interface of all launchers.

A job is a folder and a command; the folder is the truth, so that a job outlives whoever started it. A launcher starts the command, finds
it again by what it recorded in the folder, says how it is, and cancels it. What is common to all is in `follow`.

A job is a training, a prediction, or a stage of the graph (`med-assets run STAGE ...`). Where jobs see no folder of this machine, as
on a cluster of containers, only stages can be jobs: their folder is that of whoever asks, and the bucket of the home has what both need.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Configuration(BaseModel):
    """What a launcher can be asked for: fields of an experiment's `launch` section. None of them changes a result.

    A subclass adds `launcher: Literal["name"] = "name"`, by which the section finds its launcher, and its own fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Phase(Enum):
    """Where a job is. Whether one that ended has a result is for its folder to say."""

    RUNNING = "running"
    """It waits or runs."""
    RESUMABLE = "resumable"
    """It ended and was killed or asked to stop; submitted again, it goes on from its last checkpoint."""
    ENDED = "ended"
    """It ended by itself; submitted again without a change, it would end the same way."""


@dataclass(frozen=True)
class State:
    """Phase of a job, with a message for people."""

    phase: Phase
    message: str


@dataclass(frozen=True)
class Handle:
    """A job that was started, here or earlier."""

    job: Path
    id: str
    """What the launcher knows it by, such as a process id."""
    title: str
    """Name for people."""
    started_here: bool = False


class Launcher(ABC):
    """Runs the commands of job folders in one way; `configuration` is an instance of its `configuration_type`."""

    configuration_type: ClassVar[type[Configuration]]
    record: ClassVar[str]
    """File of a job folder by which a running job is found again; a folder without it is taken to have no job here."""
    cancelled_by_ctrl_c: ClassVar[bool] = False
    """Whether Ctrl-C on the command line cancels the job that this command started; else it goes on."""
    starts_anew: ClassVar[bool] = False
    """Whether a command may say that it must start anew. Not where a requeued job runs the same command again."""
    passes_secrets: ClassVar[bool] = False
    """Whether `env` goes from one process of this user to the next and is kept nowhere, so that a stage finds its secrets in it."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    @property
    def shares_folder(self) -> bool:
        """Whether jobs see the folders of this machine under the same paths: that of the job, the home, the Python environment.

        Where they do not, `stage_runs` is the only caller, and

        - the job's folder is this machine's own. A launcher keeps its record there, and finds a job that another machine started
          by `job.name`, which is the same on all machines of a home and differs between homes;
        - the first word of the command is `med-assets`, which the PATH has where it runs, and no word is a path;
        - `env` is what the job must have beside what is there: settings, no place of this machine and no secret. The pseudonym key, the
          credentials of the bucket and MED_ASSETS_HOME, a folder for scratch, must be where it runs;
        - the job's log and result go through the bucket, and are in the folder (LOG, RESULT of `jobs`) before each call of `state`. So a launcher
          looks for RESULT as any other, and needs no log.
        """
        return True

    @abstractmethod
    def submit(self, job: Path, command: Sequence[str], env: Mapping[str, str]) -> Handle:
        """Start a job's command, or return the job that runs already. Raises LaunchFailed when it can't be started.

        A command that ends with `training.status.REQUEUE` was asked to stop and goes on when it is started again.
        """

    @abstractmethod
    def find(self, job: Path) -> Handle | None:
        """Return the running job of a folder, None if there is none. Raises LaunchFailed when that can't be known now."""

    @abstractmethod
    def state(self, handle: Handle) -> State:
        """Return the state now. Raises nothing when it can't be known for a while: the job is then taken to run."""

    @abstractmethod
    def cancel(self, handle: Handle) -> None:
        """Stop a job; one that ended stays as it is. Raises LaunchFailed when that can't be done."""

    def examine(self) -> str | None:
        """Return for `med-assets doctor` what is found, None where there is nothing to find. Raises LaunchFailed."""
        return None
