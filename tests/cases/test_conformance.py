"""Public files and independent readers: pydicom's own test files by pydicom's values, and stacks of many orientations by dcm2niix."""

import copy
import subprocess
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from med_assets.dicom.discover import load
from med_assets.dicom.elements import quietly
from med_assets.dicom.geometry import Volume, read_ct_series, read_mr_series
from med_assets.dicom.rtdose import read_dose
from med_assets.dicom.seg import read_segments
from med_assets.dicom.tolerances import TiltPolicy
from med_assets.dicom.ultrasound import read_us_image
from med_assets.errors import CaseRejected
from tests.invented import Study, ct, mr, write

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def above(ds: Dataset, mm: float = 5.0) -> Dataset:
    """The same slice, `mm` along its normal."""
    other = copy.deepcopy(ds)
    cosines = np.array(ds.ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    other.ImagePositionPatient = [float(v) for v in np.array(ds.ImagePositionPatient, float) + mm * normal]
    return other


def at_corner(volume: Volume, ds: Dataset) -> tuple[int, ...]:
    """Index in the volume of the first pixel of a slice."""
    index = volume.geometry.to_index(np.array([ds.ImagePositionPatient], float))[0]
    assert np.abs(index - np.rint(index)).max() < 1e-3
    return tuple(np.rint(index).astype(int))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "examples_overlay.dcm",
    ],
)  # fmt: skip
def test_mr_files_of_all_syntaxes_have_the_values_that_pydicom_reads(name: str) -> None:
    ds = load(FILES / name)
    volume = read_mr_series([above(ds), ds])
    with quietly():  # pydicom warns of padding
        expected = pydicom.dcmread(FILES / name).pixel_array
    for plane in volume.array:
        np.testing.assert_array_equal(plane, expected)
    assert volume.geometry.spacing_mm[0] == pytest.approx(5)


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_ct_files_have_the_values_that_pydicom_reads_at_their_place(name: str) -> None:
    ds = load(FILES / name)
    volume = read_ct_series([above(ds), ds])
    original = pydicom.dcmread(FILES / name)
    expected = original.pixel_array * float(original.RescaleSlope) + float(original.RescaleIntercept)
    z, y, x = at_corner(volume, ds)
    flips = tuple(slice(None, None, -1 if at else 1) for at in (y, x))
    np.testing.assert_allclose(volume.array[z], expected[flips])


def test_a_real_ct_of_a_tilted_gantry_has_the_angle_of_its_header() -> None:
    ds = load(FILES / "J2K_pixelrep_mismatch.dcm")
    other = copy.deepcopy(ds)
    other.ImagePositionPatient = [*ds.ImagePositionPatient[:2], float(ds.ImagePositionPatient[2]) + 5]
    with pytest.raises(CaseRejected, match=r"tilted by 22\.0 degrees") as refused:
        read_ct_series([ds, other])
    assert refused.value.code == "gantry_tilt"
    found = read_ct_series([ds, other], tilt=TiltPolicy(resample=True))
    assert found.gantry_tilt_deg == pytest.approx(abs(float(ds.GantryDetectorTilt)), abs=0.05)


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"])
def test_dose_frames_have_the_values_that_pydicom_reads(name: str) -> None:
    ds = load(FILES / name)
    with pytest.raises(CaseRejected, match="RELATIVE") as refused:
        read_dose(ds)
    assert refused.value.code == "relative_dose"
    ds.DoseUnits, ds.DoseSummationType = "GY", "PLAN"
    found = read_dose(ds)
    expected = pydicom.dcmread(FILES / name).pixel_array * float(ds.DoseGridScaling)
    z, y, x = at_corner(found, ds)
    flips = tuple(slice(None, None, -1 if at else 1) for at in (z, y, x))
    np.testing.assert_allclose(found.array[flips], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("rtdose_1frame.dcm", "relative_dose", "RELATIVE"),
        ("liver_1frame.dcm", "missing_geometry", "got none and 3 groups"),
        ("liver_expb_1frame.dcm", "missing_geometry", "got none and 3 groups"),
        ("examples_ybr_color.dcm", "several_frames", "a clip"),
        ("examples_palette.dcm", "unusual_pixels", "8-bit grey or RGB"),
        ("MR_truncated.dcm", "truncated_file", "bytes end too early"),
        ("rtplan_truncated.dcm", "truncated_file", "bytes end too early"),
    ],
)
def test_files_that_are_no_volume_are_refused_with_what_they_lack(name: str, code: str, says: str) -> None:
    with pytest.raises(CaseRejected, match=says) as refused:
        read(FILES / name)
    assert refused.value.code == code


def read(path: Path) -> object:
    ds = load(path)
    return {"RTDOSE": read_dose, "SEG": read_segments, "US": read_us_image}[ds.Modality](ds)


ORIENTATIONS = {
    "head first supine": (1, 0, 0, 0, 1, 0),
    "head first prone": (-1, 0, 0, 0, -1, 0),
    "feet first supine": (-1, 0, 0, 0, 1, 0),
    "feet first prone": (1, 0, 0, 0, -1, 0),
    "decubitus left": (0, -1, 0, 1, 0, 0),
    "decubitus right": (0, 1, 0, -1, 0, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (1, 0, 0, 0, float(np.cos(0.3)), float(np.sin(0.3))),
}


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("reversed_order", [False, True])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_dcm2niix_finds_the_same_values_at_the_same_places(
    tmp_path: Path, name: str, reversed_order: bool, modality: str
) -> None:
    study = Study(f"niix {name} {reversed_order} {modality}")
    iop = ORIENTATIONS[name]
    slices = (ct if modality == "CT" else mr)(study, iop=iop, n=7, dz=4.0, px=2.5, size=(18, 14))
    if reversed_order:
        for number, one in enumerate(reversed(slices), 1):
            one.InstanceNumber = number
        slices.reverse()
    write(slices, tmp_path / "in")
    (tmp_path / "out").mkdir()
    command = [dcm2niix.bin, "-f", "image", "-z", "n", "-b", "n", "-o", str(tmp_path / "out"), str(tmp_path / "in")]
    subprocess.run(command, check=True, capture_output=True)
    image = nibabel.load(tmp_path / "out" / "image.nii")
    theirs = np.asarray(image.dataobj)
    ours = read_ct_series(slices) if modality == "CT" else read_mr_series(slices)
    nz, ny, nx = ours.array.shape
    voxels = np.stack(np.meshgrid(range(nx), range(ny), range(nz), indexing="ij"), axis=-1).reshape(-1, 3)
    places = nibabel.affines.apply_affine(ours.geometry.nifti_affine(), voxels)
    index = nibabel.affines.apply_affine(np.linalg.inv(image.affine), places)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    i, j, k = np.rint(index).astype(int).T
    np.testing.assert_array_equal(theirs[i, j, k], ours.array.transpose(2, 1, 0).ravel())
