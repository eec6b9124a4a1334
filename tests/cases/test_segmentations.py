"""A segmentation lies where its frames lie, in a stack of any orientation and in any coding, as another reader places it too."""

import highdicom
import numpy as np
import pytest
from pydicom.dataset import Dataset

from med_assets.dicom.geometry import Volume, read_ct_series
from med_assets.dicom.seg import place, read_segments
from med_assets.dicom.segmentation_2d import read_segments_2d
from med_assets.errors import CaseRejected
from med_assets.settings import Workspace
from tests.invented import Study, ct, grid_points, ingest, segmentation_2d, uid, us, volume_seg, write

AXES = [np.eye(3)[axis] * sign for axis in range(3) for sign in (1, -1)]
ORIENTATIONS = [
    tuple(float(value) for value in (*row, *column)) for row in AXES for column in AXES if abs(row @ column) < 0.5
]
SIZE = (13, 11)
"""Rows and columns, of which no frame fills whole bytes."""


def stack(iop: tuple[float, ...] = (1, 0, 0, 0, 1, 0), n: int = 9) -> tuple[Study, list[Dataset]]:
    study = Study(f"seg {iop}")
    return study, ct(study, iop=iop, n=n, dz=6.0, px=5.0, size=SIZE)


def sparse(n: int = 9) -> list[tuple[str, np.ndarray]]:
    """Two overlapping segments on some slices, not the first nor the last, and one without a voxel."""
    values = np.random.default_rng(5).random((2, n, *SIZE)) < 0.3
    values[0, [0, 1, 4, 7, 8]] = False
    values[1, [0, 1, 2, 5, 8]] = False
    return [("lung tumor", values[0]), ("heart", values[1]), ("spleen", np.zeros((n, *SIZE), bool))]


def points_of(slices: list[Dataset], mask: np.ndarray) -> set[tuple[float, ...]]:
    """LPS positions of the voxels of a mask, from the headers of the slices alone."""
    found = []
    for one, plane in zip(slices, mask, strict=True):
        spacing = [float(value) for value in one.PixelSpacing]
        places = grid_points(
            [float(value) for value in one.ImageOrientationPatient],
            [float(value) for value in one.ImagePositionPatient],
            spacing,
            SIZE,
        )
        found += [tuple(np.round(point, 3)) for point in places[plane]]
    return set(found)


def placed_points(volume: Volume, mask: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(np.round(point, 3)) for point in volume.geometry.to_points(np.argwhere(mask))}


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("iop", ORIENTATIONS, ids=str)
def test_sparse_overlapping_and_empty_segments_lie_on_their_slices(iop: tuple[float, ...], kind: str) -> None:
    study, slices = stack(iop)
    masks = sparse()
    if kind == "LABELMAP":
        masks[0] = ("lung tumor", masks[0][1] & ~masks[1][1])
    seg = volume_seg(
        study, slices, masks, kind=kind, spacing=None, order=lambda n: np.random.default_rng(1).permutation(n)
    )
    volume = read_ct_series(slices)
    placed, agreement = place(read_segments(seg), volume.geometry)
    assert agreement.kind == "identical"
    assert {label: placed_points(volume, mask) for label, mask in placed.items()} == {
        label: points_of(slices, mask) for label, mask in masks
    }


@pytest.mark.parametrize("iop", [ORIENTATIONS[0], (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0, -1, 0, 1, 0, 0)])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_what_highdicom_writes_is_placed_as_highdicom_reads_it(iop: tuple[float, ...], kind: str) -> None:
    _, slices = stack(iop)
    for one in slices:
        one.PatientName = "Invented^Highdicom"
    mask = sparse()[0][1]
    described = highdicom.seg.SegmentDescription(
        1, "lung tumor", highdicom.sr.CodedConcept("108369006", "SCT", "Neoplasm"),
        highdicom.sr.CodedConcept("108369006", "SCT", "Neoplasm"), algorithm_type="MANUAL",
    )  # fmt: skip
    seg = highdicom.seg.Segmentation(
        slices, mask.astype(np.uint8), kind, [described], uid("hd", kind), 5, uid("hd", kind, 2), 1, "m", "m", "1", "1",
        **({"fractional_type": "OCCUPANCY"} if kind == "FRACTIONAL" else {}),
    )  # fmt: skip
    theirs = highdicom.seg.Segmentation.from_dataset(seg).get_volume(
        combine_segments=True, allow_missing_positions=True
    )
    voxels = np.argwhere(theirs.array)
    expected = {tuple(np.round((theirs.affine @ (*voxel, 1))[:3], 3)) for voxel in voxels}
    volume = read_ct_series(slices)
    placed, _ = place(read_segments(seg), volume.geometry)
    assert placed_points(volume, placed["lung tumor"]) == expected == points_of(slices, mask)


