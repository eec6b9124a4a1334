"""De-identification leaves what imaging needs, and nothing of the patient, in the saved bytes."""

import struct
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    RTDoseStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)

from med_assets.deidentification.deidentify import (
    MAX_SHIFT_DAYS,
    MIN_SHIFT_DAYS,
    Deidentifier,
    unrecognised_structures,
)
from med_assets.deidentification.profile import ALLOWED, Action
from med_assets.deidentification.residual import residual_phi
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.structure_names import Vocabulary
from med_assets.errors import CaseRejected, ConfigurationError

KEY = b"a key of the tests, thirty-two b"
VOCABULARY = Vocabulary(
    frozenset({"PTV70", "Rectum", "Femur_L"}), texts={"ClinicalTrialProtocolID": frozenset({"OpenKBP"})}
)
PLANTED = (
    "Quimby", "Zelda", "MRN778899", "19470611", "20210412", "Hawthorne", "Nimbleton", "ward 9", "093155", "ACC4471",
    "1.3.6.1.4.1.777.1", "Xylograph", "SN-55512", "Blofeld",
)  # fmt: skip


def item(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def original(sop_class: str, name: str, **values: object) -> Dataset:
    """An object of patient Zelda Quimby, with identity in every ordinary place."""
    ds = item(
        SpecificCharacterSet="ISO_IR 100", SOPClassUID=sop_class, SOPInstanceUID=f"1.3.6.1.4.1.777.1.{name}",
        StudyInstanceUID="1.3.6.1.4.1.777.1.10", SeriesInstanceUID=f"1.3.6.1.4.1.777.1.11.{name}",
        FrameOfReferenceUID="1.3.6.1.4.1.777.1.12", PatientName="Quimby^Zelda", PatientID="MRN778899",
        PatientBirthDate="19470611", PatientSex="F", PatientAge="074Y", OtherPatientIDs=["Blofeld-1"],
        PatientAddress="Nimbleton Road", PatientComments="of ward 9", StudyDate="20210412", StudyTime="093155",
        SeriesDate="20210412", AccessionNumber="ACC4471", StudyID="Quimby", InstitutionName="Hawthorne Infirmary",
        StationName="Hawthorne-CT", ReferringPhysicianName="Blofeld^Ernst", OperatorsName="Blofeld",
        StudyDescription="Quimby prostate", SeriesDescription="for Zelda", ProtocolName="Nimbleton protocol",
        DeviceSerialNumber="SN-55512", Manufacturer="Xylograph of Nimbleton", PositionReferenceIndicator="Quimby",
        ImageComments="Zelda moved", RequestAttributesSequence=[item(RequestedProcedureDescription="Quimby")],
        AcquisitionDateTime="20210412093155.000", IssuerOfPatientID="Hawthorne", **values,
    )  # fmt: skip
    block = ds.private_block(0x0029, "Xylograph HEADER", create=True)
    block.add_new(0x10, "LO", "Quimby private")
    ds.add_new(0x50003000, "OW", b"Quimby curve" * 2)
    ds.add_new(0x60000022, "LO", "Zelda overlay")
    ds.add_new(0x60003000, "OW", b"Quimby overlay" * 2)
    ds.add_new(0xFFFCFFFC, "OB", b"Quimby padding")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.SourceApplicationEntityTitle = "Hawthorne"
    ds.preamble = b"Quimby".ljust(128, b"\0")
    return ds


def ct(**values: object) -> Dataset:
    pixels = np.arange(12, dtype="<u2").tobytes()
    return original(
        CTImageStorage, "1", Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], PatientPosition="HFS",
        ImagePositionPatient=[-1.5, 2.25, "-742.123456789012345"], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.9, 0.8], SliceThickness="2.5", InstanceNumber=4, Rows=3, Columns=4, BitsAllocated=16,
        BitsStored=12, HighBit=11, PixelRepresentation=0, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
        RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU", KVP="120", PixelData=pixels, **values,
    )  # fmt: skip


def reference(sop_class: str, name: str, **values: object) -> Dataset:
    return item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=f"1.3.6.1.4.1.777.1.{name}", **values)


