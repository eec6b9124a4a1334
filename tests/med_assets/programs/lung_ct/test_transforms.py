"""What the network sees, held against MONAI reading the same volume from a NIfTI file, and the way back."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import zoom

from med_assets.dicom.geometry import Geometry
from med_assets.programs.lung_ct import transforms

SHAPE = (24, 44, 40)
GEOMETRY = Geometry(SHAPE, (3.0, 1.5, 2.0), (-50.0, -30.0, 100.0))
TILTED = Geometry(
    SHAPE,
    (3.0, 1.5, 2.0),
    (-50.0, -30.0, 100.0),
    ((0.0, -0.0998334, 0.9950042), (0.0, 0.9950042, 0.0998334), (1.0, 0.0, 0.0)),
)


@pytest.fixture(scope="module")
def ct() -> np.ndarray:
    """Air around a smooth textured body that is well inside, so that the crop with its margin takes something away."""
    rng = np.random.default_rng(1)
    volume = np.full(SHAPE, -1000.0, np.float32)
    volume[11:20, 16:40, 14:30] = 60 + 400 * zoom(rng.normal(size=(3, 6, 4)), (3, 4, 4), order=1)[:9, :24, :16]
    return np.rint(volume)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Boxes of three voxels or more, off the middle in each axis, so that no flip or swap goes unseen."""
    array = np.zeros(SHAPE, np.uint8)
    array[12:15, 18:24, 15:21] = 23
    array[15:19, 25:39, 24:29] = 115
    return array


def upstream(folder: Path, ct: np.ndarray, labels: np.ndarray, geometry: Geometry, spacing: tuple[float, ...]) -> dict:
    """VISTA3D's preprocessing as its train.json says it, reading NIfTI files."""
    from monai import transforms as mt

    for name, array in {"image": ct.astype(np.int16), "label": labels}.items():
        affine = geometry.affine()[:, [2, 1, 0, 3]] * np.array([[-1.0], [-1.0], [1.0], [1.0]])
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.T), affine), folder / f"{name}.nii.gz")
    keys = ["image", "label"]
    low, high = -963.8247715525971, 1053.678477684517
    pipeline = mt.Compose(
        [
            mt.LoadImaged(keys, ensure_channel_first=True),
            mt.CropForegroundd(keys, source_key="image", margin=10, allow_smaller=True),
            mt.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0, b_max=1, clip=True),
            mt.Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            mt.Spacingd(keys, pixdim=spacing, mode=["bilinear", "nearest"]),
        ]
    )
    return dict(pipeline({name: str(folder / f"{name}.nii.gz") for name in keys}))


# LoadImage makes a reader of every kind, one of which tells that it has no GPU decoder for DICOM.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
@pytest.mark.parametrize("geometry", [GEOMETRY, TILTED], ids=["axial", "tilted"])
def test_forward_equals_monai_reading_the_same_volume_from_a_file(
    tmp_path: Path, ct: np.ndarray, labels: np.ndarray, geometry: Geometry
) -> None:
    expected = upstream(tmp_path, ct, labels, geometry, (2.5, 2.0, 1.5))
    image, label = transforms.forward_pair(ct, labels, geometry, (2.5, 2.0, 1.5))
    assert image.shape == expected["image"].shape
    np.testing.assert_allclose(image.affine.numpy(), expected["image"].affine.numpy(), atol=1e-4)
    np.testing.assert_allclose(image.numpy(), expected["image"].numpy(), atol=1e-5)
    assert (label.numpy() == expected["label"].numpy()).mean() > 0.9999
    alone = transforms.forward(ct, geometry, (2.5, 2.0, 1.5))
    np.testing.assert_array_equal(alone.numpy(), image.numpy())


def test_the_image_is_cropped_scaled_and_turned_to_right_anterior_superior(ct: np.ndarray, labels: np.ndarray) -> None:
    image, label = transforms.forward_pair(ct, labels, GEOMETRY, (2.0, 1.5, 3.0))
    # x: 14-10 to 30+10 of 40; y: 16-10 to the edge of 44; z: 11-10 to the edge of 24.
    assert image.shape == label.shape == (1, 36, 38, 23)
    assert (float(image.min()), image.dtype, label.dtype) == (0.0, image.dtype, label.dtype)
    assert float(image.max()) <= 1.0
    cropped = labels[1:, 6:, 4:]
    np.testing.assert_array_equal(label[0].numpy(), cropped.T[::-1, ::-1])


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 3.0), (1.0, 1.0, 1.0)], ids=["same", "finer"])
def test_labels_come_back_to_the_scanner_s_grid_at_their_place(
    ct: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float]
) -> None:
    image, label = transforms.forward_pair(ct, labels, GEOMETRY, spacing)
    back = transforms.to_scanner_grid(label, image)
    assert back.dtype == np.uint8
    assert back.shape == SHAPE
    np.testing.assert_array_equal(back, labels)


def test_labels_from_a_coarser_grid_lie_where_they_were(ct: np.ndarray, labels: np.ndarray) -> None:
    image, label = transforms.forward_pair(ct, labels, GEOMETRY, (3.0, 3.0, 3.0))
    back = transforms.to_scanner_grid(label.numpy()[0], image)
    for value in (23, 115):
        ours, theirs = np.argwhere(back == value), np.argwhere(labels == value)
        np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.6)
        both = ((back == value) & (labels == value)).sum()
        assert 2 * both / (len(ours) + len(theirs)) > 0.75


def test_probabilities_come_back_interpolated_and_are_0_outside_of_the_crop(ct: np.ndarray, labels: np.ndarray) -> None:
    image, label = transforms.forward_pair(ct, labels, GEOMETRY, (3.0, 3.0, 3.0))
    back = transforms.to_scanner_grid((label == 115).float(), image)
    assert back.dtype == np.float32
    assert np.unique(back.round(3)).size > 0
    assert ((back > 0.01) & (back < 0.99)).any()
    assert not back[:1].any()


def test_a_volume_without_tissue_and_values_on_another_grid_are_refused(ct: np.ndarray) -> None:
    with pytest.raises(ValueError, match="got none: is this a CT in HU"):
        transforms.forward(np.full(SHAPE, -1000.0), GEOMETRY, (3.0, 3.0, 3.0))
    image = transforms.forward(ct, GEOMETRY, (3.0, 3.0, 3.0))
    with pytest.raises(ValueError, match="expected values of shape"):
        transforms.to_scanner_grid(np.zeros((3, 3, 3)), image)
