"""A corrected label that comes alone is a new version of its case, whichever images it names, and costs that case alone."""

import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.records import CaseVersion, ReaderDecision
from med_assets.review.corrections import export_case, submit
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, edit, files, ingest, intake, take

EDITOR = "Quimbleton^Zephyrine"


def versions(ws: Workspace, batch: str) -> list[CaseVersion]:
    return Catalog(ws, P).case_versions(batch)


def moved(ds: Dataset, by_mm: float = 4.0) -> None:
    """Another shape of the first structure, made by another station, under UIDs of its own."""
    contour = ds.ROIContourSequence[0].ContourSequence[0]
    points = [float(value) for value in contour.ContourData]
    contour.ContourData = [value + by_mm * (number % 3 == 0) for number, value in enumerate(points)]
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.OperatorsName = EDITOR


def alone(ws: Workspace, source: Path, name: str = "corrected") -> Path:
    """A structure set alone in the landing zone, corrected."""
    folder = ws.landing / P / name
    folder.mkdir(parents=True)
    target = folder / "rtstruct.dcm"
    shutil.copy(source, target)
    edit(target, moved)
    return target


def stored(ws: Workspace, case: CaseVersion) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(ws.store.fetch(case.artifact).glob("*.dcm")):
        found.setdefault(pydicom.dcmread(path, stop_before_pixels=True).Modality, []).append(path)
    return found


@pytest.fixture
def sent(workspace: Workspace) -> tuple[Workspace, CaseVersion, dict[str, Path]]:
    """Two cases in the dataset, the first of them, and its objects as they were sent."""
    folder = drop(workspace, 1)
    drop(workspace, 2)
    batch = ingest(workspace)
    objects = {modality: files(folder, modality)[0] for modality in ("CT", "RTSTRUCT", "RTPLAN")}
    patient = pydicom.dcmread(objects["CT"], stop_before_pixels=True).SeriesInstanceUID
    assert patient
    struct = pydicom.dcmread(objects["RTSTRUCT"])
    from med_assets.deidentification.deidentify import Deidentifier

    pseudonym = Deidentifier(workspace.key).pseudonym(struct.PatientID)
    [case] = [row for row in versions(workspace, batch) if row.patient_id == pseudonym]
    return workspace, case, objects


@pytest.mark.parametrize("drawn_on", ["original images", "stored images"])
def test_a_structure_set_alone_is_a_new_version_of_its_case_and_computes_that_case_alone(
    sent: tuple[Workspace, CaseVersion, dict[str, Path]], drawn_on: str
) -> None:
    ws, before, objects = sent
    split = ws.lake.rows("splits", P)
    [old_struct] = stored(ws, before)["RTSTRUCT"]
    alone(ws, objects["RTSTRUCT"] if drawn_on == "original images" else old_struct)
    batch = ingest(ws)
    [after] = versions(ws, batch)
    assert (after.reason_code, after.reason) == (None, None)
    assert (after.case_id, after.patient_id, after.parent) == (before.case_id, before.patient_id, before.version)
    assert after.status == "ok"
    assert after.version != before.version
    assert after.images_hash == before.images_hash
    assert [case.version for case in Catalog(ws, P).dataset().cases if case.case_id == before.case_id] == [
        after.version
    ]
    assert len(Catalog(ws, P).dataset().cases) == 2
    assert len(Catalog(ws, P).prepared(batch)) == 1
    assert ws.lake.rows("splits", P) == split
    now, then = stored(ws, after), stored(ws, before)
    for modality in ("CT", "RTPLAN", "RTDOSE"):
        assert [path.read_bytes() for path in now[modality]] == [path.read_bytes() for path in then[modality]]
    [new_struct] = now["RTSTRUCT"]
    assert new_struct.read_bytes() != old_struct.read_bytes()
    content = b"".join(path.read_bytes() for paths in now.values() for path in paths)
    assert b"Quimbleton" not in content
    assert pydicom.dcmread(objects["RTSTRUCT"]).PatientID.encode() not in content


def test_both_ways_give_the_same_shape(sent: tuple[Workspace, CaseVersion, dict[str, Path]]) -> None:
    ws, before, objects = sent
    [old_struct] = stored(ws, before)["RTSTRUCT"]
    contours = []
    for number, source in enumerate((objects["RTSTRUCT"], old_struct)):
        alone(ws, source, f"corrected-{number}")
        batch, _ = intake(ws)
        [after] = versions(ws, batch)
        [struct] = stored(ws, after)["RTSTRUCT"]
        ds = pydicom.dcmread(struct)
        contours.append([float(value) for value in ds.ROIContourSequence[0].ContourSequence[0].ContourData])
        refers = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        images = {pydicom.dcmread(path).SOPInstanceUID for path in stored(ws, after)["CT"]}
        assert {one.ReferencedSOPInstanceUID for one in refers.ContourImageSequence} <= images
        assert ds.StudyInstanceUID == pydicom.dcmread(old_struct).StudyInstanceUID
    assert contours[0] == pytest.approx(contours[1])


