"""Slices lie where an even stack has them, whatever each gap says."""

import numpy as np
import pytest

from med_assets.dicom.frames import SPACING_TOLERANCE_MM, regular_spacing
from med_assets.errors import CaseRejected
from med_assets.settings import Workspace
from tests.invented import Study, ct, ingest, plan_case, volume_seg, write

DRIFT = np.concatenate([np.arange(60) * 1.0, 59 + np.arange(1, 61) * 1.1])
"""60 slices 1.0 mm apart, then 60 at 1.1 mm: each gap is within the tolerance, and slice 60 is 3 mm from its place."""


def test_a_drift_that_no_single_gap_shows_is_refused_with_its_size(workspace: Workspace) -> None:
    study = Study("drift")
    slices = ct(study, positions=list(DRIFT - DRIFT.mean()))
    write(plan_case("drift", slices=slices, st=study), workspace.landing / "rt_dose" / "drift")
    raw, _ = ingest(workspace, "rt_dose")
    (row,) = raw
    assert row["reason_code"] == "nonuniform_spacing"
    assert "slice 60 of 120 lies 2.97 mm" in row["reason"]


def test_noise_of_single_positions_is_accepted() -> None:
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, 300)
    assert regular_spacing(np.arange(300) * 1.25 + noise) == pytest.approx(1.25, abs=1e-3)


@pytest.mark.parametrize("growth", [1e-4, 5e-4, 2e-3])
def test_the_limit_is_on_places_not_on_gaps(growth: float) -> None:
    positions = np.cumsum(1 + growth * np.arange(200))
    even = positions[0] + (positions[-1] - positions[0]) * np.arange(200) / 199
    if np.abs(positions - even).max() > SPACING_TOLERANCE_MM:
        with pytest.raises(CaseRejected):
            regular_spacing(positions)
    else:
        regular_spacing(positions)


@pytest.mark.parametrize("declared", ["declared", None])
@pytest.mark.parametrize("noise_mm", [0.0, 0.01, 0.05])
def test_a_segmentation_drawn_on_slices_with_noise_lies_on_them(
    workspace: Workspace, noise_mm: float, declared: str | None
) -> None:
    mask = np.zeros((25, 64, 64), bool)
    mask[8:14, 30:38, 20:28] = True
    study = Study("noise")
    jitter = np.random.default_rng(2).uniform(-noise_mm, noise_mm, 25)
    slices = ct(study, positions=list((np.arange(25) - 12) * 5.0 + jitter))
    label = volume_seg(study, slices, [("lung tumor", mask)], spacing=declared)
    write([*slices, label], workspace.landing / "lung_ct" / "noise")
    _, (row,) = ingest(workspace, "lung_ct")
    assert row["status"] == "ok", row["reason"]
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["target_ml"] == pytest.approx(384 * 125 / 1000, rel=2e-3)


def test_a_segmentation_half_a_slice_off_is_refused(workspace: Workspace) -> None:
    mask = np.zeros((25, 64, 64), bool)
    mask[8:14, 30:38, 20:28] = True
    study = Study("off")
    slices = ct(study)
    moved = ct(study, centre=(0, 0, 1.0))
    write([*slices, volume_seg(study, moved, [("lung tumor", mask)])], workspace.landing / "lung_ct" / "off")
    _, (row,) = ingest(workspace, "lung_ct")
    assert row["reason_code"] == "label_grid_mismatch"
