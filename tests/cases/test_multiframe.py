"""Enhanced multi-frame CT and MR, several acquisitions in one series, and what is refused of them, through intake and preparation."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from med_assets.dicom.discover import describe
from med_assets.dicom.enhanced import single_frames
from med_assets.dicom.geometry import read_ct_series, read_mr_series
from med_assets.dicom.seg import place, read_segments
from med_assets.dicom.seg_write import write_seg
from med_assets.errors import CaseRejected
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.invented import Study, ct, ds_text, ingest, item, mr, plan_case, uid, volume_seg, write

ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}
NODULE = np.zeros((25, 64, 64), bool)
NODULE[8:14, 30:38, 20:28] = True


def enhanced(st: Study, slices: list[Dataset], number: int = 0, per_frame: Any = None, **shared: Any) -> Dataset:
    """One multi-frame object of single-frame slices; `per_frame` gives more functional groups of slice k."""
    first = slices[0]
    modality = first.Modality
    ds = st.base(ENHANCED[modality], modality, uid(st.tag, "enhanced"), uid(st.tag, "enhanced", number))
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames, ds.Rows, ds.Columns = len(slices), first.Rows, first.Columns
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    groups = item(
        PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness="3")],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        **shared,
    )
    if modality == "CT":
        groups.PixelValueTransformationSequence = [item(RescaleIntercept="-1024", RescaleSlope="1", RescaleType="HU")]
    ds.SharedFunctionalGroupsSequence = [groups]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=k + 1)],
            PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
            **(per_frame(k) if per_frame else {}),
        )
        for k, one in enumerate(slices)
    ]
    ds.PixelData = b"".join(one.PixelData for one in slices)
    return ds


def code(call: Any, *args: Any) -> str:
    with pytest.raises(CaseRejected) as caught:
        call(*args)
    return caught.value.code


@pytest.mark.parametrize("objects", [1, 5])
def test_an_enhanced_ct_in_one_object_or_several_is_read_with_its_segmentation(
    workspace: Workspace, objects: int
) -> None:
    st = Study("c11")
    slices = ct(st)
    step = 25 // objects
    parts = [enhanced(st, slices[k * step : (k + 1) * step], k) for k in range(objects)]
    seg = volume_seg(st, slices, [("lung tumor", NODULE)])
    references = [item(ReferencedSOPClassUID=o.SOPClassUID, ReferencedSOPInstanceUID=o.SOPInstanceUID) for o in parts]
    seg.ReferencedSeriesSequence = [
        item(SeriesInstanceUID=parts[0].SeriesInstanceUID, ReferencedInstanceSequence=references)
    ]
    write([*parts, seg], workspace.landing / "lung_ct" / "c11")
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    assert int((np.asarray(case.truth) > 0).sum()) == 384
    assert np.array_equal(case.ct, read_ct_series(slices).array)


def test_a_plan_on_an_enhanced_ct_is_accepted(workspace: Workspace) -> None:
    st = Study("plan")
    slices = ct(st)
    datasets = plan_case("plan", slices=slices, st=st)
    volume = enhanced(st, slices)
    rs = next(ds for ds in datasets if ds.Modality == "RTSTRUCT")
    reference = item(ReferencedSOPClassUID=volume.SOPClassUID, ReferencedSOPInstanceUID=volume.SOPInstanceUID)
    for study in rs.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence:
        study.RTReferencedSeriesSequence[0].ContourImageSequence = [reference]
    for roi in rs.ROIContourSequence:
        for contour in roi.ContourSequence:
            if "ContourImageSequence" in contour:
                contour.ContourImageSequence = [reference]
    write([volume, *datasets[len(slices) :]], workspace.landing / "rt_dose" / "plan")
    (raw,), (row,) = ingest(workspace, "rt_dose")
    assert (raw["reason"], row["reason"]) == (None, None)


@pytest.mark.parametrize("description", ["T2 SAG", ""])
def test_a_sagittal_t2_in_one_enhanced_mr_object_is_taken(workspace: Workspace, description: str) -> None:
    st = Study("c12")
    slices = mr(st)
    ds = enhanced(
        st,
        slices,
        per_frame=lambda k: {"MREchoSequence": [item(EffectiveEchoTime=100.0)]},
        MRTimingAndRelatedParametersSequence=[item(RepetitionTime="3500")],
    )
    ds.SeriesDescription = description
    write([ds], workspace.landing / "lumbar_mr" / "c12")
    (raw,), (row,) = ingest(workspace, "lumbar_mr")
    assert (raw["reason"], row["reason"]) == (None, None)
    (facts,) = workspace.lake.rows("lumbar_mr_facts", f"lumbar_mr/{row['batch']}")
    assert (facts["slices"], facts["echo_time_ms"], facts["repetition_time_ms"]) == (12, 100.0, 3500.0)


def test_frames_are_placed_by_position_with_their_own_rescale() -> None:
    st = Study("order")
    slices = ct(st, n=6)
    expected = read_ct_series(slices)
    shuffled = [slices[k] for k in (3, 0, 5, 1, 4, 2)]
    ds = enhanced(st, shuffled)
    del ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for k, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        groups.PixelValueTransformationSequence = [item(RescaleIntercept=str(-1024 + k), RescaleSlope="1")]
    found = read_ct_series([ds])
    assert found.geometry == expected.geometry
    shift = np.array([1, 3, 5, 0, 4, 2], np.float32)[:, None, None]
    assert np.array_equal(found.array, expected.array + shift)


def test_of_two_echoes_in_one_object_the_t2_weighted_one_is_read() -> None:
    st = Study("echoes")
    slices = mr(st, n=6)
    early = mr(st, n=6, value=lambda p: np.full(p.shape[:-1], 7.0))
    ds = enhanced(
        st, early + slices, per_frame=lambda k: {"MREchoSequence": [item(EffectiveEchoTime=(15.0, 90.0)[k // 6])]}
    )
    from med_assets.programs.lumbar_mr.grouping import sagittal_t2

    assert np.array_equal(read_mr_series([ds], sagittal_t2).array, read_mr_series(slices).array)
    assert code(read_mr_series, [ds]) == "several_acquisitions"


def test_diffusion_and_several_stacks_are_volumes_of_their_own() -> None:
    st = Study("stacks")
    sagittal, axial = mr(st, n=6), mr(st, n=5, iop=(1, 0, 0, 0, 1, 0))

    def orientation(k: int) -> dict[str, Any]:
        one = [*sagittal, *axial][k]
        return {"PlaneOrientationSequence": [item(ImageOrientationPatient=one.ImageOrientationPatient)]}

    both = enhanced(st, sagittal + axial, per_frame=orientation)
    from med_assets.programs.lumbar_mr.grouping import sagittal_t2

    assert np.array_equal(read_mr_series([both], sagittal_t2).array, read_mr_series(sagittal).array)
    b_values = enhanced(
        st, sagittal * 3, per_frame=lambda k: {"MRDiffusionSequence": [item(DiffusionBValue=float(k // 6 * 500))]}
    )
    with pytest.raises(CaseRejected, match="3 acquisitions of 6 slices, which differ in DiffusionBValue"):
        read_mr_series([b_values])


def test_of_two_acquisitions_of_a_series_a_label_decides(workspace: Workspace) -> None:
    st = Study("two")
    first = ct(st)
    second = ct(st, series=first[0].SeriesInstanceUID, hu=lambda p: np.full(p.shape[:-1], 10.0))
    for k, one in enumerate(second):
        one.SOPInstanceUID, one.AcquisitionNumber = uid("two", "second", k), 2
    assert code(read_ct_series, first + second) == "several_acquisitions"
    write([*first, *second, volume_seg(st, first, [("lung tumor", NODULE)])], workspace.landing / "lung_ct" / "two")
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    assert np.array_equal(case.ct, read_ct_series(first).array)


@pytest.mark.parametrize("chosen", [0, 1])
def test_of_two_phases_in_one_object_the_frames_that_a_label_numbers_decide(workspace: Workspace, chosen: int) -> None:
    st = Study("phases")
    phases = [ct(st), ct(st, hu=lambda p: np.where(np.abs(p[..., 0]) < 100, 30.0, -900.0))]
    both = enhanced(st, phases[0] + phases[1])
    for k, groups in enumerate(both.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].TemporalPositionIndex = k // 25 + 1
    seg = volume_seg(st, phases[0], [("lung tumor", NODULE)])
    reference = {"ReferencedSOPClassUID": both.SOPClassUID, "ReferencedSOPInstanceUID": both.SOPInstanceUID}
    seg.ReferencedSeriesSequence = [
        item(SeriesInstanceUID=both.SeriesInstanceUID, ReferencedInstanceSequence=[item(**reference)])
    ]
    write([both, seg], workspace.landing / "lung_ct" / "unnumbered")
    (raw,), _ = ingest(workspace, "lung_ct")
    assert raw["reason_code"] == "several_acquisitions"
    for k, groups in enumerate(seg.PerFrameFunctionalGroupsSequence):
        source = item(**reference, ReferencedFrameNumber=25 * chosen + 9 + k)
        groups.DerivationImageSequence = [item(SourceImageSequence=[source])]
    write([both, seg], workspace.landing / "lung_ct" / "numbered")
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    assert np.array_equal(case.ct, read_ct_series(phases[chosen]).array)


@pytest.mark.parametrize("description", ["", "T2 SAG"])
def test_a_sagittal_t2_that_is_not_the_first_stack_of_its_object_is_taken(
    workspace: Workspace, description: str
) -> None:
    st = Study("later stack")
    axial, sagittal = mr(st, n=5, iop=(1, 0, 0, 0, 1, 0)), mr(st)
    frames = [*axial, *sagittal]
    both = enhanced(
        st,
        frames,
        per_frame=lambda k: {
            "PlaneOrientationSequence": [item(ImageOrientationPatient=frames[k].ImageOrientationPatient)],
            "MREchoSequence": [item(EffectiveEchoTime=15.0 if k < 5 else 95.0)],
        },
        MRTimingAndRelatedParametersSequence=[item(RepetitionTime="3500")],
    )
    both.SeriesDescription = description
    write([both], workspace.landing / "lumbar_mr" / "a")
    (raw,), (row,) = ingest(workspace, "lumbar_mr")
    assert (raw["reason"], row["reason"]) == (None, None)
    (facts,) = workspace.lake.rows("lumbar_mr_facts", f"lumbar_mr/{row['batch']}")
    assert (facts["slices"], facts["echo_time_ms"]) == (12, 95.0)


def test_two_acquisitions_that_nothing_tells_apart_are_repeated_slices(workspace: Workspace) -> None:
    st = Study("c22")
    first = ct(st)
    second = ct(st, series=first[0].SeriesInstanceUID)
    for k, one in enumerate(second):
        one.SOPInstanceUID = uid("c22", "second", k)
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x, y, ds_text(float(z) + 0.05)]
    write(plan_case("c22", slices=first, st=st) + second, workspace.landing / "rt_dose" / "c22")
    (raw,), _ = ingest(workspace, "rt_dose")
    assert raw["reason_code"] == "duplicate_slice"


def test_an_object_without_groups_for_each_frame_is_refused() -> None:
    ds = enhanced(Study("few"), ct(Study("few"), n=4))
    del ds.PerFrameFunctionalGroupsSequence[-1]
    assert code(single_frames, [ds]) == "missing_geometry"


def test_dcm2niix_reads_the_enhanced_and_the_classic_form_alike(tmp_path: Path) -> None:
    program = pytest.importorskip("dcm2niix").bin
    nibabel = pytest.importorskip("nibabel")
    st = Study("nifti")
    slices = ct(st, n=8)
    forms = {"classic": slices, "enhanced": [enhanced(st, slices)]}
    for name, datasets in forms.items():
        write(datasets, tmp_path / name)
        (tmp_path / "out").mkdir(exist_ok=True)
        subprocess.run(
            [program, "-f", name, "-z", "n", "-o", str(tmp_path / "out"), str(tmp_path / name)],
            check=True,
            capture_output=True,
        )
        image = nibabel.load(tmp_path / "out" / f"{name}.nii")
        ours = read_ct_series(datasets)
        theirs = np.asarray(image.dataobj).transpose(2, 1, 0)
        # dcm2niix flips rows, so voxels are compared at the places that both affines give them.
        affine = np.linalg.inv(image.affine) @ ours.geometry.nifti_affine()
        corner = np.rint(affine @ [1, 2, 3, 1]).astype(int)[:3]
        assert np.abs(affine @ [1, 2, 3, 1] - [*corner, 1]).max() < 1e-3
        assert ours.array[3, 2, 1] == theirs[corner[2], corner[1], corner[0]]
        assert np.array_equal(ours.array, theirs[:, ::-1] if affine[1, 1] < 0 else theirs)


@pytest.mark.parametrize("objects", [1, 2])
def test_a_predicted_segmentation_refers_to_frames_of_the_multi_frame_objects(tmp_path: Path, objects: int) -> None:
    st = Study("predicted")
    slices = ct(st, n=8)
    size = 8 // objects
    parts = [enhanced(st, slices[k * size : (k + 1) * size], k) for k in range(objects)]
    volume = read_ct_series(parts)
    mask = np.zeros(volume.array.shape, bool)
    mask[2:4, 3:5, 6:9] = True
    write_seg(tmp_path / "seg.dcm", {"lung tumor": mask}, volume.geometry, parts, made_by="model")
    seg = dcmread(tmp_path / "seg.dcm")
    assert np.array_equal(place(read_segments(seg), volume.geometry)[0]["lung tumor"], mask)
    assert {one.SOPInstanceUID for one in parts} == set(describe(seg).referenced_sops)
    for groups in seg.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        (part,) = [one for one in parts if one.SOPInstanceUID == source.ReferencedSOPInstanceUID]
        frame = part.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        place_of = groups.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, place_of)
        assert source.ReferencedSOPClassUID == ENHANCED["CT"]


def test_a_transfer_syntax_that_is_not_decoded_is_named() -> None:
    slices = ct(Study("syntax"), n=3)
    for one in slices:
        one.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.8.1")
    with pytest.raises(CaseRejected, match="Deflated Image Frame Compression") as caught:
        read_ct_series(slices)
    assert caught.value.code == "undecodable_pixels"
