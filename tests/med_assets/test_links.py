"""Links from cases to patients: off by default, encrypted, outside of the home, and every use on record."""

from pathlib import Path

import pydicom
import pytest

from med_assets.catalog import Catalog
from med_assets.cli.main import main
from med_assets.deidentification import audit_trail
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.links import LinkTable
from med_assets.deidentification.relink import Header
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace
from tests.cases.test_to_predict import files_of, phantoms
from tests.invented import ingest

PROGRAM = "breast_us"


@pytest.fixture
def linked(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that keeps links."""
    monkeypatch.setenv("MED_ASSETS_LINKS", str(tmp_path / "links"))
    return Workspace.from_env()


def header(study: str, *uids: str, **texts: str) -> Header:
    return Header(study, uids, texts)


def test_links_are_off_by_default(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="MED_ASSETS_LINKS"):
        LinkTable(workspace)
    assert main(["link", "--study", "1.2.3"]) == 1
    assert "MED_ASSETS_LINKS" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["home/links", "."])
def test_links_lie_neither_in_the_home_nor_around_it(
    where: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_LINKS", str(tmp_path / where))
    with pytest.raises(ConfigurationError, match="in the home or around it"):
        LinkTable(Workspace.from_env())


def test_a_folder_that_others_read_is_refused(linked: Workspace, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links").chmod(0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        LinkTable(linked)


def test_a_link_is_unreadable_without_its_key_and_in_another_place(
    linked: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = LinkTable(linked)
    links.add(PROGRAM, "c1", [header("1.2.3", "1.2.3.4", PatientID="Invented-77")])
    links.add(PROGRAM, "c1", [header("1.2.3", "1.2.3.5", StudyID="9"), header("1.2.8", "1.2.8.1")])
    links.add(PROGRAM, "c2", [header("1.2.9", "1.2.9.1")])
    (path, other) = sorted((tmp_path / "links").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert path.stat().st_mode & 0o777 == 0o600
    for secret in (b"Invented-77", b"1.2.3.4", b"c1"):
        assert secret not in path.read_bytes() + path.name.encode()
    found = links.get(PROGRAM, "c1")
    assert found is not None
    assert found.headers == (
        header("1.2.3", "1.2.3.4", "1.2.3.5", PatientID="Invented-77", StudyID="9"),
        header("1.2.8", "1.2.8.1"),
    )
    other.write_bytes(path.read_bytes())
    with pytest.raises(ConfigurationError, match="another key, or a damaged file"):
        links.get(PROGRAM, "c2")
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "72c2a7c2f19d60a5be84f103")
    with pytest.raises(ConfigurationError, match="another key, or a damaged file"):
        list(LinkTable(Workspace.from_env())._all())


def test_a_case_leads_to_its_study_and_back_and_every_use_is_on_record(
    linked: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_PERSON", "physicist one")
    (source,) = phantoms(linked.landing / PROGRAM, PROGRAM, 1, 5)
    original = pydicom.dcmread(files_of(source)[0])
    ingest(linked, PROGRAM)
    (case,) = Catalog(linked, PROGRAM).case_versions()
    capsys.readouterr()

    assert main(["link", case.case_id]) == 0
    shown = capsys.readouterr().out
    here = Deidentifier(linked.key).uid(original.StudyInstanceUID)
    assert f"study {original.StudyInstanceUID}, here {here}" in shown
    assert f"PatientID: {original.PatientID}" in shown

    for uid in (original.StudyInstanceUID, here):
        assert main(["link", "--study", uid]) == 0
        shown = capsys.readouterr().out
        assert case.case_id in shown
        assert f"pseudonym of the study: {here}" in shown

    uses = [entry for entry in audit_trail.entries(linked) if entry.kind == audit_trail.Kind.LINK]
    assert [(entry.subject, entry.person, entry.content["purpose"]) for entry in uses] == [
        (case.case_id, "physicist one", "case to study"),
        (here, "physicist one", "study to cases"),
        (here, "physicist one", "study to cases"),
    ]
    assert audit_trail.verify(linked) == []
    secrets = [original.StudyInstanceUID.encode(), original.PatientID.encode()]
    for path in linked.home.rglob("*"):
        if path.is_file() and linked.landing not in path.parents:
            assert not any(secret in path.read_bytes() for secret in secrets), path.name
