"""Intervals and thresholds of sensors and schedules, from the environment."""

import os
from collections.abc import Mapping

from med_assets.errors import ConfigurationError


def number(name: str, default: float, environ: Mapping[str, str] = os.environ) -> float:
    """A non-negative number from the environment; raises ConfigurationError naming the variable."""
    text = environ.get(name, str(default))
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigurationError(f"expected {name} to be a number of at least 0, got {text!r}")
    return found


def tick_s(environ: Mapping[str, str] = os.environ) -> int:
    """Least seconds from the start of a tick to that of the next one, of the sensors of intake and update."""
    return max(1, round(number("MED_ASSETS_TICK_S", 10, environ)))


def look_s(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds between two looks within a tick of intake or update that waits for something to do."""
    return tick_s(environ) / 2


def predictions_tick_s(environ: Mapping[str, str] = os.environ) -> int:
    """Seconds between two ticks of the sensor of predictions."""
    return 6 * tick_s(environ)


def retrain_tick_s(environ: Mapping[str, str] = os.environ) -> int:
    """Seconds between two ticks of a sensor of retraining, which every program has."""
    return 60 * tick_s(environ)
