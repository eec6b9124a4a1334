"""Every file of a folder is an instance or a rejection with a reason, by its content and never by its name."""

import os
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from med_assets.dicom import discover
from med_assets.dicom.discover import describe, load, scan
from med_assets.dicom.parsing import Shelf
from med_assets.errors import CaseRejected


def put(folder: Path, name: str, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(get_testdata_file(source), folder / name))


def rejected(folder: Path) -> list[str]:
    return [rejection.code for rejection in scan(folder).rejected]


def test_objects_are_found_by_content_in_nested_folders_whatever_their_names(tmp_path):
    put(tmp_path / "a" / "b", "notes.txt", "CT_small.dcm")
    put(tmp_path / "a", "IM0001", "rtplan.dcm")
    put(tmp_path, "dose.jpg", "rtdose.dcm")
    found = scan(tmp_path)
    assert [instance.modality for instance in found.instances] == ["RTPLAN", "CT", "RTDOSE"]
    assert found.rejected == ()
    ct = found.instances[1]
    truth = pydicom.dcmread(ct.path)
    assert (ct.sop_instance_uid, ct.series_uid) == (truth.SOPInstanceUID, truth.SeriesInstanceUID)
    assert (ct.study_uid, ct.patient_id) == (truth.StudyInstanceUID, truth.PatientID)
    assert ct.frame_of_reference_uid == truth.FrameOfReferenceUID


def test_headers_of_few_series_are_kept_and_each_file_is_described_as_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(discover, "MOST_SERIES", 2)
    for number in range(12):
        ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        ds.SOPInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.4.{number % 4}"
        ds.save_as(tmp_path / f"{number:02d}")
    shelf, kept = Shelf(1 << 30), []

    def before(path: Path) -> None:
        shelf.start(path)
        kept.append(len(shelf.described))

    found = scan(tmp_path, before, shelf)
    assert found == scan(tmp_path)
    assert len(found.instances) == 12
    assert max(kept) == 2


def test_references_and_the_frame_of_reference_come_from_the_objects_own_sequences(tmp_path):
    put(tmp_path, "1", "rtdose.dcm")
    put(tmp_path, "2", "rtstruct.dcm")
    dose, structures = scan(tmp_path).instances
    assert dose.referenced_sops == ("1.2.123.456.78.9.0123.4567.89012345678901",)
    whole = load(structures.path)
    assert structures.frame_of_reference_uid == whole.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    assert structures.referenced_sops == ()
    assert describe(whole, structures.path) == structures


def test_a_structure_set_refers_to_its_images_and_not_to_its_study():
    ds = load(Path(get_testdata_file("rtstruct.dcm")))
    images = [Dataset(), Dataset()]
    for uid, image in zip(("1.2.3", "1.2.4"), images, strict=True):
        image.ReferencedSOPInstanceUID = uid
    ds.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = images[:1]
    assert describe(ds).referenced_sops == ("1.2.3",)
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].ContourImageSequence = images
    assert describe(ds).referenced_sops == ("1.2.3", "1.2.4")


def test_a_file_that_is_not_dicom_is_rejected_without_its_name(tmp_path):
    (tmp_path / "DOE_JANE.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "preamble only").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "starts alike").write_bytes(b"\x08\x00" + os.urandom(2000))
    found = scan(tmp_path)
    assert {rejection.code for rejection in found.rejected} <= {"not_dicom", "truncated_file", "missing_uid"}
    assert len(found.rejected) == 4
    assert not any("DOE" in rejection.message for rejection in found.rejected)


@pytest.mark.parametrize(
    "source", ["CT_small.dcm", "693_J2KI.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm", "rtdose.dcm", "rtstruct.dcm"]
)
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_a_truncated_file_is_rejected_from_its_header_alone(tmp_path, source, keep):
    path = put(tmp_path, "file", source)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert rejected(tmp_path)[0] in {"truncated_file", "missing_uid"}
    with pytest.raises(CaseRejected):
        load(path)


def test_pydicoms_own_truncated_files_are_rejected(tmp_path):
    put(tmp_path, "1", "MR_truncated.dcm")
    put(tmp_path, "2", "rtplan_truncated.dcm")
    assert rejected(tmp_path) == ["truncated_file", "truncated_file"]


def test_the_same_object_sent_twice_is_taken_once(tmp_path):
    put(tmp_path, "1", "CT_small.dcm")
    put(tmp_path, "2", "CT_small.dcm")
    assert rejected(tmp_path) == ["duplicate_instance"]
    assert len(scan(tmp_path).instances) == 1


def test_a_link_to_a_file_is_refused_since_it_may_lead_out_of_the_landing_zone(tmp_path):
    outside = put(tmp_path / "outside", "file", "CT_small.dcm")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "1").symlink_to(outside)
    assert rejected(tmp_path / "inside") == ["file_link"]
    assert not scan(tmp_path / "inside").instances


def test_links_to_folders_pipes_directories_of_media_and_objects_without_uids_are_rejected(tmp_path):
    outside = put(tmp_path / "outside", "file", "CT_small.dcm")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "1").symlink_to(outside.parent)
    (inside / "4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(inside / "5")
    put(inside, "2", "dicomdirtests/DICOMDIR")
    ds = pydicom.dcmread(outside)
    del ds.SeriesInstanceUID
    ds.save_as(inside / "3")
    assert rejected(inside) == ["folder_link", "directory_file", "missing_uid", "file_link", "not_plain_file"]


def test_a_file_without_meta_header_loads_with_the_syntax_it_was_written_in(tmp_path):
    path = tmp_path / "bare"
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    buffer = DicomBytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=False)
    whole = buffer.getvalue()
    start = whole.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in whole else whole.index(b"\x08\x00\x08\x00")
    path.write_bytes(whole[start:])
    loaded = load(path)
    assert loaded.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
    assert (loaded.pixel_array == ds.pixel_array).all()
