"""Predicted levels come back where they were found, as DICOM and as NIfTI."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from med_assets.dicom.objects import stored
from med_assets.programs.lumbar_mr.export import map_geometry, write_prediction
from med_assets.programs.lumbar_mr.levels import LEVELS, ROI_NAMES
from med_assets.programs.lumbar_mr.maps import discs, map_points
from med_assets.programs.lumbar_mr.phantom import write_case
from med_assets.programs.lumbar_mr.predict import Prediction
from med_assets.programs.lumbar_mr.prepare import prepare_case, read_levels
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.scorer import summary
from med_assets.storage.files import write_json

torch.set_num_threads(1)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Raw DICOM, prepared case and a prediction that is right but for L5/S1, which it did not find."""
    write_case(tmp_path / "phantom", 3, shape=(9, 96, 96), spacing_mm=(5.0, 3.0, 3.0))
    raw, prepared, predicted = (tmp_path / name for name in ("raw", "prepared", "predicted"))
    for folder in (raw, prepared, predicted):
        folder.mkdir()
    for index, path in enumerate(sorted((tmp_path / "phantom").rglob("*.dcm"))):
        path.rename(raw / f"{index:04d}.dcm")
    prepare_case("case", raw, prepared, {})
    case = PreparedCase.open(prepared)
    classes = discs(map_points(case), 7)
    heats = np.stack([classes == 1 + index for index in range(5)]).astype(np.float32)
    none = np.zeros((0, *heats.shape), np.float32)
    found = Prediction(heats, none, (), none, {**case.levels, "l5_s1": None}, case.middle)
    np.save(predicted / "heats.npy", heats.astype(np.float16))
    np.save(predicted / "slice_heats.npy", none)
    write_json(predicted / "prediction.json", summary(case, found))
    return raw, prepared, predicted


def test_points_come_back_as_an_rtstruct_where_they_were_and_what_was_not_found_has_none(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    raw, prepared, predicted = folders
    written = write_prediction(raw, prepared, predicted, tmp_path / "out", "k" * 64)
    assert written[0].name == "predicted_levels.dcm"
    found = read_levels(pydicom.dcmread(written[0]))
    truth = read_levels(stored(raw)["RTSTRUCT"][0]).points
    assert set(found.points) == set(LEVELS) - {"l5_s1"}
    assert (found.anatomy, found.others, found.left_out) == ("unknown", 0, ())
    for level, point in found.points.items():
        assert np.abs(np.asarray(point) - truth[level]).max() < 0.01
    assert len(ROI_NAMES) == 5


def test_the_map_of_a_level_lies_around_its_point(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    raw, prepared, predicted = folders
    write_prediction(raw, prepared, predicted, tmp_path / "out", "k" * 64)
    image = nibabel.load(tmp_path / "out" / "l3_l4.nii.gz")
    inside = np.argwhere(np.asarray(image.dataobj) > 0.5)
    middle = image.affine @ [*inside.mean(axis=0), 1]
    truth = read_levels(stored(raw)["RTSTRUCT"][0]).points
    # NIfTI counts to the right and to the front; across the slices a map lies at the middle slice.
    assert np.abs(middle[1:3] - np.array([-1, 1]) * truth["l3_l4"][1:]).max() < 1.0
    case = PreparedCase.open(prepared)
    corner = map_geometry(case, 0).to_points(np.array([[0.0, -0.5, -0.5]]))
    assert corner == pytest.approx(case.geometry.to_points(np.array([[0.0, -0.5, -0.5]])))
