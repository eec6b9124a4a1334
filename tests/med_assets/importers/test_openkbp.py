"""OpenKBP patients become whole DICOM-RT cases, the right way round, or are skipped with a reason."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from med_assets.dicom.geometry import read_ct_series
from med_assets.dicom.rtdose import read_dose
from med_assets.dicom.rtplan import read_plan
from med_assets.dicom.rtstruct import rasterise, read_rois
from med_assets.landing.importing.report import ImportReport
from med_assets.programs.rt_dose.importer import GRID, import_patients, read_patient


def write_sparse(path: Path, array: np.ndarray) -> None:
    """A CSV in the challenge's layout: flat C-order index and value, or index alone for a mask."""
    index = np.flatnonzero(array)
    values = pd.Series(np.nan if array.dtype == bool else array.ravel()[index], index=index, name="data")
    values.to_csv(path)


def write_boxes(folder: Path) -> Path:
    """Write the files of a patient of a few boxes into a folder that is there, which is returned."""
    ct, dose, target = np.zeros(GRID), np.zeros(GRID), np.zeros(GRID, bool)
    ct[40:80, 50:90, 60:70] = 1060
    dose[45:60, 55:80, 62:68] = 63.217
    target[48:58, 60:70, 63:66] = True
    write_sparse(folder / "ct.csv", ct)
    write_sparse(folder / "dose.csv", dose)
    write_sparse(folder / "possible_dose_mask.csv", ct > 0)
    write_sparse(folder / "PTV63.csv", target)
    (folder / "voxel_dimensions.csv").write_text("3.906\n3.907\n2.5\n")
    return folder


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a patient, written once; copy them, never change them."""
    return write_boxes(tmp_path_factory.mktemp("patient"))


def challenge(folder: Path, patient: Path) -> Path:
    """A challenge folder with two training patients and one for validation."""
    for name in ("train-pats/pt_1", "train-pats/pt_2", "validation-pats/pt_201"):
        shutil.copytree(patient, folder / name)
    return folder


@pytest.fixture
def source(patient: Path, tmp_path: Path) -> Path:
    return challenge(tmp_path / "source", patient)


MISSING = ("ct.csv", "dose.csv", "possible_dose_mask.csv", "voxel_dimensions.csv")
UNUSABLE = (
    ("ct.csv", ",data\n12,7.0\n2097152,7.0\n", "unreadable_csv"),
    ("ct.csv", ",data\n12,-7.0\n", "unreadable_csv"),
    ("ct.csv", ",data\n12,65536.0\n", "unreadable_csv"),
    ("ct.csv", ",data\n12,7.0\n12,8.0\n", "unreadable_csv"),
    ("dose.csv", ",data\n12,\n", "unreadable_csv"),
    ("dose.csv", ",data\n12,abc\n", "unreadable_csv"),
    ("dose.csv", "", "unreadable_csv"),
    ("dose.csv", "12\n7\n", "unreadable_csv"),
    ("dose.csv", "one line", "unreadable_csv"),
    ("dose.csv", ",data,more\n12,7.0,1\n", "unreadable_csv"),
    ("dose.csv", ",data\n12,7.0,1\n", "unreadable_csv"),
    ("voxel_dimensions.csv", "3.9\n3.9\n", "inconsistent_geometry"),
    ("voxel_dimensions.csv", "3.9\n3.9\n0\n", "inconsistent_geometry"),
    ("voxel_dimensions.csv", "3.9\nwide\n2\n", "unreadable_csv"),
)
"""A file, what it has in place of its content, and the reason for which its patient is skipped."""

BROKEN = {
    **{f"pt_{number}": (file, None, "missing_file") for number, file in enumerate(MISSING, 10)},
    **{f"pt_{number}": each for number, each in enumerate(UNUSABLE, 20)},
    "pt_40": ("PTV63.csv", None, "no_target"),
}
"""Training patients of which one file is missing or unusable."""


@dataclass(frozen=True)
class Imported:
    """What came of a folder with three patients and, between them, all that are broken; it is imported once for all tests."""

    report: ImportReport
    folder: Path


@pytest.fixture(scope="module")
def imported(patient: Path, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    source = challenge(tmp_path_factory.mktemp("openkbp") / "source", patient)
    for name, (file, text, _) in BROKEN.items():
        shutil.copytree(patient, source / "train-pats" / name)
        path = source / "train-pats" / name / file
        path.unlink() if text is None else path.write_text(text)
    folder = tmp_path_factory.mktemp("openkbp") / "dicom"
    return Imported(import_patients(source, folder), folder)


def read(folder: Path):
    """CT, dose, plan, masks by ROI name and all datasets of an imported case."""
    ct_files = [pydicom.dcmread(path) for path in sorted((folder / "CT").iterdir())]
    structures, plan, dose = (pydicom.dcmread(folder / name) for name in ("RS.dcm", "RP.dcm", "RD.dcm"))
    ct = read_ct_series(ct_files)
    masks = {roi.name: rasterise(roi, ct.geometry) for roi in read_rois(structures)}
    return ct, read_dose(dose), read_plan(plan), masks, [*ct_files, structures, plan, dose]


def test_every_patient_of_both_splits_is_imported_and_carries_its_split(imported: Imported) -> None:
    assert imported.report.imported == ("train_pt_1", "train_pt_2", "validation_pt_201")
    assert imported.report.skipped.keys() == {f"train_{name}" for name in BROKEN}
    for name, split in (("train_pt_1", "train"), ("validation_pt_201", "validation")):
        datasets = read(imported.folder / name)[4]
        assert {(ds.ClinicalTrialProtocolID, ds.ClinicalTrialSiteID) for ds in datasets} == {("OpenKBP", split)}


def test_arrays_turn_to_superior_posterior_left_and_ct_to_hu(imported: Imported) -> None:
    ct, dose, plan, masks, _ = read(imported.folder / "train_pt_1")
    assert ct.geometry.spacing_mm == (2.5, 3.906, 3.907)
    expected = np.full(GRID, -1024.0)
    expected[58:68, 40:80, 50:90] = 36
    np.testing.assert_array_equal(ct.array, expected)
    np.testing.assert_allclose(dose.array[60:66, 45:60, 55:80], 63.217, atol=5e-4)  # 16 bit
    assert (plan.prescription_gy, plan.target_prescriptions) == (63.0, ((1, 63.0),))
    np.testing.assert_array_equal(masks["possible_dose_mask"], expected > 0)


def test_metal_above_the_usual_range_keeps_its_value(source):
    with (source / "train-pats" / "pt_1" / "ct.csv").open("a") as stream:
        stream.write("5,28036.0\n")
    assert read_patient(source / "train-pats" / "pt_1").ct_hu.array.max() == 28036 - 1024


@pytest.mark.parametrize("name", BROKEN)
def test_a_patient_with_a_file_that_is_missing_or_unusable_is_skipped_with_the_reason(
    imported: Imported, name: str
) -> None:
    file, _, code = BROKEN[name]
    reason = imported.report.skipped[f"train_{name}"]
    assert reason.split(":")[0] == code
    if code == "missing_file":
        assert reason.startswith(f"missing_file: expected {file}")
    assert not (imported.folder / f"train_{name}").exists()


def test_nothing_is_written_of_a_patient_that_is_skipped(imported: Imported) -> None:
    assert sorted(path.name for path in imported.folder.glob("[!.]*")) == list(imported.report.imported)


def test_importing_again_leaves_what_is_there_and_clears_what_a_crash_left(source, tmp_path):
    (tmp_path / "dicom" / ".train_pt_1.part").mkdir(parents=True)
    (tmp_path / "dicom" / ".train_pt_1.part" / "half.dcm").write_bytes(b"half")
    import_patients(source, tmp_path / "dicom", ["pt_1"])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "dicom").rglob("*")}
    report = import_patients(source, tmp_path / "dicom", ["pt_1", "pt_77"])
    assert report.existing == ("train_pt_1",)
    assert report.skipped == {"pt_77": "no such patient in the source folder"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dicom").rglob("*")} == stamps
    assert [path.name for path in (tmp_path / "dicom").glob("[!.]*")] == ["train_pt_1"]


@pytest.fixture(scope="module")
def real_source(tmp_path_factory, real_data):
    """Two real patients, unpacked into the challenge's layout."""
    folder = tmp_path_factory.mktemp("openkbp")
    subprocess.run([sys.executable, str(real_data / "openkbp" / "unpack"), str(folder), "pt_2", "pt_201"], check=True)
    return folder