def structures() -> Dataset:
    image = reference(CTImageStorage, "1")
    series = item(SeriesInstanceUID="1.3.6.1.4.1.777.1.11.1", ContourImageSequence=[image])
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID="1.3.6.1.4.1.777.1.10",
        RTReferencedSeriesSequence=[series],
    )  # fmt: skip
    names = ["ptv 70 Gy", "Quimby tumour", "FEMUR-L"]
    return original(
        RTStructureSetStorage, "2", Modality="RTSTRUCT", StructureSetLabel="Quimby", StructureSetDate="20210412",
        StructureSetTime="093155", ReferencedFrameOfReferenceSequence=[
            item(FrameOfReferenceUID="1.3.6.1.4.1.777.1.12", RTReferencedStudySequence=[study])
        ],
        StructureSetROISequence=[
            item(ROINumber=n, ROIName=name, ReferencedFrameOfReferenceUID="1.3.6.1.4.1.777.1.12",
                 ROIDescription="Zelda", ROIGenerationAlgorithm="MANUAL") for n, name in enumerate(names, 1)
        ],
        ROIContourSequence=[
            item(ReferencedROINumber=1, ROIDisplayColor=[1, 2, 3], ContourSequence=[
                item(ContourImageSequence=[reference(CTImageStorage, "1")], ContourGeometricType="CLOSED_PLANAR",
                     NumberOfContourPoints=3, ContourData=[0, 0, 1, 5, 0, 1, 5.25, 5, 1])])
        ],
        RTROIObservationsSequence=[
            item(ObservationNumber=1, ReferencedROINumber=1, ROIObservationLabel="Quimby", ROIInterpreter="Blofeld",
                 RTROIInterpretedType="PTV", RTROIIdentificationCodeSequence=[
                     item(CodeValue="Q1", CodingSchemeDesignator="99X", CodeMeaning="Quimby"),
                     item(CodeValue="41216001", CodingSchemeDesignator="SCT", CodeMeaning="Prostate of Quimby")])
        ],
    )  # fmt: skip


def plan() -> Dataset:
    return original(
        RTPlanStorage, "3", Modality="RTPLAN", RTPlanLabel="Quimby", RTPlanName="Zelda", RTPlanDate="20210412",
        RTPlanTime="093155", RTPlanGeometry="PATIENT",
        ReferencedStructureSetSequence=[reference(RTStructureSetStorage, "2")],
        DoseReferenceSequence=[item(DoseReferenceNumber=1, DoseReferenceStructureType="SITE", TargetPrescriptionDose=70,
                                    ReferencedROINumber=1, DoseReferenceDescription="Quimby", DoseReferenceUID="1.3.6.1.4.1.777.1.5")],
        FractionGroupSequence=[item(FractionGroupNumber=1, NumberOfFractionsPlanned=28, NumberOfBeams=1,
                                    ReferencedBeamSequence=[item(ReferencedBeamNumber=1, BeamMeterset=300.5)])],
        BeamSequence=[item(BeamNumber=1, BeamName="Quimby arc", TreatmentMachineName="Hawthorne-1",
                           ControlPointSequence=[item(ControlPointIndex=0, GantryAngle=181.5)])],
    )  # fmt: skip


def dose() -> Dataset:
    return original(
        RTDoseStorage, "4", Modality="RTDOSE", DoseUnits="GY", DoseType="PHYSICAL", DoseSummationType="PLAN",
        DoseComment="Quimby", DoseGridScaling="0.0001", GridFrameOffsetVector=[0, 2.5], NumberOfFrames=2,
        FrameIncrementPointer=0x3004000C, Rows=1, Columns=2, BitsAllocated=32, BitsStored=32, HighBit=31,
        PixelRepresentation=0, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
        ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 2],
        PixelData=np.arange(4, dtype="<u4").tobytes(), ReferencedRTPlanSequence=[reference(RTPlanStorage, "3")],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_validation() -> Iterator[None]:
    """Some planted values are not what the standard allows."""
    with config.disable_value_validation():
        yield


