"""Image files that are no DICOM are predicted as the DICOM of the same image is, in the same place."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from med_assets.cli import stages
from med_assets.dicom.geometry import Geometry, Volume
from med_assets.programs.lumbar_mr.importer import sagittal
from med_assets.settings import Workspace
from tests.cases.test_to_predict import champion, files_of, phantoms, strip

IMAGE = {"lung_ct": "ct.nii.gz", "lumbar_mr": "series.nii.gz"}
"""What each program writes of the image that it predicted."""


def only(folder: Path, ending: str) -> Path:
    (found,) = folder.rglob(f"*{ending}")
    return found


@pytest.mark.parametrize("name", sorted(IMAGE))
def test_a_nifti_file_gives_what_the_dicom_of_it_gives(name: str, workspace: Workspace, tmp_path: Path) -> None:
    champion(workspace, name)
    (source,) = phantoms(tmp_path / "cases", name, 1, 5)
    (of_dicom,) = stages.predict_folder(workspace, name, strip(source, name), None, tmp_path / "dicom")
    (tmp_path / "nifti").mkdir()
    only(tmp_path / "dicom", IMAGE[name]).rename(tmp_path / "nifti" / "Name^Of^A^Person.nii.gz")
    (of_nifti,) = stages.predict_folder(workspace, name, tmp_path / "nifti", None, tmp_path / "out")
    assert of_nifti.reason == ""
    assert of_nifti.case_id != of_dicom.case_id
    assert of_nifti.measured == pytest.approx(dict(of_dicom.measured), nan_ok=True)
    for path in of_nifti.paths:
        assert b"Person" not in path.read_bytes()
    if name == "lung_ct":
        ours, theirs = (nibabel.load(only(tmp_path / folder, "predicted_target.nii.gz")) for folder in ("out", "dicom"))
        assert np.asarray(ours.dataobj).any()
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert np.allclose(ours.affine, theirs.affine, atol=1e-3)
    else:
        ours, theirs = (pydicom.dcmread(only(tmp_path / folder, "levels.dcm")) for folder in ("out", "dicom"))
        for one, other in zip(ours.ROIContourSequence, theirs.ROIContourSequence, strict=True):
            point, expected = (np.array(roi.ContourSequence[0].ContourData, float) for roi in (one, other))
            assert np.allclose(point, expected, atol=0.01)


def test_pictures_beside_dicom_are_each_a_case_and_one_that_is_broken_is_refused_alone(
    workspace: Workspace, tmp_path: Path
) -> None:
    name, folder = "breast_us", tmp_path / "cases"
    champion(workspace, name)
    (source,) = phantoms(folder, name, 1, 5)
    (dicom,) = files_of(strip(source, name))
    ds = pydicom.dcmread(dicom)
    (region,) = ds.SequenceOfUltrasoundRegions
    tissue = np.s_[
        region.RegionLocationMinY0 : region.RegionLocationMaxY1 + 1,
        region.RegionLocationMinX0 : region.RegionLocationMaxX1 + 1,
    ]
    Image.fromarray(ds.pixel_array[tissue]).save(folder / "one.PNG")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "notes.txt").write_text("no image")
    found = stages.predict_folder(workspace, name, folder, None, tmp_path / "out")
    assert sum(bool(one.paths) for one in found) == 2
    reasons = [one.reason for one in found if one.reason]
    assert any("expected a picture" in reason for reason in reasons), reasons
    assert any("DICOM" in reason for reason in reasons), reasons
    assert len(reasons) == 2
    masks = [
        np.asarray(Image.open(only(tmp_path / "out" / one.case_id, "predicted_lesion.png")))
        for one in found
        if one.paths
    ]
    of_picture, of_dicom = sorted(masks, key=np.size)
    assert np.array_equal(of_picture, of_dicom[tissue])


def test_a_volume_turned_to_sagittal_slices_keeps_every_voxel_at_its_place() -> None:
    angle = np.deg2rad(12)
    grid = Geometry(
        (3, 4, 5), (4.0, 0.5, 0.8), (10.0, -20.0, 30.0),
        ((0.0, float(-np.sin(angle)), float(np.cos(angle))), (0.0, float(np.cos(angle)), float(np.sin(angle))), (1.0, 0.0, 0.0)),
    )  # fmt: skip
    array = np.arange(60).reshape(3, 4, 5)
    turned = sagittal(Volume(array, grid))
    assert turned.array.shape == turned.geometry.shape == (5, 3, 4)
    for value in range(60):
        before, after = (np.argwhere(one == value) for one in (array, turned.array))
        assert np.allclose(grid.to_points(before), turned.geometry.to_points(after))
    assert np.linalg.det(np.array(turned.geometry.direction)) == pytest.approx(np.linalg.det(np.array(grid.direction)))
    assert json.dumps(turned.geometry.spacing_mm) == "[0.8, 4.0, 0.5]"
