"""Segmentations survive writing, de-identification and reading; labels that lie elsewhere than the image are refused."""

import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import identifying_values, residual_phi
from med_assets.dicom.discover import describe, scan
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.geometry import Geometry, Planes, Volume, read_ct_series
from med_assets.dicom.seg import Segment, Segments, agreement, place, read_segments
from med_assets.dicom.seg_write import write_seg
from med_assets.dicom.write import Identity, derived_uid, is_synthetic, write_ct
from med_assets.errors import CaseRejected
from med_assets.intake.contents import content_hash

KEY = b"a key of the tests, thirty-two b"
VOCABULARY = ("lung tumor", "Heart", "left lung upper lobe")
IDENTITY = Identity(
    "MRN778899", derived_uid("study"), derived_uid("frame"), patient_name="Quimby^Zelda", study_date="20210412"
)
TURN = np.deg2rad(7)
TILTED = (
    (0.0, -float(np.sin(TURN)), float(np.cos(TURN))),
    (0.0, float(np.cos(TURN)), float(np.sin(TURN))),
    (1.0, 0.0, 0.0),
)
GRIDS = {
    "axial": Geometry((7, 9, 11), (2.5, 0.7, 0.8), (-3.3, 12.25, -742.123456789)),
    "oblique": Geometry((6, 8, 10), (3.0, 0.9, 0.9), (10.0, -20.0, 30.0), TILTED),
}


def ct_of(folder, geometry, **identity):
    """A CT series on the grid, as datasets without pixels."""
    hu = np.zeros(geometry.shape, np.float32)
    write_ct(folder, Volume(hu, geometry), replace(IDENTITY, **identity), IDENTITY.uid("CT series"))
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def planes_of(geometry, declared_mm=None):
    """The planes of a label that has a frame on each slice of a grid."""
    origins = geometry.to_points(np.array([(z, 0, 0) for z in range(geometry.shape[0])]))
    return Planes(origins, np.array(geometry.direction), geometry.spacing_mm[1:], geometry.shape[1:], declared_mm)


def boxes(shape):
    """Three masks: a tumour inside the grid, an overlapping one of an unknown name, and an empty one."""
    tumour, other = np.zeros(shape, bool), np.zeros(shape, bool)
    tumour[2:4, 1:5, 3:6] = True
    other[3:5, 4:7, 5:9] = True
    return {"lung tumor": tumour, "seen by Dr Quimby": other, "Heart": np.zeros(shape, bool)}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "names", [("lung tumor",), ("lung tumor", "Heart"), ("lung tumor", "seen by Dr Quimby", "Heart"), ("Heart",)]
)
def test_masks_labels_and_grid_come_back_as_they_were(tmp_path, grid, names):
    geometry = GRIDS[grid]
    masks = {name: boxes(geometry.shape)[name] for name in names}
    source = ct_of(tmp_path / "CT", geometry)
    write_seg(tmp_path / "seg.dcm", masks, geometry, source)
    found = read_segments(pydicom.dcmread(tmp_path / "seg.dcm"))
    assert [(one.number, one.label) for one in found.segments] == list(enumerate(names, start=1))
    placed, agreed = place(found, geometry)
    for name in names:
        np.testing.assert_array_equal(placed[name], masks[name])
    assert agreed.kind == "identical"
    assert agreement(read_ct_series(source).geometry, found.planes).kind == "identical"
    assert set(found.source_sops) == {ds.SOPInstanceUID for ds in source}


def test_the_same_segments_come_back_from_what_intake_stores(tmp_path):
    geometry = GRIDS["axial"]
    write_seg(tmp_path / "seg.dcm", boxes(geometry.shape), geometry, ct_of(tmp_path / "CT", geometry))
    original = pydicom.dcmread(tmp_path / "seg.dcm")
    cleaned = Deidentifier(KEY, VOCABULARY).apply(original)
    known = identifying_values(original) | {"Quimby"}
    assert residual_phi([cleaned], known=known, roi_vocabulary=VOCABULARY) == []
    stored = pydicom.dcmread(BytesIO(to_bytes(cleaned)))
    found = read_segments(stored)
    assert [one.label for one in found.segments] == ["lung tumor", "UNRECOGNISED_1", "Heart"]
    for placed, mask in zip(place(found, geometry)[0].values(), boxes(geometry.shape).values(), strict=True):
        np.testing.assert_array_equal(placed, mask)
    np.testing.assert_array_equal(found.planes.origins_mm, read_segments(original).planes.origins_mm)
    assert found.source_sops == tuple(map(Deidentifier(KEY).uid, read_segments(original).source_sops))
    coded = [one.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for one in stored.SegmentSequence]
    assert coded[0] in ("Neoplasm", "Tumor")
    assert coded[2].startswith("Heart")