@pytest.mark.real_data
def test_real_patients_lie_the_right_way_round_with_plausible_hu(real_source):
    for folder in ("train-pats/pt_2", "validation-pats/pt_201"):
        patient = read_patient(real_source / folder)
        centre = {
            name: patient.ct_hu.geometry.to_points(np.argwhere(mask).mean(axis=0))[0]
            for name, mask in patient.masks.items()
        }
        assert centre["RightParotid"][0] < centre["SpinalCord"][0] < centre["LeftParotid"][0]
        assert centre["Mandible"][1] < centre["SpinalCord"][1]
        assert centre["Brainstem"][2] > centre["SpinalCord"][2]
        hu = {name: np.median(patient.ct_hu.array[mask]) for name, mask in patient.masks.items()}
        assert -20 < hu["Brainstem"] < 60
        assert hu["Mandible"] > 300


@pytest.mark.real_data
@pytest.mark.slow
def test_real_patients_come_back_as_they_were(real_source, tmp_path):
    import_patients(real_source, tmp_path)
    for case, folder in (("train_pt_2", "train-pats/pt_2"), ("validation_pt_201", "validation-pats/pt_201")):
        before = read_patient(real_source / folder)
        ct, dose, plan, masks, _ = read(tmp_path / case)
        np.testing.assert_array_equal(ct.array, before.ct_hu.array)
        assert ct.geometry.spacing_mm == before.ct_hu.geometry.spacing_mm
        assert dose.geometry.same_grid(ct.geometry)
        assert np.abs(dose.array - before.dose_gy.array).max() <= 6.5e-4  # half a step of 16 bit
        assert plan.prescription_gy == 70.0
        assert list(masks) == list(before.masks)
        for name, mask in before.masks.items():
            np.testing.assert_array_equal(masks[name], mask, err_msg=name)
