"""Run a job to its end: submit it or find it, and follow its state, its log and its epochs.

Events are the same whatever the launcher, and whoever asks: the command line prints them, the graph turns them into its own.
"""

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from med_assets.errors import ConfigurationError, LaunchFailed, TrainingStopped
from med_assets.launch import jobs
from med_assets.launch.configuration import choose
from med_assets.launch.jobs import LOG, RESULT
from med_assets.launch.launcher import Handle, Launcher, Phase, State
from med_assets.settings import without_secrets

HISTORY = "history.csv"
"""The file of a job folder with one row per epoch."""


@dataclass(frozen=True)
class Submitted:
    """The job was started, or one that runs already was found."""

    handle: Handle

    @property
    def message(self) -> str:
        """What happened, for people."""
        kind = jobs.kind(self.handle.job)
        if self.handle.started_here:
            return f"{kind} started as {self.handle.title}"
        return f"a {kind} of this job is already running as {self.handle.title}; following it"


@dataclass(frozen=True)
class StateChanged:
    """The state has another message than before."""

    state: State


@dataclass(frozen=True)
class LogLine:
    """A line of the job's log."""

    text: str


@dataclass(frozen=True)
class EpochEnded:
    """An epoch has ended, with the numbers of its row in the history."""

    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Finished:
    """The job has a result: the last event. `state` is None for a job that had one before."""

    state: State | None


@dataclass(frozen=True)
class Unfinished:
    """The job ended without a result: the last event. `state.phase` says whether it may go on, `log` is the end of its log."""

    state: State
    log: str


Event = Submitted | StateChanged | LogLine | EpochEnded | Finished | Unfinished


def follow(
    launcher: Launcher,
    job: Path,
    command: Sequence[str],
    env: Mapping[str, str],
    poll_s: float = 1.0,
    *,
    anew: bool = False,
    refresh: Callable[[bool], None] = lambda last: None,
    submitted: Handle | None = None,
) -> Generator[Event]:
    """Submit or find a job and yield its events until it ends; `poll_s` is the time between two polls, s.

    A job that has a result is not started, unless `anew` says that its command begins by putting that aside. `refresh` is called before each
    poll, to fetch what the job wrote elsewhere into its folder, and with True once the job has ended. One that is `submitted` is followed alone.
    Whoever stops listening leaves the job running; called again, it follows the same job. Raises LaunchFailed when it can't be submitted.
    """
    if submitted is None and (job / RESULT).is_file() and not anew:
        yield Finished(None)
        return
    progress = Progress(job)
    handle = submitted or launcher.submit(job, command, env)
    yield Submitted(handle)
    message = ""
    while True:
        refresh(False)
        state = launcher.state(handle)
        if state.message != message:
            message = state.message
            yield StateChanged(state)
        yield from progress.new()
        if state.phase is not Phase.RUNNING:
            break
        time.sleep(poll_s)
    refresh(True)
    yield from progress.new()
    yield Finished(state) if (job / RESULT).is_file() else Unfinished(state, jobs.tail(job))


class Progress:
    """Reads what a job writes into its folder: lines of its log from now on, and the epochs of its history."""

    def __init__(self, job: Path) -> None:
        self.job = job
        self._log_at = (job / LOG).stat().st_size if (job / LOG).is_file() else 0
        self._epoch = -1.0

    def new(self) -> Iterator[LogLine | EpochEnded]:
        """What came since the last call."""
        yield from map(LogLine, self._lines())
        yield from map(EpochEnded, self._epochs())

    def _lines(self) -> list[str]:
        path = self.job / LOG
        if not path.is_file():
            return []
        with path.open("rb") as stream:
            stream.seek(self._log_at)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._log_at += len(whole) + len(newline)
        return [line for line in whole.decode(errors="replace").splitlines() if line.strip()]

    def _epochs(self) -> list[dict[str, float]]:
        path = self.job / HISTORY
        if not path.is_file():
            return []
        whole, _, _ = path.read_text().rpartition("\n")
        epochs = []
        for row in csv.DictReader(io.StringIO(whole)):
            numbers = {name: number for name, text in row.items() if name and (number := _number(text)) is not None}
            if numbers.get("epoch", -1.0) > self._epoch:
                self._epoch = numbers["epoch"]
                epochs.append(numbers)
        return epochs


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def finish(
    job: Path,
    default: str = "local",
    asked: str | None = None,
    resume: str = "auto",
    poll_s: float = 1.0,
    epoch: Callable[[Mapping[str, float]], None] = lambda numbers: None,
) -> None:
    """Run a job to its result and print its progress on stderr; the launcher is chosen as in `configuration.choose`. `epoch` gets the
    numbers of each epoch.

    Ctrl-C cancels a process of this machine that was started here, which then saves what it has, and leaves all else running. Raises
    TrainingStopped when it was killed or asked to stop and goes on from what it saved last, LaunchFailed when it can't be started or
    ended without a result, ConfigurationError for a `resume` that this job can't have now.
    """
    launcher = choose(job, default, asked)
    if resume != "auto":
        if not launcher.starts_anew:
            raise ConfigurationError(
                f"expected --resume auto with this launcher, where a requeued job goes on, got {resume}"
            )
        if launcher.find(job) is not None:
            raise ConfigurationError(
                f"expected --resume auto, since a training of this job is running, got {resume}; end it first"
            )
    handle: Handle | None = None
    command, env = jobs.command(job, resume), without_secrets(os.environ)
    with closing(follow(launcher, job, command, env, poll_s, anew=resume == "never")) as events:
        try:
            for event in events:
                match event:
                    case Submitted():
                        handle = event.handle
                        print(event.message, file=sys.stderr)
                    case StateChanged():
                        print(event.state.message, file=sys.stderr)
                    case LogLine():
                        print(event.text, file=sys.stderr)
                    case EpochEnded():
                        epoch(event.numbers)
                    case Unfinished() if event.state.phase is Phase.RESUMABLE:
                        raise TrainingStopped(
                            f"{event.state.message}; give the same command again to go on from what it saved last; "
                            f"the end of its log:\n{event.log}"
                        )
                    case Unfinished():
                        raise LaunchFailed(f"{event.state.message}; the end of its log:\n{event.log}")
        except KeyboardInterrupt:
            if handle is not None:
                end_interrupted(launcher, handle, poll_s)
            raise


def end_interrupted(launcher: Launcher, handle: Handle, poll_s: float = 1.0) -> None:
    """Cancel and wait for the end of a job that ends with the command that started it; of others say that they go on."""
    if not (launcher.cancelled_by_ctrl_c and handle.started_here):
        print(f"{handle.title} goes on; the same command follows it again", file=sys.stderr)
        return
    launcher.cancel(handle)
    while launcher.state(handle).phase is Phase.RUNNING:
        time.sleep(poll_s)
