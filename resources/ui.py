"""`python -m resources.ui`: Dagster with web page and daemon, once for each DAGSTER_HOME, and the review page beside it.

Two daemons on one instance each warn about the other all the time and request the same work twice. So whoever starts Dagster
here holds a lock for as long as it runs; a second start says so in one line and ends.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from med_assets.review.address import PORT, REVIEW_URL

LOCK = "ui.lock"
"""File of DAGSTER_HOME that the running Dagster holds; it has the process's id."""

REVIEW_END_S = 15
"""Seconds that the review page has to finish what it writes."""

STOPPING = "ui.stopping"
"""File of DAGSTER_HOME that is there while Dagster is being stopped: ticks that wait then end, for which Dagster would wait."""


DEV = (sys.executable, "-m", "resources.dev")
"""Command of `dagster dev`."""

TICK_TIMEOUT, TICK_TIMEOUT_S = "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS", 120
"""Dagster's variable with the seconds after which it ends a tick of a sensor, and what it is here unless it is set: ticks wait for something
to do, and the longer they may, the fewer there are (`sensors.clock`)."""


def main(arguments: Sequence[str] | None = None, dev: Sequence[str] = DEV) -> None:
    """Run `dagster dev` for the workspace of this folder and the review page, or end with status 1 where they run already.

    Where MED_ASSETS_REVIEW_URL is set the review page is somewhere else, and none is started.
    """
    home = os.environ.get("DAGSTER_HOME", "")
    if not home:
        sys.exit("ui: expected DAGSTER_HOME to name the folder of the Dagster instance; `make ui` sets it")
    folder = Path(home)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        sys.exit(
            f"ui: Dagster works on this instance already (process {holder}); open its page, or stop it first: two daemons on one "
            "instance are in each other's way"
        )
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    stopping = folder / STOPPING
    stopping.unlink(missing_ok=True)

    started: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.touch()
        if number == signal.SIGTERM:  # that of the keyboard goes to all processes
            for process in started:
                process.terminate()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # Dagster holds the lock too, so that it stays held when this process is killed.
    os.environ.setdefault(TICK_TIMEOUT, str(TICK_TIMEOUT_S))
    dagster = subprocess.Popen([*dev, "-w", "workspace.yaml", *chosen], pass_fds=[lock])
    started.append(dagster)
    if REVIEW_URL not in os.environ:
        # It prints its address, or in one line why there is none; Dagster goes on without it.
        started.append(subprocess.Popen(["med-assets", "review", "--port", str(PORT)]))
    if stopping.exists():
        for process in started:
            process.terminate()
    os.ftruncate(lock, 0)
    os.write(lock, f"{dagster.pid}\n".encode())
    status = dagster.wait()
    for review in started[1:]:
        review.terminate()
        try:
            review.wait(REVIEW_END_S)
        except subprocess.TimeoutExpired:
            review.kill()
            review.wait()
    stopping.unlink(missing_ok=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
