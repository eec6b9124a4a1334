"""Intervals and thresholds of sensors and schedules, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

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
    """Seconds between two looks of a sensor."""
    return max(1, round(number("MED_ASSETS_TICK_S", 30, environ)))


@dataclass(frozen=True)
class RetrainPolicy:
    """When training pays."""

    min_new_cases: int = 10
    """Training cases that no checkpoint has seen, from which on training pays."""
    cool_down_s: float = 6 * 3600.0
    """Seconds between two starts."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "RetrainPolicy":
        """Policy of MED_ASSETS_RETRAIN_MIN_NEW_CASES and MED_ASSETS_RETRAIN_COOL_DOWN_S."""
        return cls(
            min_new_cases=max(1, round(number("MED_ASSETS_RETRAIN_MIN_NEW_CASES", cls.min_new_cases, environ))),
            cool_down_s=number("MED_ASSETS_RETRAIN_COOL_DOWN_S", cls.cool_down_s, environ),
        )