@pytest.fixture
def deidentifier() -> Deidentifier:
    return Deidentifier(KEY, VOCABULARY)


def saved(deidentifier: Deidentifier, ds: Dataset) -> Dataset:
    return dcmread(BytesIO(to_bytes(deidentifier.apply(ds))))


@pytest.mark.parametrize("make", [ct, structures, plan, dose])
def test_nothing_that_was_planted_is_in_the_saved_bytes(make, deidentifier: Deidentifier) -> None:
    content = to_bytes(deidentifier.apply(make())).lower()
    assert [text for text in PLANTED if text.lower().encode() in content] == []


@pytest.mark.parametrize("make", [ct, structures, plan, dose])
def test_the_same_object_gives_the_same_bytes_in_any_instance(make) -> None:
    assert to_bytes(Deidentifier(KEY).apply(make())) == to_bytes(Deidentifier(KEY).apply(make()))
    assert to_bytes(Deidentifier(KEY).apply(make())) != to_bytes(Deidentifier(b"another key").apply(make()))


@pytest.mark.parametrize("make", [ct, structures, plan, dose])
def test_the_input_stays_as_it_was(make, deidentifier: Deidentifier) -> None:
    ds = make()
    ds.PatientIdentityRemoved = "NO"
    before = ds.to_json()
    deidentifier.apply(ds)
    assert ds.to_json() == before


def test_geometry_and_pixels_of_ct_survive_to_the_last_digit(deidentifier: Deidentifier) -> None:
    source, kept = ct(), saved(deidentifier, ct())
    for keyword in [
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "InstanceNumber",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "KVP",
        "ImageType",
        "PatientPosition",
        "Modality",
        "PixelData",
    ]:
        assert kept[keyword].value == source[keyword].value, keyword
    assert str(kept.ImagePositionPatient[2]) == "-742.123456789012345"


def test_the_chain_of_uids_still_links(deidentifier: Deidentifier) -> None:
    image, rois, rx, grid = (saved(deidentifier, make()) for make in (ct, structures, plan, dose))
    frame = rois.ReferencedFrameOfReferenceSequence[0]
    study = frame.RTReferencedStudySequence[0]
    series = study.RTReferencedSeriesSequence[0]
    assert frame.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert rois.StructureSetROISequence[0].ReferencedFrameOfReferenceUID == image.FrameOfReferenceUID
    assert study.ReferencedSOPInstanceUID == image.StudyInstanceUID
    assert study.ReferencedSOPClassUID == "1.2.840.10008.3.1.2.3.1"
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert series.ContourImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    contour = rois.ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert rx.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == rois.SOPInstanceUID
    assert grid.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == rx.SOPInstanceUID
    assert {ds.PatientID for ds in (image, rois, rx, grid)} == {deidentifier.pseudonym("MRN778899")}
    assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID


def test_contours_prescription_and_dose_grid_survive(deidentifier: Deidentifier) -> None:
    rois, rx, grid = (saved(deidentifier, make()) for make in (structures, plan, dose))
    contour = rois.ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourData == [0, 0, 1, 5, 0, 1, 5.25, 5, 1]
    assert contour.ContourGeometricType == "CLOSED_PLANAR"
    assert rois.RTROIObservationsSequence[0].RTROIInterpretedType == "PTV"
    assert rx.DoseReferenceSequence[0].TargetPrescriptionDose == 70
    assert rx.DoseReferenceSequence[0].ReferencedROINumber == 1
    assert rx.FractionGroupSequence[0].NumberOfFractionsPlanned == 28
    assert rx.BeamSequence[0].ControlPointSequence[0].GantryAngle == 181.5
    assert grid.GridFrameOffsetVector == [0, 2.5]
    assert grid.DoseGridScaling == 0.0001
    assert (grid.DoseUnits, grid.DoseType, grid.DoseSummationType) == ("GY", "PHYSICAL", "PLAN")
    assert grid.pixel_array.ravel().tolist() == [0, 1, 2, 3]


