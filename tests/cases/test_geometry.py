"""Slices lie where an even stack has them, whatever each gap says."""

import numpy as np
import pytest
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSNearLossless

from med_assets.dicom.elements import regular_spacing
from med_assets.dicom.geometry import read_ct_series
from med_assets.dicom.tolerances import SPACING_TOLERANCE_MM
from med_assets.errors import CaseRejected
from med_assets.preparation.checks import audit
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.invented import Study, ct, hu_at, ingest, plan_case, rt_dose_voxels, volume_seg, write

DRIFT = np.concatenate([np.arange(60) * 1.0, 59 + np.arange(1, 61) * 1.1])
"""60 slices 1.0 mm apart, then 60 at 1.1 mm: each gap is within the tolerance, and slice 60 is 3 mm from its place."""


def test_a_drift_that_no_single_gap_shows_is_refused_with_its_size(workspace: Workspace) -> None:
    study = Study("drift")
    slices = ct(study, positions=list(DRIFT - DRIFT.mean()))
    write(plan_case("drift", slices=slices, st=study), workspace.landing / "rt_dose" / "drift")
    raw, _ = ingest(workspace, "rt_dose")
    (row,) = raw
    assert row["reason_code"] == "nonuniform_spacing"
    assert "slice 60 of 120 that lies 1.50 mm" in row["reason"]


def test_noise_of_single_positions_is_accepted() -> None:
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, 300)
    assert regular_spacing(np.arange(300) * 1.25 + noise) == pytest.approx(1.25, abs=1e-3)


@pytest.mark.parametrize("growth", [1e-4, 5e-4, 2e-3])
def test_the_limit_is_on_places_not_on_gaps(growth: float) -> None:
    positions = np.cumsum(1 + growth * np.arange(200))
    even = np.polyval(np.polyfit(np.arange(200), positions, 1), np.arange(200))
    if np.abs(positions - even).max() > SPACING_TOLERANCE_MM:
        with pytest.raises(CaseRejected):
            regular_spacing(positions)
    else:
        regular_spacing(positions)


def test_the_noise_of_an_end_slice_bends_no_line() -> None:
    """Through both ends the middle slices would lie 0.13 mm off."""
    positions = np.arange(9) * 3.0
    positions[[0, 8]] += 0.11, -0.11
    positions[1:8] += np.linspace(-0.05, 0.05, 7)
    assert regular_spacing(positions) == pytest.approx(3.0, abs=0.01)
    off = positions - np.polyval([3.0, 0.0], np.arange(9))
    assert np.abs(off).max() < SPACING_TOLERANCE_MM


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


AXES = [np.eye(3)[axis] * sign for axis in range(3) for sign in (1, -1)]
ORIENTATIONS = [
    tuple(float(value) for value in (*row, *column)) for row in AXES for column in AXES if abs(row @ column) < 0.5
]


@pytest.mark.parametrize("iop", ORIENTATIONS, ids=str)
def test_a_stack_in_any_of_the_24_orientations_is_the_same_volume(iop: tuple[float, ...]) -> None:
    volume = read_ct_series(ct(Study("turned"), iop=iop, n=9, dz=6.0, px=5.0, size=(16, 20)))
    np.testing.assert_allclose(volume.geometry.direction, [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-9)
    points = volume.geometry.to_points(np.argwhere(np.ones(volume.array.shape, bool)))
    expected = hu_at(points).reshape(volume.array.shape)
    same = volume.array == expected
    assert (~same).sum() <= 8 * 9, "but for the voxels of each slice that tell cases apart"


@pytest.mark.parametrize("iop", [(0, -1, 0, 1, 0, 0), (0, 1, 0, -1, 0, 0), (-1, 0, 0, 0, -1, 0)])
def test_a_patient_on_the_side_has_the_same_structures_and_dose(workspace: Workspace, iop: tuple[int, ...]) -> None:
    write(plan_case("side", ct_kw={"iop": iop}, dose_kw={"iop": iop}), workspace.landing / "rt_dose" / "side")
    _, (row,) = ingest(workspace, "rt_dose")
    assert rt_dose_voxels(workspace, row)["Rectum"] == 729
    case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    target = (case.masks >> case.structures.index("PTV70") & 1).astype(bool)
    np.testing.assert_allclose(case.dose[target], 70.0, atol=0.01)


def test_a_segmentation_of_a_patient_on_the_side_lies_on_the_images(workspace: Workspace) -> None:
    mask = np.zeros((25, 64, 64), bool)
    mask[8:14, 30:38, 20:29] = True
    study = Study("side seg")
    slices = ct(study, iop=(0, -1, 0, 1, 0, 0))
    write([*slices, volume_seg(study, slices, [("lung tumor", mask)])], workspace.landing / "lung_ct" / "side")
    _, (row,) = ingest(workspace, "lung_ct")
    assert row["status"] == "ok", row["reason"]
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["target_ml"] == pytest.approx(int(mask.sum()) * 125 / 1000)


def test_a_stack_half_way_between_two_axes_is_refused_with_its_angle() -> None:
    half = np.sqrt(0.5)
    with pytest.raises(CaseRejected) as refused:
        read_ct_series(ct(Study("oblique"), iop=(half, half, 0, 0, 0, -1), n=5))
    assert refused.value.code == "not_axial"
    assert "45 degrees" in refused.value.message


@pytest.mark.parametrize(
    ("syntax", "how", "lossy"),
    [
        (JPEG2000, {"j2k_cr": [10]}, True),
        (JPEGLSNearLossless, {"jls_error": 3}, True),
        (JPEG2000Lossless, {}, False),
        (None, {}, False),
    ],
)
def test_loss_of_a_compression_is_a_fact_and_a_warning_of_the_audit(
    workspace: Workspace, syntax: str | None, how: dict[str, object], lossy: bool
) -> None:
    mask = np.zeros((25, 64, 64), bool)
    mask[8:14, 30:38, 20:28] = True
    study = Study("lossy")
    slices = ct(study)
    label = volume_seg(study, slices, [("lung tumor", mask)])
    for one in slices if syntax else ():
        one.compress(syntax, generate_instance_uid=False, **how)
        if syntax == JPEG2000:
            one.LossyImageCompression, one.LossyImageCompressionRatio = "01", "10"
    write([*slices, label], workspace.landing / "lung_ct" / "lossy")
    _, (row,) = ingest(workspace, "lung_ct")
    assert row["status"] == "ok", row["reason"]
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["lossy"] is lossy
    outcome = audit(workspace, "lung_ct", row["batch"])
    assert ("without loss" in outcome.reason) is lossy