def test_a_probability_is_no_mask_and_the_voxels_are_counted() -> None:
    study, slices = stack()
    seg = volume_seg(study, slices, sparse()[:1], kind="FRACTIONAL")
    pixels = bytearray(seg.PixelData)
    pixels[3:6] = b"\x01\x80\xfe"
    seg.PixelData = bytes(pixels)
    with pytest.raises(CaseRejected, match="got 3 voxels between in a frame of segment 1") as refused:
        read_segments(seg)
    assert refused.value.code == "fractional_segmentation"
    del seg.MaximumFractionalValue
    with pytest.raises(CaseRejected, match="without MaximumFractionalValue"):
        read_segments(seg)


@pytest.mark.parametrize("declared", ["3", "1.5", "0", "999"])
def test_a_wrong_nominal_distance_of_frames_changes_nothing(declared: str) -> None:
    """Frames on neighbouring slices 6 mm apart: neither 3 mm nor 999 mm is their distance, whatever the file says."""
    study, slices = stack()
    masks = [("lung tumor", np.random.default_rng(2).random((9, *SIZE)) < 0.4)]
    volume = read_ct_series(slices)
    placed, _ = place(read_segments(volume_seg(study, slices, masks, spacing=declared)), volume.geometry)
    assert placed_points(volume, placed["lung tumor"]) == points_of(slices, masks[0][1])


@pytest.mark.parametrize(
    ("shift", "says"),
    [
        ((0, 0, 0.5), r"plane 1 of \d lies 0.5 mm from the nearest slice"),
        ((0.3, 0, 0), "up to 0.3 mm"),
        ((0, -5.0, 0), "up to 5 mm"),
        ((0, 0, 60.0), r"\d of its \d planes lie outside"),
    ],
)
def test_a_label_beside_its_image_is_refused_with_how_far(shift: tuple[float, float, float], says: str) -> None:
    study, slices = stack()
    seg = volume_seg(study, slices, sparse(), spacing=None)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        place_of = frame.PlanePositionSequence[0]
        place_of.ImagePositionPatient = [
            float(a) + b for a, b in zip(place_of.ImagePositionPatient, shift, strict=True)
        ]
    with pytest.raises(CaseRejected, match=says) as refused:
        place(read_segments(seg), read_ct_series(slices).geometry)
    assert refused.value.code == "grid_mismatch"


def test_frames_at_a_large_distance_cost_no_memory() -> None:
    study, slices = stack()
    seg = volume_seg(study, slices, sparse(), spacing="0.001")
    place_of = seg.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    place_of.ImagePositionPatient = [*list(place_of.ImagePositionPatient)[:2], "1000000"]
    assert len(read_segments(seg).planes.origins_mm) <= 9
    with pytest.raises(CaseRejected, match="outside"):
        place(read_segments(seg), read_ct_series(slices).geometry)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("iop", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)], ids=["sagittal", "coronal"])
def test_a_sparse_segmentation_of_another_plane_goes_through_intake(
    workspace: Workspace, iop: tuple[float, ...], kind: str
) -> None:
    study = Study("sparse")
    slices = ct(study, iop=iop, n=33, size=(41, 39))
    mask = np.zeros((33, 41, 39), bool)
    mask[[14, 15, 16, 18], 20:26, 13:20] = True
    write(
        [*slices, volume_seg(study, slices, [("lung tumor", mask)], kind=kind, spacing=None)],
        workspace.landing / "lung_ct" / "a",
    )
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["target_ml"] == pytest.approx(int(mask.sum()) * 0.125)
    assert facts["target_components"] == 2


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_mask_of_one_picture_is_the_same_in_every_coding(kind: str) -> None:
    study = Study("image")
    mask = np.random.default_rng(3).random(SIZE) < 0.5
    seg = segmentation_2d(study, us(study, np.zeros(SIZE, np.uint8)), mask)
    seg.SegmentationType = kind
    if kind != "BINARY":
        seg.BitsAllocated, seg.BitsStored, seg.HighBit = 8, 8, 7
        seg.MaximumFractionalValue = 200
        data = (mask * (200 if kind == "FRACTIONAL" else 1)).astype(np.uint8).tobytes()
        seg.PixelData = data + b"\0" * (len(data) % 2)
    (found,) = read_segments_2d(seg)
    assert found.label == "malignant"
    np.testing.assert_array_equal(found.mask, mask)
