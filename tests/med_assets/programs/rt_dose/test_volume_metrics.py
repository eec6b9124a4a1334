"""What is measured of a whole validation case after each epoch."""

from pathlib import Path

import numpy as np
import pytest

from med_assets.programs.rt_dose.lit import volume_metrics
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import load_site
from tests.med_assets.programs.rt_dose.builders import write_case


def test_d95_of_targets_and_v70_of_the_organs_that_have_such_a_limit_are_followed(tmp_path: Path) -> None:
    case = PreparedCase.open(write_case(tmp_path / "case"))
    rectum, planned = case.mask("Rectum"), np.asarray(case.dose)
    found = volume_metrics(case, np.where(rectum, np.float32(75.0), planned), load_site("prostate_sib"))
    assert found["val_v70_gap_Rectum_pct"] == pytest.approx(100 * (1 - (planned[rectum] >= 70).mean()))
    assert found["val_v70_gap_Rectum_pct"] > 0
    assert {name for name in found if "v70" in name} == {"val_v70_gap_Rectum_pct", "val_v70_gap_Bladder_pct"}
    assert {name for name in found if "d95" in name} == {"val_d95_gap_PTV70_gy", "val_d95_gap_PTV56_gy"}
