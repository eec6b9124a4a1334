"""The clock by which a tick waits for something to do."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from resources.ui import STOPPING
from sensors.settings import tick_s

SLACK_S = 12.0
"""Seconds that a tick waits beyond `wait_s` for what would else come between it and the next."""

ENDING_S = 8.0
"""Seconds that a tick has after that, before Dagster ends it."""


def wait_s(instance: dg.DagsterInstance) -> float:
    """Seconds that a tick waits for something to do, by what Dagster allows: 40 of the 60 s that are its default.

    Each tick costs Dagster 80 ms of CPU in three processes, and one that waits costs no more than one that does not. Where sensors have no
    threads, as in a DAGSTER_HOME with settings from before, a tick that waits holds up the others.
    """
    from dagster._grpc.utils import default_sensor_grpc_timeout

    if not instance.get_sensor_settings().get("use_threads"):
        return float(tick_s())
    return max(float(tick_s()), default_sensor_grpc_timeout() - SLACK_S - ENDING_S)


SLICE_S = 1.0
"""Seconds after which a pause looks whether Dagster is being stopped."""


def pause(seconds: float) -> bool:
    """Wait, and say whether there was no reason to end earlier: `make ui` is being stopped."""
    home = os.environ.get("DAGSTER_HOME")
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        if home and Path(home, STOPPING).exists():
            return False
        time.sleep(min(left_s, SLICE_S))
    return True


@dataclass(frozen=True)
class Clock:
    """Seconds since the epoch, seconds since some moment that no setting of the clock moves, and a pause of some seconds, which says
    whether to go on."""

    now: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic
    pause: Callable[[float], bool] = pause


SYSTEM = Clock()
"""The clock of the machine."""