def test_taking_the_batch_in_again_gives_the_same_version(
    sent: tuple[Workspace, CaseVersion, dict[str, Path]],
) -> None:
    ws, before, objects = sent
    alone(ws, objects["RTSTRUCT"])
    batch, _ = intake(ws)
    first = versions(ws, batch)
    assert versions(ws, batch)[0].parent == before.version
    again = stages.intake(ws, P, batch)
    assert versions(ws, batch) == first
    assert again.counts["reused"] == 1


def test_a_label_of_no_stored_case_is_refused_with_what_to_do(
    sent: tuple[Workspace, CaseVersion, dict[str, Path]],
) -> None:
    ws, _, objects = sent
    other = alone(ws, objects["RTSTRUCT"], "other-images")

    def elsewhere(ds: Dataset) -> None:
        refers = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        for one in refers.ContourImageSequence:
            one.ReferencedSOPInstanceUID = generate_uid()
        for roi in ds.ROIContourSequence:
            for contour in roi.ContourSequence:
                contour.pop("ContourImageSequence", None)

    edit(other, elsewhere)
    stranger = alone(ws, objects["RTSTRUCT"], "other-patient")
    edit(stranger, lambda ds: setattr(ds, "PatientID", "somebody-else"))
    batch = take(ws)
    result = stages.intake(ws, P, batch)
    found = sorted(str(row.reason_code) for row in versions(ws, batch))
    assert found == ["no_case_to_correct", "no_ct"]
    assert "draw it on the images that are stored" in str(result.tables["quarantine"]["reason"].tolist())
    assert len(Catalog(ws, P).dataset().cases) == 2


def test_a_label_that_came_before_its_images_is_taken_when_it_is_sent_again(workspace: Workspace) -> None:
    ws = workspace
    folder = drop(ws, 1)
    label = alone(ws, files(folder, "RTSTRUCT")[0])
    shutil.move(folder, ws.home.parent / "later")
    early, _ = intake(ws)
    assert [row.reason_code for row in versions(ws, early)] == ["no_ct"]
    shutil.move(ws.home.parent / "later", folder)
    ingest(ws)
    shutil.copytree(label.parent, ws.landing / P / "again")
    batch, _ = intake(ws)
    assert [(row.status, bool(row.parent)) for row in versions(ws, batch)] == [("ok", True)]


def test_two_corrections_of_a_case_in_one_batch_are_ambiguous(
    sent: tuple[Workspace, CaseVersion, dict[str, Path]],
) -> None:
    ws, before, objects = sent
    alone(ws, objects["RTSTRUCT"], "first")
    second = alone(ws, objects["RTSTRUCT"], "second")
    edit(second, lambda ds: moved(ds, 9.0))
    batch = ingest(ws)
    assert [row.reason_code for row in versions(ws, batch)] == ["two_versions"]
    [case] = [one for one in Catalog(ws, P).dataset().cases if one.case_id == before.case_id]
    assert case.version == before.version


def test_a_reader_submits_a_correction_of_an_exported_case_and_is_recorded_with_it(
    sent: tuple[Workspace, CaseVersion, dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws, before, _ = sent
    exported = export_case(ws, P, before.case_id, tmp_path / "exported")
    [struct] = [path for path in exported if pydicom.dcmread(path, stop_before_pixels=True).Modality == "RTSTRUCT"]
    edit(struct, moved)
    submitted = submit(ws, P, before.case_id, struct, "rectum redrawn", "reader two")
    again = submit(ws, P, before.case_id, struct, "rectum redrawn", "reader two")
    assert again.entry == submitted.entry
    batch = ingest(ws)
    [after] = versions(ws, batch)
    assert (after.parent, submitted.decision.version) == (before.version, before.version)
    assert submitted.decision.reader == "reader two"
    story = explain_case(ws, before.case_id)
    assert f"corrects version {before.version}, submitted by reader two" in story
    assert "rectum redrawn" in story
    assert [path.name for path in (ws.landing / P).iterdir() if path.name.startswith(".")] == []


def test_what_is_no_label_of_the_case_is_not_submitted(
    sent: tuple[Workspace, CaseVersion, dict[str, Path]], tmp_path: Path
) -> None:
    ws, before, objects = sent
    [other] = [row for row in Catalog(ws, P).dataset().cases if row.case_id != before.case_id]
    (tmp_path / "text.dcm").write_text("no DICOM")
    for label, case_id, expected in (
        (objects["CT"], before.case_id, "RTSTRUCT or SEG"),
        (tmp_path / "text.dcm", before.case_id, "can't be read"),
        (objects["RTSTRUCT"], other.case_id, f"got one of case {before.case_id}"),
        (tmp_path / "none.dcm", before.case_id, "got none"),
    ):
        with pytest.raises(ConfigurationError, match=expected):
            submit(ws, P, case_id, label)
    assert not list((ws.landing / P).glob("correction-*"))
    assert Catalog(ws, P).rows(ReaderDecision) == []
