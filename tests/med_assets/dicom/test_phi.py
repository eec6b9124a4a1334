"""The residual scan is silent about what de-identification made, and finds each thing that was planted afterwards."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import Finding, identifying_values, residual_phi
from med_assets.dicom.encoded import to_bytes

KNOWN = ["Quimby", "MRN778899", "19470611"]
VOCABULARY = ["PTV70", "Rectum"]


def code(value: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, "SCT", meaning
    return ds


@pytest.fixture
def clean() -> Dataset:
    """A de-identified CT with a structure list, so that one object has all that can be planted in."""
    source = dcmread(get_testdata_file("CT_small.dcm"))
    roi = Dataset()
    roi.ROINumber, roi.ROIName, roi.ROIInterpreter = 1, "PTV_70", ""
    source.StructureSetROISequence = [roi]
    source.AnatomicRegionSequence = [code("41216001", "whatever")]
    return Deidentifier(b"a key of the tests", VOCABULARY).apply(source)


def private(ds: Dataset) -> None:
    ds.private_block(0x0029, "MAKER", create=True).add_new(1, "LO", "text")


def nested_private(ds: Dataset) -> None:
    private(ds.StructureSetROISequence[0])


def extra_in_code(ds: Dataset) -> None:
    ds.AnatomicRegionSequence[0].MappingResourceName = "Quimby"


def text_in_code(ds: Dataset) -> None:
    ds.AnatomicRegionSequence[0].CodeMeaning = "Prostate of Quimby"


def assign(keyword: str, value: object, *, nested: bool = False) -> Callable[[Dataset], None]:
    return lambda ds: setattr(ds.StructureSetROISequence[0] if nested else ds, keyword, value)


def declared(ds: Dataset) -> None:
    del ds.PatientIdentityRemoved


PLANTED = {
    "a private element": (private, "(0029,1001)", "private"),
    "a nested private element": (nested_private, "(3006,0020)[0](0029,1001)", "private"),
    "a curve": (lambda ds: ds.add_new(0x50003000, "OW", b"QUIMBYxx"), "(5000,3000)", "allow-list"),
    "an overlay": (lambda ds: ds.add_new(0x60000022, "LO", "x"), "(6000,0022)", "allow-list"),
    "free text": (assign("StudyDescription", "prostate"), "(0008,1030)", "allow-list"),
    "nested free text": (assign("ROIDescription", "x", nested=True), "(3006,0020)[0](3006,0028)", "allow-list"),
    "a patient name": (assign("PatientName", "Doe^Jane"), "(0010,0010)", "does not let through"),
    "another name": (assign("ROIInterpreter", "Doe", nested=True), "(3006,0020)[0](3006,00A6)", "does not let through"),
    "a birth date": (assign("PatientBirthDate", "19470611"), "(0010,0030)", "does not let through"),
    "a time of day": (assign("StudyTime", "093155"), "(0008,0030)", "does not let through"),
    "an original uid": (assign("StudyInstanceUID", "1.3.6.1.4.1.5"), "(0020,000D)", "does not let through"),
    "a structure name": (assign("ROIName", "Tumour J D", nested=True), "(3006,0020)[0](3006,0026)", "not let through"),
    "a known name": (assign("ImageType", ["A", "QUIMBY"]), "(0008,0008)", "known identifying"),
    "a known id with blanks": (assign("StudyID", "mrn 778-899"), "(0020,0010)", "known identifying"),
    "a known date": (assign("StudyDate", "19470611"), "(0008,0020)", "known identifying"),
    "text in a code": (text_in_code, "(0008,2218)[0](0008,0104)", "known identifying"),
    "more in a code": (extra_in_code, "(0008,2218)[0](0008,0122)", "allow-list"),
    "text in the pixels": (assign("BurnedInAnnotation", "YES"), "(0028,0301)", "pixels"),
    "no declaration": (declared, "(0012,0062)", "not YES"),
    "unshifted dates": (assign("LongitudinalTemporalInformationModified", "UNMODIFIED"), "(0028,0303)", "shifted"),
    "meta": (lambda ds: setattr(ds.file_meta, "SourceApplicationEntityTitle", "X"), "(0002,0016)", "file meta"),
}


def test_what_de_identification_made_has_no_findings(clean: Dataset, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "0.dcm").write_bytes(to_bytes(clean))
    assert residual_phi([clean], known=KNOWN, roi_vocabulary=VOCABULARY) == []
    assert residual_phi(tmp_path, known=KNOWN, roi_vocabulary=VOCABULARY) == []


@pytest.mark.parametrize("thing", PLANTED)
def test_each_planted_thing_is_found_where_it_is(thing: str, clean: Dataset) -> None:
    plant, tag, reason = PLANTED[thing]
    plant(clean)
    findings = residual_phi([clean], known=KNOWN, roi_vocabulary=VOCABULARY)
    assert any(f.tag == tag and reason in f.reason for f in findings), findings
    assert not any(known.lower() in f.reason.lower() for f in findings for known in KNOWN)


def test_originals_are_full_of_findings() -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm"):
        ds = dcmread(get_testdata_file(name))
        reasons = {finding.reason for finding in residual_phi([ds], known=identifying_values(ds))}
        assert "contains a known identifying string" in reasons
        assert "PatientIdentityRemoved is not YES" in reasons


def test_identifying_values_of_an_original_are_not_in_its_de_identified_copy() -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "rtdose.dcm", "MR_small_jp2klossless.dcm"):
        ds = dcmread(get_testdata_file(name))
        ds.PatientID = ds.PatientID or "unknown-1"
        copy = Deidentifier(b"a key of the tests").apply(ds)
        assert residual_phi([copy], known=identifying_values(ds)) == []


def test_a_name_that_is_part_of_a_term_of_the_standard_is_no_finding(clean: Dataset) -> None:
    clean.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert residual_phi([clean], known=["Mary", "Basic", "Prof"]) == []


def test_file_names_other_files_and_preambles_are_found(clean: Dataset, tmp_path: Path) -> None:
    content = to_bytes(clean)
    (tmp_path / "Quimby_Zelda").mkdir()
    (tmp_path / "Quimby_Zelda" / "0.dcm").write_bytes(content)
    (tmp_path / "notes.txt").write_text("Zelda was here")
    (tmp_path / "1.dcm").write_bytes(b"secret".ljust(128, b"\0") + content[128:])
    reasons = [finding.reason for finding in residual_phi(tmp_path, known=KNOWN)]
    assert reasons == [
        "a file or folder name contains a known identifying string",
        "not a readable DICOM file",
        "the preamble is not empty",
    ]


def test_a_known_string_in_the_comment_of_compressed_pixels_is_found() -> None:
    ds = dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    copy = Deidentifier(b"a key of the tests").apply(ds)
    copy.PixelData = copy.PixelData[:200] + b"Quimby Zelda" + copy.PixelData[212:]
    findings = residual_phi([copy], known=["quimby zelda"])
    assert findings == [Finding("(7FE0,0010)", "contains a known identifying string")]


def test_short_strings_are_not_looked_for_and_hashes_do_not_match_by_chance(clean: Dataset, tmp_path: Path) -> None:
    digest = "12345678" * 8
    (tmp_path / f"{digest}.dcm").write_bytes(to_bytes(clean))
    assert residual_phi(tmp_path, known=["CT", "1", "1234", clean.SOPInstanceUID[10:16]]) == []
    assert np.all([len(value) >= 4 for value in identifying_values(clean)])


def test_numbers_meet_an_identifier_by_chance_but_those_that_senders_assign_are_found(clean: Dataset) -> None:
    clean.WindowWidth, clean.ReconstructionDiameter, clean.InstanceNumber = "1500", "10008", 3
    assert residual_phi([clean], known=["1500", "10008", "2840", "CT", "3"], roi_vocabulary=VOCABULARY) == []
    clean.SeriesNumber = "1500"
    findings = residual_phi([clean], known=["1500"], roi_vocabulary=VOCABULARY)
    assert [finding.tag for finding in findings] == ["(0020,0011)"]


def test_identifying_values_hold_names_of_three_letters() -> None:
    ds = Dataset()
    ds.PatientName, ds.PatientID, ds.StudyID = "Kim^Lee Ann", "123", "1500"
    assert identifying_values(ds) >= {"Kim", "Lee", "Ann", "1500"}
    assert "123" not in identifying_values(ds)


def test_what_is_remembered_of_one_object_changes_nothing_in_the_next() -> None:
    first, second = Dataset(), Dataset()
    first.StudyDescription, second.StudyDescription = "Kowalski", "Kowalski"
    second.Manufacturer, second.PatientComments = "KOWALSKI", "Kowalski"
    known = ["Kowalski"]
    apart = {finding for ds in (first, second) for finding in residual_phi([ds], known=known)}
    assert residual_phi([first, second], known=known) == sorted(apart)
