"""`python -m med_assets.launch.keeper JOB LOCK`: keep the lock of a training that goes on without the process that followed it.

A training outlives whoever follows it, as when a run of the graph is killed. In a shared home its lock must then stay held, and its state be
copied, or another machine would train the same at the same time. The follower starts this process, which waits for the end of its input:
a line means that the training has ended; an end without one that the follower is gone. Whoever follows the training next, on this machine,
takes the lock from it at once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from med_assets.errors import LockHeld, MedAssetsError
from med_assets.launch import jobs
from med_assets.launch.configuration import runs
from med_assets.launch.mirror import mirrored, remove_state
from med_assets.settings import Settings
from med_assets.storage.files import keep_private
from med_assets.storage.locks import alone_here

LOG = "keeper.txt"
"""File of a job folder with what this process says."""

POLL_S = 1.0
"""Time between two looks whether the training runs, s."""

ENDING_S = 30.0
"""Time within which a follower that ends, or is ended, lets its lock go, s."""

ENDED = b"ended\n"

_left: list["subprocess.Popen[bytes]"] = []
"""Keepers that go on without this process, which never waits for them."""


@contextmanager
def kept(ws: Settings, job: Path, lock: str) -> Iterator[None]:
    """Let another process keep the lock of a training, which the caller holds, should this one be gone before the training ends."""
    if ws.leases is None:
        yield
        return
    _left[:] = [keeper for keeper in _left if keeper.poll() is None]
    home = {"MED_ASSETS_HOME": str(ws.home), "MED_ASSETS_STORE": str(ws.store_location)}
    with (job / LOG).open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "med_assets.launch.keeper", str(job), lock],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **home}, start_new_session=True,
        )  # fmt: skip
    assert keeper.stdin is not None
    try:
        yield
    finally:
        goes_on = trains(job)
        try:
            if not goes_on:
                keeper.stdin.write(ENDED)
            keeper.stdin.close()
        except BrokenPipeError:  # it was killed, and there is nothing to keep
            goes_on = False
        if goes_on:
            _left.append(keeper)
        else:
            keeper.wait()


def trains(job: Path) -> bool:
    """Whether a training still has something to do; its process ends a while after its result is there."""
    return not (job / jobs.RESULT).is_file() and runs(job)


def keep(ws: Settings, job: Path, lock: str) -> None:
    """Hold the lock of a training and copy its state until it ends, or until a process of this machine follows it."""
    if ws.leases is None:
        return
    with ExitStack() as stack:
        until = time.monotonic() + ENDING_S
        while True:
            try:
                # Under the lock of this machine, which a process that follows the training has.
                with alone_here(ws, lock, wait=False, file=job / jobs.FOLLOWED) as under:
                    if not trains(job):
                        return
                    lease = stack.enter_context(ws.leases.hold(lock, wait=False, under=under))
                break
            except LockHeld:
                if time.monotonic() > until:
                    print(f"{lock} is held by another process", flush=True)
                    return
                time.sleep(POLL_S / 10)
        print(f"keeping {lock}, whose training goes on", flush=True)
        with mirrored(ws, job, publishes=False):
            while trains(job) and not lease.lost:
                time.sleep(POLL_S)
        if not lease.lost and ws.store.has(f"checkpoint/{job.name}"):  # whoever followed it was faster
            remove_state(ws, job)
        print(f"{lock}: {'followed again' if lease.lost else 'the training has ended'}", flush=True)


def main(job: Path, lock: str) -> int:
    """Wait for the end of the input, and keep the lock where the training goes on."""
    keep_private()
    if sys.stdin.buffer.read() == ENDED or not job.is_dir():
        return 0
    try:
        keep(Settings.from_env(os.environ), job, lock)
    except MedAssetsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
