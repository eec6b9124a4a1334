"""A predicted mask written for other tools comes back where it was predicted."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from med_assets.dicom.geometry import Geometry
from med_assets.dicom.seg import place, read_segments
from med_assets.programs.lung_ct.export import write_prediction
from med_assets.programs.lung_ct.kept import PREDICTION
from med_assets.programs.lung_ct.prepare import prepare_case
from med_assets.programs.lung_ct.prepared import PreparedCase
from tests.med_assets.programs.lung_ct.builders import write_case


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, PreparedCase, Path, np.ndarray]:
    """Folder of the export, the prepared case, its raw DICOM, and the exported mask."""
    sent = write_case(tmp_path / "sent")
    raw, prepared, kept = (tmp_path / name for name in ("raw", "prepared", "kept"))
    for folder in (raw, prepared, kept):
        folder.mkdir()
    for number, path in enumerate(sorted(path for path in sent.rglob("*.dcm"))):
        path.rename(raw / f"{number:04d}.dcm")
    prepare_case("c0", raw, prepared, key=b"key", spacing_mm=(6.0, 6.0, 6.0), target=23, settings={})
    case = PreparedCase.open(prepared)
    mask = np.asarray(case.truth) == 23
    mask[:, :, :-2] = mask[:, :, 2:]
    np.save(kept / PREDICTION, np.packbits(mask))
    write_prediction(raw, prepared, kept, tmp_path / "out", "checkpoint/0123456789abcdef")
    return tmp_path / "out", case, raw, mask


def test_the_seg_refers_to_the_ct_and_lies_where_it_was_predicted(
    exported: tuple[Path, PreparedCase, Path, np.ndarray],
) -> None:
    out, case, raw, mask = exported
    ds = pydicom.dcmread(out / "predicted_target.dcm")
    masks, agreement = place(read_segments(ds), case.geometry)
    assert agreement.kind == "identical"
    np.testing.assert_array_equal(masks["lung tumor"], mask)
    ct = next(one for one in (pydicom.dcmread(path) for path in raw.glob("*.dcm")) if one.Modality == "CT")
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == ct.SeriesInstanceUID
    assert (ds.PatientID, ds.FrameOfReferenceUID) == (ct.PatientID, ct.FrameOfReferenceUID)
    assert ds.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert "PREDICTED" in ds.SeriesDescription


def test_the_nifti_mask_has_the_voxels_at_the_same_places(
    exported: tuple[Path, PreparedCase, Path, np.ndarray],
) -> None:
    out, case, _, mask = exported
    image = nibabel.load(out / "predicted_target.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask.T)
    index = tuple(int(value) for value in np.argwhere(mask)[0])
    x, y, z = Geometry.to_points(case.geometry, np.array([index]))[0]
    np.testing.assert_allclose(image.affine @ [*index[::-1], 1], [-x, -y, z, 1], atol=1e-4)