def test_a_labelmap_reads_like_a_binary_segmentation_also_after_deidentification(tmp_path):
    geometry = GRIDS["axial"]
    source = ct_of(tmp_path / "CT", geometry)
    masks = {name: mask for name, mask in boxes(geometry.shape).items() if name != "seen by Dr Quimby"}
    write_seg(tmp_path / "seg.dcm", masks, geometry, source)
    binary = pydicom.dcmread(tmp_path / "seg.dcm")
    described = [highdicom.seg.SegmentDescription.from_dataset(one) for one in binary.SegmentSequence]
    labels = np.where(masks["lung tumor"], 1, 0).astype(np.uint8)
    labelmap = highdicom.seg.Segmentation(
        source, labels, "LABELMAP", described, derived_uid("a"), 5, derived_uid("b"), 1, "m", "m", "1", "1",
        omit_empty_frames=True,
    )  # fmt: skip
    for ds in (labelmap, pydicom.dcmread(BytesIO(to_bytes(Deidentifier(KEY, VOCABULARY).apply(labelmap))))):
        placed, found = place(read_segments(ds), geometry)
        assert found.kind == "identical"
        np.testing.assert_array_equal(placed["lung tumor"], masks["lung tumor"])
        assert not placed["Heart"].any()
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"


def test_a_prediction_goes_back_to_the_clinic_as_a_segmentation_of_its_series(tmp_path):
    geometry = GRIDS["oblique"]
    source = ct_of(tmp_path / "CT", geometry)
    tumour = boxes(geometry.shape)["lung tumor"]
    write_seg(tmp_path / "a.dcm", {"lung tumor": tumour}, geometry, source, made_by="foundation-1a2b3c")
    write_seg(tmp_path / "b.dcm", {"lung tumor": tumour}, geometry, source, made_by="foundation-1a2b3c")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    volume = seg.get_volume(combine_segments=True)
    voxels = np.argwhere(volume.array)
    theirs = np.c_[voxels, np.ones(len(voxels))] @ volume.affine.T
    back = np.rint(geometry.to_index(theirs[:, :3]))
    np.testing.assert_allclose(geometry.to_points(back), theirs[:, :3], atol=1e-6)
    assert {tuple(one) for one in back} == {tuple(one) for one in np.argwhere(tumour)}
    assert (seg.PatientID, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (
        "MRN778899", IDENTITY.study_uid, IDENTITY.frame_of_reference_uid
    )  # fmt: skip
    assert (seg.ContentDate, seg.SegmentSequence[0].SegmentAlgorithmType) == ("20210412", "AUTOMATIC")
    assert seg.SegmentSequence[0].SegmentAlgorithmName == "foundation-1a2b3c"
    assert "NOT FOR CLINICAL USE" in seg.SeriesDescription
    write_seg(tmp_path / "c.dcm", {"lung tumor": ~tumour}, geometry, source, made_by="foundation-1a2b3c")
    other = pydicom.dcmread(tmp_path / "c.dcm")
    assert (other.SeriesInstanceUID, other.SOPInstanceUID == seg.SOPInstanceUID) == (seg.SeriesInstanceUID, False)


def test_the_log_names_no_original(tmp_path, caplog):
    geometry = GRIDS["axial"]
    source = ct_of(tmp_path / "CT", geometry)
    with caplog.at_level("DEBUG"):
        write_seg(tmp_path / "seg.dcm", boxes(geometry.shape), geometry, source)
    assert source[0].SOPInstanceUID not in caplog.text


def test_synthetic_masks_are_told_from_real_ones(tmp_path):
    geometry = GRIDS["axial"]
    source = ct_of(tmp_path / "CT", geometry)
    for synthetic in (True, False):
        write_seg(tmp_path / "seg.dcm", boxes(geometry.shape), geometry, source, synthetic=synthetic)
        ds = pydicom.dcmread(tmp_path / "seg.dcm")
        assert is_synthetic(ds) is synthetic
        assert is_synthetic(Deidentifier(KEY).apply(ds)) is synthetic


def test_masks_off_the_grid_and_labels_too_long_for_dicom_are_refused(tmp_path):
    geometry = GRIDS["axial"]
    source = ct_of(tmp_path / "CT", geometry)
    for masks in ({"a": np.zeros((1, 2, 3))}, {"a" * 65: np.zeros(geometry.shape)}, {}):
        with pytest.raises(ValueError, match="expected"):
            write_seg(tmp_path / "seg.dcm", masks, geometry, source)
    sheared = replace(geometry, direction=((0.0, 0.1, 0.995), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="sheared"):
        write_seg(tmp_path / "seg.dcm", boxes(geometry.shape), sheared, source)


def test_a_segmentation_names_the_images_that_it_belongs_to(tmp_path):
    geometry = GRIDS["axial"]
    source = ct_of(tmp_path / "CT", geometry)
    write_seg(tmp_path / "seg.dcm", boxes(geometry.shape), geometry, source)
    (found,) = [one for one in scan(tmp_path).instances if one.modality == "SEG"]
    images = {ds.SOPInstanceUID for ds in source}
    assert set(found.referenced_sops) == images
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    for keyword in ("ReferencedSeriesSequence", "SourceImageSequence"):
        if keyword in ds:
            del ds[keyword]
    named_by_frames = set(describe(ds).referenced_sops)
    assert named_by_frames
    assert named_by_frames <= images
    source[0].SourceImageSequence = ds.SharedFunctionalGroupsSequence
    assert describe(source[0]).referenced_sops == ()


def test_the_content_hash_sees_pixels_places_and_segments_of_each_frame(tmp_path):
    geometry = GRIDS["axial"]
    source = ct_of(tmp_path / "CT", geometry)
    tumour = boxes(geometry.shape)["lung tumor"]

    def hash_of(masks, grid=geometry, change=lambda ds: None):
        write_seg(tmp_path / "seg.dcm", masks, grid, source)
        ds = pydicom.dcmread(tmp_path / "seg.dcm")
        change(ds)
        return content_hash([*source, ds])

    moved = replace(geometry, origin_mm=(-3.3, 12.25, -737.0))
    empty = np.zeros_like(tumour)

    def rename(ds):
        ds.SOPInstanceUID, ds.PatientID = "1.2.3", "another"

    first = hash_of({"a": tumour})
    assert first == hash_of({"a": tumour}, change=rename)
    assert len({first, hash_of({"a": np.roll(tumour, 1, 1)}), hash_of({"a": tumour}, moved)}) == 3
    assert hash_of({"a": tumour, "b": empty}) != hash_of({"a": empty, "b": tumour})


@pytest.fixture
def written(tmp_path) -> Dataset:
    """A segmentation of one tumour, to spoil."""
    geometry = GRIDS["axial"]
    write_seg(tmp_path / "seg.dcm", boxes(geometry.shape), geometry, ct_of(tmp_path / "CT", geometry))
    return pydicom.dcmread(tmp_path / "seg.dcm")


def spoil(ds: Dataset, how: str) -> None:
    frame = ds.PerFrameFunctionalGroupsSequence[1]
    match how:
        case "modality":
            ds.Modality = "CT"
        case "fractional":
            ds.SegmentationType = "FRACTIONAL"
        case "no segments":
            ds.SegmentSequence = []
        case "number twice":
            ds.SegmentSequence[1].SegmentNumber = 1
        case "unknown segment":
            frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9
        case "no position":
            del frame.PlanePositionSequence
        case "frames":
            ds.NumberOfFrames += 1
        case "between":
            frame.PlanePositionSequence[0].ImagePositionPatient[2] += 1.1
        case "shifted":
            frame.PlanePositionSequence[0].ImagePositionPatient[0] += 1.1
        case "turned":
            frame.PlaneOrientationSequence = [pydicom.Dataset()]
            frame.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
        case "cut":
            ds.PixelData = ds.PixelData[:8]
        case "stripped":
            del ds.PixelData
        case "no rows":
            ds.Rows = 0
        case "no columns":
            ds.Columns = 0


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("modality", "wrong_modality"), ("fractional", "fractional_segmentation"), ("no segments", "missing_segments"),
        ("number twice", "duplicate_segment"), ("unknown segment", "missing_segments"),
        ("no position", "missing_geometry"), ("frames", "missing_geometry"), ("between", "grid_mismatch"),
        ("shifted", "grid_mismatch"), ("turned", "inconsistent_geometry"), ("cut", "truncated_file"),
        ("stripped", "truncated_file"), ("no rows", "undecodable_pixels"), ("no columns", "undecodable_pixels"),
    ],
)  # fmt: skip
def test_a_segmentation_that_can_not_be_placed_is_refused_with_a_code(written, how, code):
    spoil(written, how)
    with pytest.raises(CaseRejected) as caught:
        place(read_segments(written), GRIDS["axial"])
    assert caught.value.code == code