def test_structure_names_stay_only_from_the_vocabulary_and_others_are_counted(deidentifier: Deidentifier) -> None:
    rois = saved(deidentifier, structures())
    names = [roi.ROIName for roi in rois.StructureSetROISequence]
    assert names == ["ptv 70 Gy", "UNRECOGNISED_1", "FEMUR-L"]
    assert unrecognised_structures(rois) == 1


def test_codes_come_from_the_standards_dictionaries_with_their_text(deidentifier: Deidentifier) -> None:
    codes = saved(deidentifier, structures()).RTROIObservationsSequence[0].RTROIIdentificationCodeSequence
    assert [(code.CodeValue, code.CodeMeaning) for code in codes] == [
        ("41216001", "Prostatic structure (body structure)")
    ]


def test_dates_move_by_the_days_of_the_patient_and_times_go(deidentifier: Deidentifier) -> None:
    first, later = saved(deidentifier, ct()), ct()
    later.StudyDate = "20210419"
    second = saved(deidentifier, later)
    assert np.datetime64(f"{second.StudyDate[:4]}-{second.StudyDate[4:6]}-{second.StudyDate[6:]}") - np.datetime64(
        f"{first.StudyDate[:4]}-{first.StudyDate[4:6]}-{first.StudyDate[6:]}"
    ) == np.timedelta64(7, "D")
    assert first.AcquisitionDateTime == first.StudyDate
    assert first.StudyTime == ""
    shifts = {deidentifier.days(str(n)) for n in range(200)}
    assert len(shifts) > 150
    assert all(-MAX_SHIFT_DAYS <= shift <= -MIN_SHIFT_DAYS for shift in shifts)


def test_what_was_done_is_declared(deidentifier: Deidentifier) -> None:
    ds = saved(deidentifier, ct())
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [code.CodeValue for code in ds.DeidentificationMethodCodeSequence] == ["113100", "113105", "113107"]


def test_marks_of_phantoms_and_of_published_splits_stay_and_nothing_else_in_their_place(deidentifier) -> None:
    marks = {
        "SoftwareVersions": "med_assets phantom",
        "ClinicalTrialProtocolID": "OpenKBP",
        "ClinicalTrialSiteID": "train",
    }
    kept = saved(deidentifier, ct(**marks))
    assert {keyword: kept[keyword].value for keyword in marks} == marks
    assert all(saved(deidentifier, ct(**dict.fromkeys(marks, "Quimby")))[keyword].value == "" for keyword in marks)


def test_a_text_that_means_something_to_one_program_stays_in_that_alone(deidentifier: Deidentifier) -> None:
    source = ct(ClinicalTrialProtocolID=" openkbp", ClinicalTrialSiteName="UW")
    kept, emptied = saved(deidentifier, source), saved(Deidentifier(KEY, VOCABULARY.names), source)
    assert (kept.ClinicalTrialProtocolID, kept.ClinicalTrialSiteName) == ("OpenKBP", "")
    assert (emptied.ClinicalTrialProtocolID, emptied.ClinicalTrialSiteName) == ("", "")
    assert residual_phi([kept], roi_vocabulary=VOCABULARY) == []
    assert [one.tag for one in residual_phi([kept], roi_vocabulary=VOCABULARY.names)] == ["(0012,0020)"]


def test_texts_of_an_element_that_the_profile_removes_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="SeriesDescription"):
        Deidentifier(KEY, Vocabulary(frozenset(), texts={"SeriesDescription": frozenset({"T2"})}))


def test_a_name_inside_a_code_string_goes_and_positions_do_not_move(deidentifier: Deidentifier) -> None:
    kept = saved(deidentifier, ct(ScanOptions=["HELIX", "QUIMBY", "free text"], BodyPartExamined="ZELDA"))
    assert kept.ScanOptions == ["HELIX", "REMOVED", "REMOVED"]
    assert "BodyPartExamined" not in kept


def test_a_patient_called_like_a_term_of_the_standard_keeps_the_term(deidentifier: Deidentifier) -> None:
    source = dose()
    source.PatientName = "Plan^Gy"
    assert saved(deidentifier, source).DoseSummationType == "PLAN"


