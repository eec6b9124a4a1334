"""A CT of a tilted gantry is refused with its angle, or shifted onto an upright grid, on which its labels and its dose lie as before."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from med_assets.dicom.geometry import CtSeries, Geometry, read_ct_series
from med_assets.dicom.seg import place, read_segments
from med_assets.dicom.seg_write import write_seg
from med_assets.dicom.tolerances import TiltPolicy
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.preparation.checks import audit
from med_assets.programs.ct import tilt_policy
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.invented import Study, ct, grid_points, hu_at, ingest, plan_case, rt_dose_voxels, volume_seg, write

RESAMPLE = TiltPolicy(resample=True)


def tilted(
    study: Study, degrees: float, n: int = 21, dz: float = 5.0, size: tuple[int, int] = (64, 64), **kw: Any
) -> list[Dataset]:
    """Slices tilted about the left-right axis, of which the table moved along the patient between each."""
    angle = np.radians(degrees)
    iop = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
    half = (size[1] - 1) / 2 * 5 * np.array(iop[:3]) + (size[0] - 1) / 2 * 5 * np.array(iop[3:])
    origins = [np.array([0, 0, (k - (n - 1) / 2) * dz]) - half for k in range(n)]
    return ct(study, iop=iop, n=n, size=size, origins=origins, **kw)


def linear(p: np.ndarray) -> np.ndarray:
    return np.round(200 + 1.5 * p[..., 0] + 0.7 * p[..., 1] + 2.1 * p[..., 2])


def with_setting(ws: Workspace, program: str, value: str) -> Workspace:
    return replace(ws, options={**ws.options, f"MED_ASSETS_{program}_GANTRY_TILT".upper(): value})


@pytest.mark.parametrize("degrees", [5.0, 12.0, -20.0, 29.0])
def test_values_lie_where_they_were_measured_on_an_upright_grid(degrees: float) -> None:
    slices = tilted(Study("values"), degrees, hu=linear)
    found = read_ct_series(slices, tilt=RESAMPLE)
    assert isinstance(found, CtSeries)
    assert found.gantry_tilt_deg == pytest.approx(abs(degrees), abs=1e-6)
    assert found.geometry.oblique_deg() == pytest.approx(abs(degrees), abs=1e-6)
    direction = np.asarray(found.geometry.direction)
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-9)
    assert found.geometry.spacing_mm[0] == pytest.approx(5 * np.cos(np.radians(degrees)))
    assert found.array.shape[0] == 21
    assert found.array.shape[1] - 64 == pytest.approx(20 * abs(np.sin(np.radians(degrees))), abs=1.01)
    points = found.geometry.to_points(np.argwhere(np.ones(found.array.shape, bool)))
    inside = (found.array > found.array.min()).ravel()
    off = np.abs(found.array.ravel() - linear(points))[inside]
    assert np.mean(off <= 1.0) > 0.99, "but for the voxels of each slice that tell cases apart"
    assert 0.95 < inside.sum() / (21 * 64 * 64) <= 1.0


def test_a_tilt_that_the_program_does_not_allow_is_refused_with_its_angle_and_setting(workspace: Workspace) -> None:
    study = Study("refused")
    slices = tilted(study, 12.5)
    mask = np.zeros((21, 64, 64), bool)
    mask[8:14, 30:38, 20:28] = True
    write([*slices, volume_seg(study, slices, [("lung tumor", mask)])], workspace.landing / "lung_ct" / "a")
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert raw["reason"] is None
    assert row["reason_code"] == "gantry_tilt"
    assert "12.5 degrees" in row["reason"]
    assert "MED_ASSETS_LUNG_CT_GANTRY_TILT=resample" in row["reason"]
    allowed = with_setting(workspace, "lung_ct", "resample")
    from med_assets.cli import stages

    stages.prepare(allowed, "lung_ct", row["batch"])
    (again,) = workspace.lake.rows("prepared_cases", f"lung_ct/{row['batch']}")
    assert again["status"] == "ok", again["reason"]
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["gantry_tilt_deg"] == pytest.approx(12.5, abs=1e-6)
    assert facts["target_ml"] == pytest.approx(int(mask.sum()) * 0.125 * np.cos(np.radians(12.5)), rel=1e-6)
    outcome = audit(allowed, "lung_ct", row["batch"])
    assert "upright gantry" in outcome.reason
    assert "axes of the patient" in outcome.reason


def test_a_segmentation_follows_the_slices_onto_the_upright_grid(tmp_path: Any) -> None:
    study = Study("label")
    slices = tilted(study, 20.0)
    mask = np.zeros((21, 64, 64), bool)
    mask[[8, 9, 12], 30:38, 20:29] = True
    found = read_ct_series(slices, tilt=RESAMPLE)
    placed, _ = place(
        read_segments(volume_seg(study, slices, [("a", mask)], spacing=None)), found.geometry, found.slices
    )
    assert placed["a"].sum() == mask.sum()
    points = found.geometry.to_points(np.argwhere(placed["a"]))
    expected = np.concatenate(
        [
            grid_points(
                [float(v) for v in one.ImageOrientationPatient],
                [float(v) for v in one.ImagePositionPatient],
                (5, 5),
                (64, 64),
            )[plane]
            for one, plane in zip(slices, mask, strict=True)
        ]
    )
    off = np.abs(points[:, None] - expected[None]).max(axis=2).min(axis=1)
    assert off.max() <= 2.5 + 1e-6, "half a pixel"
    beside = volume_seg(study, slices, [("a", mask)], spacing=None)
    for frame in beside.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [float(x) + 2, y, z]
    with pytest.raises(CaseRejected, match="up to 2 mm"):
        place(read_segments(beside), found.geometry, found.slices)
    write_seg(tmp_path / "seg.dcm", {"a": placed["a"]}, found.geometry, slices, made_by="model")
    from pydicom import dcmread

    back, agreement = place(read_segments(dcmread(tmp_path / "seg.dcm")), found.geometry, found.slices)
    assert np.array_equal(back["a"], placed["a"])
    assert agreement.kind == "identical"


def test_structures_and_dose_of_a_plan_follow_a_tilted_ct(workspace: Workspace) -> None:
    study, angle = Study("plan"), np.radians(10)
    slices = tilted(study, 10.0, n=33)
    down = np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.array([0, -np.sin(angle), np.cos(angle)])

    def box(half: float, centre: tuple[float, float, float]) -> Iterator[np.ndarray]:
        """Outlines of a box along the axes of the tilted slices around a point, in their planes."""
        for one in slices:
            along = (np.array([float(v) for v in one.ImagePositionPatient]) - centre) @ normal
            if abs(along) <= half:
                corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
                yield np.array(
                    [np.array(centre) + x * np.array([1, 0, 0]) + y * down + along * normal for x, y in corners]
                )

    ring = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    body = []
    for one in slices:
        middle = np.array([float(v) for v in one.ImagePositionPatient]) + 31.5 * 5 * (np.array([1, 0, 0]) + down)
        body.append(np.array([middle + 125 * np.cos(a) * np.array([1, 0, 0]) + 95 * np.sin(a) * down for a in ring]))
    rois = [
        ("BODY", body),
        ("PTV70", list(box(22.5, (0, 0, 0)))),
        ("PTV56", list(box(32.5, (0, 0, 0)))),
        ("Rectum", list(box(22.5, (0, 50, 0)))),
        ("Bladder", list(box(22.5, (0, -50, 0)))),
    ]
    allowed = with_setting(workspace, "rt_dose", "resample")
    write(plan_case("plan", slices=slices, st=study, rois=rois), workspace.landing / "rt_dose" / "plan")
    (raw,), (row,) = ingest(allowed, "rt_dose")
    assert (raw["reason"], row["reason"]) == (None, None)
    case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    geometry = Geometry.from_dict(case.geometry)
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    # Planes lie 4.92 mm apart and voxels are 5 mm wide, so that a box of 45 mm is met to half a voxel at each side.
    assert rt_dose_voxels(allowed, row)["Rectum"] * voxel_ml == pytest.approx(0.045**3 * 1e6, rel=0.12)
    mask = (case.masks >> case.structures.index("Rectum") & 1).astype(bool)
    np.testing.assert_allclose(geometry.to_points(np.argwhere(mask)).mean(axis=0), (0, 50, 0), atol=2.5)
    target = (case.masks >> case.structures.index("PTV70") & 1).astype(bool)
    np.testing.assert_allclose(case.dose[target], 70.0, atol=0.01)
    points = geometry.to_points(np.argwhere(np.ones(case.ct.shape, bool)))
    near = np.abs(points).max(axis=1) < 30
    assert np.abs(np.asarray(case.ct).ravel()[near] - hu_at(points[near])).max() <= 2


def test_a_table_that_moved_once_is_no_tilt() -> None:
    slices = tilted(Study("moved"), 0.0)
    for one in slices[10:]:
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x, float(y) + 6, z]
    with pytest.raises(CaseRejected, match="moved table") as refused:
        read_ct_series(slices, tilt=RESAMPLE)
    assert refused.value.code == "inconsistent_geometry"


@pytest.mark.parametrize(("degrees", "warned"), [(0.0, False), (0.5, False), (20.0, True), (44.0, True)])
def test_an_oblique_stack_counts_as_axial_with_its_angle_and_a_warning(
    workspace: Workspace, degrees: float, warned: bool
) -> None:
    angle, study = np.radians(degrees), Study("oblique")
    slices = ct(study, iop=(1, 0, 0, 0, np.cos(angle), np.sin(angle)), n=33)
    mask = np.zeros((33, 64, 64), bool)
    mask[12:18, 30:38, 20:28] = True
    write([*slices, volume_seg(study, slices, [("lung tumor", mask)])], workspace.landing / "lung_ct" / "a")
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["oblique_deg"] == pytest.approx(degrees, abs=1e-6)
    assert facts["gantry_tilt_deg"] == 0
    assert facts["target_ml"] == pytest.approx(48.0)
    assert ("axes of the patient" in audit(workspace, "lung_ct", row["batch"]).reason) is warned


def test_a_setting_that_is_neither_is_refused(workspace: Workspace) -> None:
    assert not tilt_policy(workspace, "lung_ct").resample
    with pytest.raises(ConfigurationError, match="MED_ASSETS_LUNG_CT_GANTRY_TILT"):
        tilt_policy(with_setting(workspace, "lung_ct", "yes"), "lung_ct")