def test_a_label_with_its_own_slice_spacing_is_no_label_of_the_image(tmp_path):
    """Of slices 5 mm apart, as the file says, each lies on an image of 2.5 mm, but what is between them is unknown."""
    geometry = GRIDS["axial"]
    coarse = replace(geometry, shape=(3, 9, 11), spacing_mm=(5.0, 0.7, 0.8))
    write_seg(tmp_path / "seg.dcm", {"a": np.ones(coarse.shape, bool)}, coarse, ct_of(tmp_path / "CT", geometry))
    with pytest.raises(CaseRejected, match=r"slices are 5 mm apart and the image's 2\.5 mm") as caught:
        place(read_segments(pydicom.dcmread(tmp_path / "seg.dcm")), geometry)
    assert caught.value.code == "grid_mismatch"


def test_frames_without_slice_spacing_land_on_the_slices_of_the_image(written):
    """As other software writes them: only slices with voxels, here two of them, and no SpacingBetweenSlices."""
    geometry = GRIDS["axial"]
    measures = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices
    shown = np.unpackbits(np.frombuffer(written.PixelData, np.uint8), bitorder="little")
    size = written.Rows * written.Columns
    frames = list(written.PerFrameFunctionalGroupsSequence)
    heights = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in frames]
    slices = list(np.rint((np.array(heights, float) - geometry.origin_mm[2]) / 2.5))
    first, third = slices.index(0), slices.index(3)
    for picked in ([first, third], [third], [third, first]):
        written.PerFrameFunctionalGroupsSequence = [frames[one] for one in picked]
        written.NumberOfFrames = len(picked)
        bits = np.concatenate([shown[one * size : (one + 1) * size] for one in picked])
        written.PixelData = np.packbits(bits, bitorder="little").tobytes()
        found = read_segments(written)
        assert found.planes.declared_mm is None
        masks, agreed = place(found, geometry)
        assert agreed.kind == "identical"
        expected = boxes(geometry.shape)["lung tumor"]
        np.testing.assert_array_equal(masks["lung tumor"][3], expected[3])
        assert masks["lung tumor"].sum() == expected[3].sum()