def test_compressed_pixel_data_keeps_its_pixels_and_its_transfer_syntax(deidentifier: Deidentifier) -> None:
    for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"):
        source = dcmread(get_testdata_file(name))
        kept = saved(deidentifier, source)
        assert np.array_equal(kept.pixel_array, source.pixel_array)
        assert kept.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID


@pytest.mark.parametrize(
    ("sop_class", "changes", "code"),
    [
        (CTImageStorage, {"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
        (CTImageStorage, {"BurnedInAnnotation": "yes "}, "burned_in_annotation"),
        (CTImageStorage, {"BurnedInAnnotation": "Y"}, "burned_in_annotation"),
        (CTImageStorage, {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "burned_in_annotation"),
        (
            CTImageStorage,
            {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "screen_save"], "BurnedInAnnotation": "NO"},
            "burned_in_annotation",
        ),
        (CTImageStorage, {"ConversionType": "DF"}, "burned_in_annotation"),
        (UltrasoundImageStorage, {}, "burned_in_annotation"),
        (SecondaryCaptureImageStorage, {}, "unsupported_sop_class"),
        (EncapsulatedPDFStorage, {}, "unsupported_sop_class"),
        (CTImageStorage, {"PatientID": " "}, "missing_patient_id"),
        (CTImageStorage, {"SOPInstanceUID": ""}, "missing_uid"),
        (CTImageStorage, {"Rows": "Quimby"}, "malformed_element"),
    ],
)
def test_what_can_not_be_made_safe_is_refused_without_quoting_it(sop_class, changes, code, deidentifier) -> None:
    ds = ct()
    ds.SOPClassUID = sop_class
    for keyword, value in changes.items():
        if keyword == "Rows":
            ds.add_new("Rows", "LO", value)
        else:
            setattr(ds, keyword, value)
    with pytest.raises(CaseRejected) as rejected:
        deidentifier.apply(ds)
    assert rejected.value.code == code
    assert "Quimby" not in str(rejected.value)


def test_text_where_a_number_belongs_is_refused_without_quoting_it(deidentifier: Deidentifier) -> None:
    ds = ct()
    tag = Tag("RescaleSlope")
    ds._dict[tag] = RawDataElement(tag, "DS", 6, b"Quimby", 0, False, True)
    with pytest.raises(CaseRejected, match="RescaleSlope") as rejected:
        deidentifier.apply(ds)
    assert "Quimby" not in str(rejected.value)


@pytest.mark.parametrize("bit", [12, 15])
def test_overlays_in_unused_bits_of_the_pixels_are_cleared(bit: int, deidentifier: Deidentifier) -> None:
    ds = ct()
    ds.add_new(0x60000102, "US", bit)
    ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") | np.uint16(1 << bit)).tobytes()
    assert saved(deidentifier, ds).PixelData == ct().PixelData


def test_an_overlay_within_the_stored_bits_is_refused(deidentifier: Deidentifier) -> None:
    ds = ct()
    ds.add_new(0x60000102, "US", 11)
    with pytest.raises(CaseRejected) as rejected:
        deidentifier.apply(ds)
    assert rejected.value.code == "overlay_in_pixels"


NAMES = {"CS": "MEIER", "DA": "19470611", "DT": "19470611", "TM": "194706", "UI": "1.3.6.1.4.1.777.19470611"}
"""A name or id in the form of each text VR; all others that hold text take it as it is."""


def placed(tag: int, value: str, vr: str) -> Dataset:
    """A CT with an element at the top level, and in an item where the standard has it."""
    ds = ct(StructureSetROISequence=[Dataset()])
    if tag not in (Tag("SOPClassUID"), Tag("SpecificCharacterSet"), Tag("BurnedInAnnotation")):
        for place in (ds, ds.StructureSetROISequence[0]):
            place._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value.encode(), 0, False, True)
    return ds


def test_a_name_in_the_form_of_its_vr_comes_out_of_no_allowed_element(deidentifier: Deidentifier) -> None:
    texts = {tag: dictionary_VR(tag) for tag in ALLOWED if dictionary_VR(tag) in {"LO", "SH", "PN", *NAMES}}
    assert len(texts) > 130
    for tag, vr in texts.items():
        for value in {NAMES.get(vr, "Meier"), "ROSE" if vr == "CS" else NAMES.get(vr, "Rose")}:
            content = to_bytes(deidentifier.apply(placed(tag, value, vr)))
            assert value.encode() not in content, Tag(tag)


@pytest.mark.parametrize("text", ["Nan", "inf", "1_947", "eE", "--", "1.2.3", "12e", "Meier", "0x12"])
def test_text_that_looks_like_a_number_is_refused(text: str, deidentifier: Deidentifier) -> None:
    for tag in [tag for tag in ALLOWED if dictionary_VR(tag) in ("DS", "IS")]:
        with pytest.raises(CaseRejected) as rejected:
            deidentifier.apply(placed(tag, text, dictionary_VR(tag)))
        assert rejected.value.code == "malformed_element", Tag(tag)


def test_terms_stay_in_the_spelling_of_the_standard_and_others_go(deidentifier: Deidentifier) -> None:
    with config.disable_value_validation():
        source = ct(BodyPartExamined="chest", ScanOptions="HELICAL MODE")
        source["ImageType"] = DataElement("ImageType", "CS", ["ORIGINAL", "PRIMARY", "MEIER", " Axial"])
        kept = saved(deidentifier, source)
    assert kept.ImageType == ["ORIGINAL", "PRIMARY", "REMOVED", "AXIAL"]
    assert (kept.BodyPartExamined, kept.ScanOptions) == ("CHEST", "HELICAL MODE")


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="MED_ASSETS_PSEUDONYM_KEY"):
        Deidentifier(b"")


