"""Bring a training to its end from a Dagster run: start it or find it, follow it, and say how it ended.

The job folder is the truth: it is named by the hash of the job's inputs and holds what finds its training again (a pid
with its start time, or a Slurm job), its log, its checkpoint and, at the end, `result.json`. Whoever runs the asset looks
there first, so a training survives the death of the run, the daemon, the code server and the web server; one that died
itself goes on from its checkpoint.
"""

import fcntl
import json
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

import dagster as dg
import psutil
from pydantic import Field

from med_assets.errors import LaunchFailed
from med_assets.files import write_json
from med_assets.jobs import LOCK, LOG, RESULT, State, command, tail, without_secrets
from med_assets.training import status
from resources.job_reader import JobReader

PROCESS = "process.json"
MAX_RETRIES = 2
"""How often a training that was killed is started again, from its checkpoint, before a person must look."""
START_TOLERANCE_S = 1.0
"""Two start times of one pid closer than this are one process; a reused pid differs by far more."""
TRAINING_TAG = "med_assets/training"
"""Tag of a run that says what it follows: a process or a Slurm job."""


class Training(Protocol):
    """A training that was started, here or earlier."""

    started_here: bool

    @property
    def title(self) -> str:
        """Name for people."""

    def look(self) -> State:
        """State now."""

    def cancel(self) -> None:
        """Stop it; a training that ended stays as it is."""


class Launcher(dg.ConfigurableResource, ABC):
    """Starts trainings in one way; how they are followed is common to all."""

    poll_s: float = Field(default=1.0, gt=0, description="seconds between two looks at a running training")

    def command(self, job: Path) -> list[str]:
        """The command that a person would type for the same training."""
        return command(job)

    @abstractmethod
    def submit(self, job: Path, env: dict[str, str]) -> Training:
        """Start the job's training, or return the one that goes on already. Raises LaunchFailed when that can't be done."""

    def run(self, context: dg.AssetExecutionContext, job: Path) -> None:
        """Bring a job to its end and show its progress.

        Raises dagster.RetryRequested when the training was killed, dagster.Failure when it ended without a result.
        """
        if (job / RESULT).is_file():
            context.log.info("this job was finished earlier; its result is taken over")
            return
        reader = JobReader(job)
        with dg.open_pipes_session(context, dg.PipesEnvContextInjector(), reader) as session:
            env = {**os.environ, **session.get_bootstrap_env_vars()}
            try:
                training = self.submit(job, without_secrets(env))
            except LaunchFailed as error:
                raise dg.Failure(str(error), allow_retries=False) from error
            context.log.info(
                f"training started as {training.title}"
                if training.started_here
                else f"a training of this job is already running as {training.title}; following it"
            )
            context.instance.add_run_tags(context.run.run_id, {TRAINING_TAG: training.title})
            try:
                state = self._follow(context, training, reader)
            except BaseException:
                self._stop_if_cancelled(context, training)
                raise
        if (job / RESULT).is_file():
            return
        if state.again:
            context.log.warning(f"{state.told}; it goes on from its last checkpoint")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=self.poll_s)
        raise dg.Failure(f"{state.told}; the end of its log:\n{tail(job)}", allow_retries=False)

    def _follow(self, context: dg.AssetExecutionContext, training: Training, reader: JobReader) -> State:
        told = ""
        while True:
            state = training.look()
            if state.told != told:
                told = state.told
                context.log.info(told)
            for row in reader.poll():
                context.log_event(
                    dg.AssetObservation(
                        context.asset_key, metadata={f"training/{name}": value for name, value in row.items()}
                    )
                )
            if not state.going_on:
                return state
            time.sleep(self.poll_s)

    def _stop_if_cancelled(self, context: dg.AssetExecutionContext, training: Training) -> None:
        """Stop the training when a person cancelled the run; when the run merely dies, the training goes on."""
        record = context.instance.get_run_by_id(context.run.run_id)
        if record is not None and record.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
            try:
                training.cancel()
            except LaunchFailed as error:
                context.log.error(f"{training.title} goes on: {error}")


def started_s(process: psutil.Process) -> float:
    """When a process started: on Linux seconds since boot, which a clock that is set does not move; else since the epoch."""
    stat = Path(f"/proc/{process.pid}/stat")
    try:
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return float(process.create_time())
    return ticks / os.sysconf("SC_CLK_TCK")


def running(job: Path) -> psutil.Process | None:
    """The live training process of a job folder, or None; a pid that now belongs to another process does not count."""
    try:
        known = json.loads((job / PROCESS).read_text())
        process = psutil.Process(known["pid"])
        same = abs(started_s(process) - known["started_s"]) < START_TOLERANCE_S
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


class LocalTraining:
    """A training process of this machine, in a session of its own."""

    def __init__(self, job: Path, pid: int, own: "subprocess.Popen[bytes] | None" = None) -> None:
        self.job, self.pid, self.own, self.started_here = job, pid, own, own is not None

    @property
    def title(self) -> str:
        """Name for people."""
        return f"process {self.pid}"

    def look(self) -> State:
        """State now; the exit code is known only of a process that was started here."""
        alive = self.own.poll() is None if self.own else running(self.job) is not None
        if alive:
            return State(True, f"the training {self.title} is running")
        code = self.own.returncode if self.own else None
        # Lightning itself answers SIGTERM by leaving with 0.
        if code is None or code <= 0 or code == status.REQUEUE:
            return State(False, "the training process was killed or told to stop", again=True)
        return State(False, f"the training process ended with exit code {code} and no result")

    def cancel(self) -> None:
        """Ask the process and its children to stop."""
        if (process := running(self.job)) is not None:
            os.killpg(process.pid, signal.SIGTERM)


class LocalLauncher(Launcher):
    """Runs `python -m med_assets.training JOB` on this machine, in its own session."""

    def submit(self, job: Path, env: dict[str, str]) -> LocalTraining:
        """Start the job's process unless it runs already."""
        with (job / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (process := running(job)) is not None:
                return LocalTraining(job, process.pid)
            with (job / LOG).open("ab") as log:
                own = subprocess.Popen(
                    self.command(job), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, env=env, close_fds=True,
                )  # fmt: skip
            write_json(job / PROCESS, {"pid": own.pid, "started_s": started_s(psutil.Process(own.pid))})
            return LocalTraining(job, own.pid, own)