IMAGE = Geometry((48, 512, 512), (5.0, 0.5703125, 0.5703125), (-146.0, -325.0, -777.5))


@pytest.mark.parametrize(
    ("label", "kind", "says"),
    [
        (IMAGE, "identical", "lies on the image's grid"),
        (replace(IMAGE, shape=(9, 512, 512), origin_mm=(-146.0, -325.0, -727.5)), "identical", "9 slices of 48"),
        (replace(IMAGE, origin_mm=(-146.00001, -325.0, -777.5)), "float_noise", "noise of 1e-05 mm"),
        (replace(IMAGE, spacing_mm=(5.0, 0.57031, 0.57031)), "float_noise", "noise of 0.0013 mm"),
        (replace(IMAGE, origin_mm=(-146.05, -325.0, -777.5)), "float_noise", "noise of 0.05 mm"),
        (replace(IMAGE, origin_mm=(-146.06, -325.0, -777.5)), "mismatch", "up to 0.06 mm (0.11 voxels)"),
        (replace(IMAGE, spacing_mm=(5.0, 0.5711, 0.5711)), "mismatch", "up to 0.4"),
        (replace(IMAGE, spacing_mm=(2.5, 0.5703125, 0.5703125)), "mismatch", "plane 2 of 48 lies 2.5 mm"),
        (replace(IMAGE, shape=(48, 256, 256)), "mismatch", "256 by 256"),
        (replace(IMAGE, shape=(50, 512, 512), origin_mm=(-146.0, -325.0, -782.5)), "mismatch", "2 of its 50 planes lie outside"),
        (replace(IMAGE, shape=(1, 512, 512), spacing_mm=(3.0, 0.5703125, 0.5703125)), "identical", "1 slices of 48"),
    ],
)  # fmt: skip
def test_a_label_lies_on_the_image_or_the_text_says_how_not(label, kind, says):
    found = agreement(IMAGE, planes_of(label))
    assert (found.kind, says in found.text) == (kind, True), found.text


def test_segments_of_one_label_are_united_and_a_mismatch_is_not_placed():
    geometry = GRIDS["axial"]
    one, two = np.zeros(geometry.shape, bool), np.zeros(geometry.shape, bool)
    one[0, 0, 0], two[1, 1, 1] = True, True
    segments = Segments(
        planes_of(geometry),
        (Segment(1, "nodule", dict(enumerate(one)), 1), Segment(2, "nodule", dict(enumerate(two)), 2)),
        (),
    )
    masks, _ = place(segments, geometry)
    np.testing.assert_array_equal(masks["nodule"], one | two)
    with pytest.raises(CaseRejected, match="from the nearest slice"):
        place(segments, replace(geometry, spacing_mm=(2.6, 0.7, 0.8)))


def test_importing_the_reader_loads_no_highdicom():
    code = "import sys; import med_assets.dicom.seg, med_assets.dicom.seg_write; assert 'highdicom' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