def test_kept_as_it_is_only_what_can_not_hold_free_text() -> None:
    unable = {"CS", "DS", "IS", "US", "SS", "UL", "SL", "OV", "FL", "FD", "AT", "OW", "OB", "OF", "OD"}
    for tag, action in ALLOWED.items():
        forms = set(dictionary_VR(tag).split(" or "))
        assert action is not Action.KEEP or forms <= unable, Tag(tag)
        if action is not Action.EMPTY:  # a sequence that is emptied keeps no item
            assert (action in (Action.NESTED, Action.CODED)) == (forms == {"SQ"}), Tag(tag)
        assert (action is Action.UID) == (forms == {"UI"}), Tag(tag)


@pytest.mark.parametrize(
    ("keyword", "vr", "form"),
    [
        ("AcquisitionMatrix", "US", "<4H"),
        ("FrameIncrementPointer", "AT", "<2I"),
        ("DimensionIndexValues", "UL", "<2I"),
        ("DiffusionBValue", "FD", "<d"),
        ("ReferenceCoordinates", "FL", "<2f"),
        ("Rows", "US", "<4H"),
    ],
)
def test_text_in_the_form_of_binary_numbers_is_refused(keyword: str, vr: str, form: str, deidentifier) -> None:
    ds, tag = ct(), Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, 8, b"QUIMBYZE", 0, False, True)
    assert len(struct.unpack(form, b"QUIMBYZE")) >= 1
    with pytest.raises(CaseRejected, match=keyword) as rejected:
        deidentifier.apply(ds)
    assert rejected.value.code == "malformed_element"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("AcquisitionMatrix", [0, 256, 192, 0]),
        ("DiffusionBValue", 1000.0),
        ("DiffusionGradientOrientation", [0.5773502691896258, -0.5773502691896258, 0.5773502691896257]),
        ("ReferenceCoordinates", [1.0, 1.0, 19.0, 512.0]),
        ("DimensionIndexValues", [1, 2, 400]),
    ],
)
def test_binary_numbers_of_measurements_stay(keyword: str, value: object, deidentifier: Deidentifier) -> None:
    assert saved(deidentifier, ct(**{keyword: value}))[keyword].value == value
