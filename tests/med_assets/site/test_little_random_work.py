"""The same as in test_random_work in a minute: intake and decisions without models; a file of its own, so that both run side by side."""

from pathlib import Path

import pytest

from tests.med_assets.site.compared import SEED, Opened, compare
from tests.med_assets.site.plan import plan

FEW_FAULTS = {"failing": 0.03, "truncated": 0.03, "closing": 0.01, "lag_s": 0.3}
"""Fewer than in the other forms."""


@pytest.mark.drill
def test_two_machines_that_are_killed_take_in_and_decide_what_one_does(opened: Opened, tmp_path: Path) -> None:
    chosen = plan(SEED, 2, cases=1, models=False)
    site, found = compare(opened, tmp_path, chosen, kills=2, faults=FEW_FAULTS, timeout_s=200, back_off_s=0.05)
    assert not found, "\n".join(found)
    assert site.counts["killed"] >= 1
    assert site.counts["failing"] > 0
