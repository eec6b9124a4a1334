"""Two machines on one bucket, killed at random and with faults in between, come to what one undisturbed machine comes to."""

import os
from pathlib import Path

import pytest

from tests.med_assets.site.compared import FAULTS, SEED, Opened, compare
from tests.med_assets.site.plan import plan

PHASES = int(os.environ.get("PHASES", "3"))
"""Phases of the long form; `make chaos N=100` for more."""

FEW_FAULTS = {"failing": 0.03, "truncated": 0.03, "closing": 0.01, "lag_s": 0.3}
"""Those of the short form."""


@pytest.mark.drill
def test_two_machines_that_are_killed_take_in_and_decide_what_one_does(opened: Opened, tmp_path: Path) -> None:
    chosen = plan(SEED, 2, cases=1, models=False)
    site, found = compare(opened, tmp_path, chosen, kills=2, faults=FEW_FAULTS, timeout_s=200, back_off_s=0.05)
    assert not found, "\n".join(found)
    assert site.counts["killed"] >= 1
    assert site.counts["failing"] > 0


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
