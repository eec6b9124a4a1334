"""Spine phantoms are whole, deterministic, marked as synthetic, and their anatomies differ where they should."""

import numpy as np
import pydicom
import pytest

from med_assets.dicom.geometry import SAGITTAL, canonical, read_mr_series
from med_assets.dicom.rtstruct import read_points
from med_assets.dicom.write import is_synthetic
from med_assets.programs.lumbar_mr.phantom import ANATOMIES, LEVELS, spine, write_case

SHAPE, SPACING_MM = (7, 96, 96), (6.0, 2.8, 2.8)


def read(folder):
    datasets = [pydicom.dcmread(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    series = canonical(read_mr_series([ds for ds in datasets if ds.Modality == "MR"]), SAGITTAL)
    (found,) = (read_points(ds).points for ds in datasets if ds.Modality == "RTSTRUCT")
    return series, {point.name: point.position_mm for point in found}, datasets


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_points_lie_in_the_grid_from_head_to_feet_and_state_the_anatomy(tmp_path, anatomy):
    for seed in range(4):
        write_case(tmp_path / str(seed), seed, anatomy=anatomy, shape=SHAPE, spacing_mm=SPACING_MM)
        series, points, datasets = read(tmp_path / str(seed))
        assert all(is_synthetic(ds) for ds in datasets)
        assert sorted(points) == sorted([*LEVELS, f"LSTV {anatomy}"])
        np.testing.assert_array_equal(points[f"LSTV {anatomy}"], points["L5/S1"])
        at = series.geometry.to_index(np.array([points[name] for name in LEVELS]))
        assert (at >= 0).all()
        assert (at <= np.array(SHAPE) - 1).all()
        assert (np.diff(at[:, 1]) > 5).all()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_another_patient(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_case(tmp_path / name, seed, shape=SHAPE, spacing_mm=SPACING_MM)
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.dcm"))] for name in ("a", "b", "c")}
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]
    with pytest.raises(FileExistsError):
        write_case(tmp_path / "a", 1)


def test_the_canal_is_brighter_than_the_discs_and_bodies_in_front_of_it(tmp_path):
    write_case(tmp_path / "one", 4, shape=SHAPE, spacing_mm=SPACING_MM)
    series, points, _ = read(tmp_path / "one")
    _, y, x = (int(v) for v in np.rint(series.geometry.to_index(points["L3/L4"])[0]))
    row = series.array[SHAPE[0] // 2, y]
    assert row[x + 5 : x + 16].max() > 1.5 * row[x - 5 : x + 5].mean()


def test_what_tells_the_anatomies_apart_is_the_transition():
    def measured(anatomy):
        found = []
        for seed in range(20):
            pieces = {piece.name: piece for piece in spine(anatomy, np.random.default_rng(seed))}
            found.append((
                pieces["L5/S1"].size_mm[0], pieces["S1/S2"].size_mm[0],
                np.degrees(pieces["S1"].lean - pieces["L5"].lean),
            ))  # fmt: skip
        return np.array(found)

    normal, sacralised, lumbarised = (measured(anatomy) for anatomy in ANATOMIES)
    assert sacralised[:, 0].max() < normal[:, 0].min()
    assert lumbarised[:, 1].min() > normal[:, 1].max()
    assert sacralised[:, 2].max() < normal[:, 2].min()
    assert lumbarised[:, 2].max() < normal[:, 2].min()


def test_the_place_in_the_image_does_not_tell_the_level(tmp_path):
    heights = []
    for seed in range(6):
        write_case(tmp_path / str(seed), seed, shape=SHAPE, spacing_mm=SPACING_MM)
        series, points, _ = read(tmp_path / str(seed))
        heights.append([series.geometry.to_index(points[name])[0][1] * SPACING_MM[1] for name in LEVELS])
    # The spread of one level over cases is about the distance of two levels.
    assert np.ptp(heights, axis=0).max() > 25


def test_a_grid_without_room_for_the_lumbar_discs_and_an_unknown_anatomy_are_refused(tmp_path):
    with pytest.raises(ValueError, match="field of view that holds L1/L2 to L5/S1"):
        write_case(tmp_path / "small", 0, shape=(7, 40, 96), spacing_mm=SPACING_MM)
    with pytest.raises(ValueError, match="anatomies"):
        write_case(tmp_path / "other", 0, anatomy="odd")
    assert not list(tmp_path.iterdir())
