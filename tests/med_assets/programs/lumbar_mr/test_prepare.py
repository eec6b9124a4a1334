"""From stored DICOM to a prepared case: orientation, order of slices, points, facts, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from med_assets.dicom.discover import scan
from med_assets.errors import ArtifactCorrupt, CaseRejected
from med_assets.preparation.expectations import run_suite
from med_assets.program import COMMON_FACTS, RawCase
from med_assets.programs.lumbar_mr import LumbarMr
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.transforms import from_input, network_input, to_eight_bit, to_input
from med_assets.settings import Workspace
from tests.med_assets.programs.lumbar_mr.series_builders import (
    AT,
    GEOMETRY,
    SHAPE,
    flipped,
    identity,
    values,
    write_series,
)


def prepare(ws: Workspace, folder: Path, out: Path) -> dict[str, object]:
    """Facts of a case as it lies in the store: all of its files in one folder, in an order that says nothing."""
    stored = out.parent / f"{out.name}-stored"
    stored.mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.dcm"), reverse=True)):
        (stored / f"{(number * 7) % 101:04d}.dcm").write_bytes(path.read_bytes())
    out.mkdir()
    return LumbarMr().prepare(ws, "abc", stored, out)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_slices_rows_and_columns_are_turned_to_one_orientation_whatever_way_they_are_stored(
    workspace: Workspace, tmp_path: Path, axes: tuple[int, ...]
) -> None:
    write_series(tmp_path / "in", identity(), volume=flipped(values(), axes), anatomy="normal")
    facts = prepare(workspace, tmp_path / "in", tmp_path / "out")
    case = PreparedCase.open(tmp_path / "out")
    np.testing.assert_array_equal(case.volume, to_eight_bit(values())[0])
    np.testing.assert_array_equal(case.input, network_input(case.volume))
    assert case.geometry.same_grid(GEOMETRY)
    for level in LEVELS:
        np.testing.assert_allclose(case.levels[level], AT[level], atol=1e-5)
    assert (case.lstv, case.synthetic, case.middle) == ("normal", True, 2)
    assert (case.pixel_mm, case.slice_mm) == ((4.0, 4.5), 5.0)
    assert set(facts) == set(LumbarMr.facts) - set(COMMON_FACTS)
    # The reader orders slices along the normal of rows and columns, which turns when one of those is flipped.
    assert facts["orientation"] == {(): "RIP", (0,): "RIP", (1,): "LSP", (2,): "LIA", (0, 1, 2): "RSA"}[axes]


def test_facts_are_measured_and_good_ones_meet_what_is_expected(workspace: Workspace, tmp_path: Path) -> None:
    import pandas as pd

    facts = prepare(workspace, write_series(tmp_path / "in", identity()), tmp_path / "out")
    expected = {
        "slices": 6, "rows": 50, "columns": 40, "slice_mm": 5.0, "pixel_mm": 4.5, "height_mm": 200.0, "levels": 5,
        "points_outside": 0, "points_without_level": 0, "levels_in_order": True, "level_slices": 1.0, "lstv": "unknown",
        "echo_time_ms": 100.0, "repetition_time_ms": 3500.0,
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    gap = float(np.linalg.norm(np.array([0.25, 8.5, -1.0]) * (5.0, 4.0, 4.5)))
    assert facts["level_gap_min_mm"] == pytest.approx(gap)
    assert facts["level_gap_max_mm"] == pytest.approx(gap)
    bare = prepare(workspace, write_series(tmp_path / "in2", identity(), at=None), tmp_path / "out2")
    swapped = dict(AT, l1_l2=AT["l2_l3"], l2_l3=AT["l1_l2"])
    wrong = prepare(workspace, write_series(tmp_path / "in3", identity(), at=swapped), tmp_path / "out3")
    away = dict(AT, l5_s1=np.array([2.0, 53.0, 16.0]))
    outside = prepare(workspace, write_series(tmp_path / "in4", identity(), at=away), tmp_path / "out4")
    rows = [dict(one, case_id=name) for name, one in (("a", facts), ("b", bare), ("c", wrong), ("d", outside))]
    # A pixel of 4 mm is coarser than a scanner's.
    suite = [one for one in LumbarMr().expectations(workspace) if one.column != "pixel_mm"]
    audit = run_suite(pd.DataFrame(rows), suite)
    assert audit.failing_cases() == ("c", "d")
    assert not {"levels", "levels_in_order", "lstv"} & set(bare)


def test_a_case_without_points_has_the_middle_of_the_series(workspace: Workspace, tmp_path: Path) -> None:
    prepare(workspace, write_series(tmp_path / "in", identity(), at=None), tmp_path / "out")
    case = PreparedCase.open(tmp_path / "out")
    assert set(case.levels.values()) == {None}
    assert (case.middle, case.lstv) == (2, "unknown")


def verified(folder: Path) -> str:
    """Code of why a folder is refused at intake."""
    (case,), _ = LumbarMr().group(scan(folder).instances)
    assert isinstance(case, RawCase)
    with pytest.raises(CaseRejected) as refused:
        LumbarMr().verify(case)
    return refused.value.code


def test_a_missing_slice_a_repeated_one_and_one_of_another_orientation_are_refused(tmp_path: Path) -> None:
    (write_series(tmp_path / "missing", identity()) / "t2" / "0002.dcm").unlink()
    assert verified(tmp_path / "missing") == "missing_slice"
    write_series(tmp_path / "twice", identity())
    write_series(tmp_path / "twice" / "x", identity(), "t2", at=None)
    again = tmp_path / "twice" / "x" / "t2"
    for path in sorted(again.iterdir())[1:]:
        path.unlink()
    path = again / "0000.dcm"
    import pydicom

    ds = pydicom.dcmread(path)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.save_as(path)
    assert verified(tmp_path / "twice") == "duplicate_slice"
    ds.ImageOrientationPatient = [0, 1, 0, 0.1736482, 0, -0.9848078]
    ds.save_as(path)
    assert verified(tmp_path / "twice") == "inconsistent_geometry"


def test_points_of_unknown_names_alone_and_two_anatomies_are_refused(tmp_path: Path) -> None:
    import pydicom

    write_series(tmp_path, identity(), anatomy="normal")
    path = tmp_path / "t2.dcm"
    ds = pydicom.dcmread(path)
    ds.StructureSetROISequence[0].ROIName = "LSTV sacralised"
    ds.save_as(path)
    assert verified(tmp_path) == "several_anatomies"
    for one in ds.StructureSetROISequence:
        one.ROIName = f"P{one.ROINumber}"
    ds.save_as(path)
    assert verified(tmp_path) == "no_level_points"


def test_a_series_of_one_value_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    write_series(tmp_path / "in", identity(), volume=flipped(np.full(SHAPE, 7.0), ()))
    with pytest.raises(CaseRejected) as refused:
        prepare(workspace, tmp_path / "in", tmp_path / "out")
    assert refused.value.code == "no_contrast"


def test_a_changed_prepared_case_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    prepare(workspace, write_series(tmp_path / "in", identity()), tmp_path / "out")
    path = tmp_path / "out" / "truth.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"middle": 6}))
    with pytest.raises(ArtifactCorrupt, match="middle"):
        PreparedCase.open(tmp_path / "out")
    path.write_text(json.dumps({name: [0] if name == "levels" else value for name, value in facts.items()}))
    with pytest.raises(ArtifactCorrupt, match=r"case\.json"):
        PreparedCase.open(tmp_path / "out")
    path.write_text(json.dumps(facts))
    np.save(tmp_path / "out" / "input.npy", np.zeros((6, 160, 161), np.uint8))
    with pytest.raises(ArtifactCorrupt, match="input"):
        PreparedCase.open(tmp_path / "out")


def test_a_point_lands_on_what_it_pointed_at_in_the_networks_input() -> None:
    volume = np.zeros((1, 320, 240), np.uint8)
    volume[0, 200:204, 60:63] = 255
    y, x = to_input(np.array([201.5, 61.0]), 320, 240)
    rows, columns = np.indices((INPUT_PIXELS, INPUT_PIXELS))
    found = network_input(volume)[0].astype(float)
    assert (found * rows).sum() / found.sum() == pytest.approx(y, abs=0.1)
    assert (found * columns).sum() / found.sum() == pytest.approx(x, abs=0.1)
    np.testing.assert_allclose(from_input(np.array([y, x]), 320, 240), [201.5, 61.0])


def test_percentiles_are_of_the_whole_series() -> None:
    array = np.arange(10000.0).reshape(10, 10, 100)
    array[0, 0, 0] = 1e6
    scaled, low, high = to_eight_bit(array)
    assert (low, high) == pytest.approx((10.0, 9990.0), abs=2)
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert scaled[5, 0, 0] == round((5000 - low) / (high - low) * 255)


def test_a_deidentified_case_keeps_its_points_times_and_marks(workspace: Workspace, tmp_path: Path) -> None:
    import pydicom

    from med_assets.deidentification.deidentify import Deidentifier
    from med_assets.dicom.discover import load
    from med_assets.dicom.encoded import to_bytes

    program = LumbarMr()
    write_series(tmp_path / "in", replace(identity(), patient_name="Doe^Jane"), anatomy="sacralised")
    (tmp_path / "safe").mkdir()
    for number, path in enumerate(sorted((tmp_path / "in").rglob("*.dcm"))):
        safe = Deidentifier(workspace.key, program.roi_vocabulary(workspace)).apply(load(path))
        (tmp_path / "safe" / f"{number}.dcm").write_bytes(to_bytes(safe))
    assert "SeriesDescription" not in pydicom.dcmread(tmp_path / "safe" / "0.dcm")
    facts = prepare(workspace, tmp_path / "safe", tmp_path / "out")
    assert (facts["levels"], facts["lstv"], facts["echo_time_ms"]) == (5, "sacralised", 100.0)
    assert PreparedCase.open(tmp_path / "out").synthetic
