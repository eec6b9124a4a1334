"""The process beside a training that sends its epochs to MLflow or W&B, where `runtime.tracking` of the experiment asks for it.

It reads `history.csv` and `result.json` of the job folder and holds no part of the training, which imports no client and waits for no
server: an epoch that could not be sent is sent with the next one. At the end it has `wait_s` to send what is left, and is then ended.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from med_assets.experiments.parts import Tracking
from med_assets.training.ranks import rank

RUNS = "tracking.json"
"""File of a job folder with the run of each service and the last epoch that it took, so that a resumed training goes on with the run."""

WANDB_FOLDER = "wandb"
"""Folder of a job with the files of W&B, which `wandb sync` sends later where they were written offline."""

END = b"end\n"
"""What the training writes when it has ended; the end of the stream alone says that it was killed."""


@contextmanager
def tracked(job: Path, tracking: Tracking) -> Iterator[None]:
    """Follow a job while the block runs, if that is asked for; nothing of it reaches the training, whatever the services do."""
    process = _start(job) if tracking.services() and rank() == 0 else None
    try:
        yield
    finally:
        if process is not None:
            _end(process, tracking.wait_s)


def _start(job: Path) -> "subprocess.Popen[bytes] | None":
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "med_assets.training.track", str(job)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # so that it is ended with the helper of W&B, and no Ctrl-C takes it from a training that goes on
        )
    except OSError as error:
        print(
            f"tracking: its process did not start ({error.strerror}); the training goes on without it", file=sys.stderr
        )
        return None


def _end(process: "subprocess.Popen[bytes]", wait_s: float) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):  # it ended already, or waits for a server
        process.communicate(END, timeout=wait_s)
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
