"""Experiments of retinal_oct small enough for a test."""

from typing import cast

from med_assets.experiments.configuration import load
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from tests.med_assets.programs.retinal_oct.builders import TINY


def tiny(name: str = "scratch", *overrides: str) -> RetinalExperiment:
    """An experiment of the demo profile with TINY and more overrides."""
    return cast(RetinalExperiment, load("retinal_oct", name, [*TINY, *overrides], profile="demo"))
