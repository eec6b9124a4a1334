"""Start a training as a process of its own, or go on watching the one that already runs.

The job folder is the truth: it is named by the hash of the job's inputs and holds the process's pid and start time, its
log, its checkpoint and, at the end, `result.json`. Whoever runs the asset looks there first, so a training survives the
death of the run, the daemon, the code server and the web server; one that died itself goes on from its checkpoint.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import psutil
from pydantic import Field

from med_assets.files import write_json
from resources.job_reader import LOG, JobReader

PROCESS, RESULT, LOCK = "process.json", "result.json", "launch.lock"
MAX_RETRIES = 2
"""How often a training that was killed is started again, from its checkpoint, before a person must look."""
START_TOLERANCE_S = 1.0
"""Two start times of one pid closer than this are one process; a reused pid differs by far more."""
TAIL_LINES = 20
"""Lines of the log that a failure quotes."""


def running(job: Path) -> psutil.Process | None:
    """The live training process of a job folder, or None; a pid that now belongs to another process does not count."""
    try:
        known = json.loads((job / PROCESS).read_text())
        process = psutil.Process(known["pid"])
        same = abs(process.create_time() - known["started_at"]) < START_TOLERANCE_S
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if alive else None


class LocalLauncher(dg.ConfigurableResource):
    """Runs `python -m med_assets.training JOB` on this machine, in its own session."""

    poll_s: float = Field(default=1.0, gt=0, description="seconds between two looks at a running training")

    def command(self, job: Path) -> list[str]:
        """The command that a person would type for the same training."""
        return [sys.executable, "-m", "med_assets.training", str(job), "--resume", "auto"]

    def submit(self, job: Path, env: dict[str, str]) -> subprocess.Popen[bytes] | None:
        """Start the job's process unless it runs already; returns the process only if it was started here."""
        with (job / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if running(job) is not None:
                return None
            with (job / LOG).open("ab") as log:
                process = subprocess.Popen(
                    self.command(job), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, env=env, close_fds=True,
                )  # fmt: skip
            started_at = psutil.Process(process.pid).create_time()
            write_json(job / PROCESS, {"pid": process.pid, "started_at": started_at})
            return process

    def run(self, context: dg.AssetExecutionContext, job: Path) -> None:
        """Bring a job to its end and show its progress.

        Raises dagster.RetryRequested when the process was killed, dagster.Failure when it ended without a result.
        """
        if (job / RESULT).is_file():
            context.log.info("this job was finished earlier; its result is taken over")
            return
        reader = JobReader(job)
        with dg.open_pipes_session(context, dg.PipesEnvContextInjector(), reader) as session:
            own = self.submit(job, {**os.environ, **session.get_bootstrap_env_vars()})
            context.log.info("training started" if own else "a training of this job is already running; following it")
            try:
                self._follow(context, job, reader, own)
            except BaseException:
                self._stop_if_cancelled(context, job)
                raise
        if (job / RESULT).is_file():
            return
        code = own.returncode if own else None
        if code is None or code < 0:
            context.log.warning("the training process was killed; it goes on from its last checkpoint")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=self.poll_s)
        tail = "\n".join(_tail(job / LOG))
        raise dg.Failure(
            f"the training process ended with exit code {code} and no result; the end of its log:\n{tail}",
            allow_retries=False,
        )

    def _follow(
        self, context: dg.AssetExecutionContext, job: Path, reader: JobReader, own: subprocess.Popen[bytes] | None
    ) -> None:
        alive = True
        while alive:
            alive = own.poll() is None if own else running(job) is not None
            for row in reader.poll():
                context.log_event(
                    dg.AssetObservation(
                        context.asset_key, metadata={f"training/{name}": value for name, value in row.items()}
                    )
                )
            if alive:
                time.sleep(self.poll_s)

    def _stop_if_cancelled(self, context: dg.AssetExecutionContext, job: Path) -> None:
        """Stop the training when a person cancelled the run; when the run merely dies, the training goes on."""
        record = context.instance.get_run_by_id(context.run.run_id)
        process = running(job)
        if (
            process is not None
            and record is not None
            and record.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
        ):
            os.killpg(process.pid, signal.SIGTERM)


def _tail(path: Path) -> Sequence[str]:
    return path.read_text(errors="replace").splitlines()[-TAIL_LINES:] if path.is_file() else []
