"""Two machines on one bucket, killed at random and with faults in between, come to what one undisturbed machine comes to."""

import os
from pathlib import Path

import pytest

from tests.med_assets.site.compared import FAULTS, SEED, Opened, compare
from tests.med_assets.site.plan import plan

PHASES = int(os.environ.get("PHASES", "3"))
"""Phases of work; `make chaos N=100` for more."""


@pytest.mark.drill
@pytest.mark.timeout(0)
def test_machines_that_are_killed_come_to_the_models_and_champions_of_one(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, found = compare(opened, tmp_path, plan(SEED, PHASES), kills=3 * PHASES, faults=FAULTS, timeout_s=400 * PHASES)
    with capsys.disabled():
        print(f"\n{PHASES} phases, seed {SEED}: {site.summary()}")
    assert not found, "\n".join(found)
    assert site.counts["killed"] >= PHASES
