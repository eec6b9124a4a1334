"""The parent of a training process: ends it when it hangs, resumes it when it hung, was killed or lost its device.

`python -m med_assets.training JOB` is this supervisor; it starts the same command with `--unsupervised` as its child,
so that it works alike by hand, under Slurm and under Dagster, and whoever started it sees one process and one exit
status (see `status`). It imports no torch: a parent that only waits should cost little and can't itself hang on a device.

At most `runtime.restarts` times a child is started again, each time from its last checkpoint. SIGTERM and SIGINT are
handed to the child as SIGTERM, which saves and ends; then the exit status is REQUEUE. When the supervisor is killed its
child is killed with it (on Linux, by the kernel), and a lock on the job's `training.lock`, which the child holds too, keeps a second
training of the job from starting before the first is gone.

torchrun restarts processes that end, but sees none that hang, imports torch in the parent, and has no exit status that says to requeue.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from med_assets.errors import ConfigurationError
from med_assets.launch.jobs import EXIT_STATUS, kind
from med_assets.storage import preloaded
from med_assets.storage.files import read_json, write_json, write_text
from med_assets.training import status
from med_assets.training.diagnostics import diagnostics
from med_assets.training.events import note

POLL_S = 0.2
"""Time between two polls of the child, s."""

START_GRACE_S = 300.0
"""Least time that a child may take before its first heartbeat: imports and the first read of a cold disk, s."""

HANG_MARGIN = 1.1
"""A hung child is ended this many times `hang_after_s` after its last beat: by then it has written its stacks."""

LOCK_WAIT_S = 30.0
"""Time given to a training whose supervisor was killed to be gone, s."""


class Supervisor:
    """Runs the training of one job folder in a child process, again and again until it ends for good."""

    def __init__(self, job: Path, resume: str) -> None:
        self.job, self.resume = job, resume
        runtime = _runtime(job)
        self.hang_after_s = float(runtime.get("hang_after_s", 900.0))
        self.restarts = int(runtime.get("restarts", 3))
        self._child: preloaded.Process | None = None
        self._told_to_stop = False

    def run(self) -> int:
        """Return the exit status of the training, as in `status`, which the job's folder keeps. Raises ConfigurationError for a job
        that is in use."""
        with only_one(self.job) as lock, self._signals():
            (self.job / EXIT_STATUS).unlink(missing_ok=True)
            code = self._attempts(lock)
            write_text(self.job / EXIT_STATUS, f"{code}\n")
            return code

    def _attempts(self, lock: int) -> int:
        for left in range(self.restarts, -1, -1):
            ended, code = self._attempt(lock)
            if ended is None or left == 0:
                return code
            note(self.job, "restart", after=ended, left=left - 1)
            print(
                f"{kind(self.job)} {ended}; it goes on from what it saved last, {left - 1} restarts left",
                file=sys.stderr,
            )
            # A training that was to start over has started over.
            self.resume = "auto"
        raise AssertionError("unreachable: the last attempt returns")

    def command(self) -> list[str]:
        """The command of the training process itself."""
        return [sys.executable, "-m", "med_assets.training", str(self.job), "--resume", self.resume, "--unsupervised"]

    def _attempt(self, lock: int) -> tuple[str | None, int]:
        """Run one child: what happened if it may be started again, else None, and the status if it may not."""
        killed_before = oom_kills()
        self._child = preloaded.start(self.command(), os.environ, keep=(lock,), tied=True)
        if self._told_to_stop:
            self._child.terminate()
        try:
            hung = self._watch(self._child)
            if hung:  # before it is ended
                print(f"{kind(self.job)} hangs:\n{diagnostics(self._child.pid)}", file=sys.stderr, flush=True)
        finally:
            # Its other processes, for devices and for reading, are of its group, and must not outlive it.
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            code = self._child.wait()
        if hung:
            note(self.job, "hang", hang_after_s=self.hang_after_s)
            return f"hung for {self.hang_after_s:g} s (the stacks are above)", status.HUNG
        if self._told_to_stop and code not in (status.DONE, status.OUT_OF_MEMORY):
            return None, status.REQUEUE
        if code == -signal.SIGKILL:
            return self._killed(oom_kills(), killed_before)
        if code < 0:
            note(self.job, "killed", signal=-code)
            return f"was ended by signal {-code}", status.SIGNALLED - code
        if code == status.ACCELERATOR:
            return "lost its accelerator", code
        return None, code

    def _killed(self, after: int | None, before: int | None) -> tuple[str | None, int]:
        """Tell the kernel's out-of-memory killer from a person."""
        note(self.job, "killed", signal=int(signal.SIGKILL), out_of_memory_kills=(before, after))
        if before is None or after is None:
            probably = "was killed, probably by the kernel, out of memory of the host"
            return probably, status.SIGNALLED + signal.SIGKILL
        if after == before:
            return "was killed", status.SIGNALLED + signal.SIGKILL
        advice = "use fewer runtime.workers or a smaller patch, or a machine (or a Slurm --mem) with more memory"
        message = f"the kernel killed the {kind(self.job)}, almost certainly for want of host memory; {advice}"
        write_json(self.job / "result.json", {"status": "out_of_memory", "where": "host", "message": message})
        note(self.job, "out_of_memory", message=message)
        print(f"out of memory: {message}", file=sys.stderr)
        return None, status.OUT_OF_MEMORY

    def _watch(self, child: preloaded.Process) -> bool:
        """Wait for the child; returns True when it had to be ended because its heartbeat stood still."""
        beat: dict[str, Any] = {}
        changed, limit = time.monotonic(), max(START_GRACE_S, HANG_MARGIN * self.hang_after_s)
        while True:
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)
                return False
            found = self._beat()
            # Only that it changes counts, and the time of this process, not what clock the beat was written by.
            if found.get("pid") == child.pid and found != beat:
                beat, changed, limit = found, time.monotonic(), HANG_MARGIN * self.hang_after_s + POLL_S
            if time.monotonic() - changed > limit:
                return True

    def _beat(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_json(self.job / "heartbeat.json")
        except (FileNotFoundError, ValueError):
            return {}
        return found

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._told_to_stop = True
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def only_one(job: Path) -> Iterator[int]:
    """Hold the job's lock and yield its file descriptor, for the child to inherit. Raises ConfigurationError when taken."""
    with (job / "training.lock").open("w") as stream:
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConfigurationError(
                        "another process is training this job; wait for it, or end it and start this command again"
                    ) from None
                time.sleep(POLL_S)
        yield stream.fileno()


def oom_kills() -> int | None:
    """Processes that this machine's kernel has killed for want of memory since it started; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _runtime(job: Path) -> dict[str, Any]:
    """The `runtime` part of the job's experiment; empty when it can't be read, which the child reports."""
    try:
        found = read_json(job / "experiment.json").get("runtime", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
