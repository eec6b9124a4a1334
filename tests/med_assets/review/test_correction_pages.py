"""The DICOM files of a case are downloaded from its page, and a corrected label comes back through it."""

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from starlette.testclient import TestClient

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.records import CaseVersion, ReaderDecision
from med_assets.review import correction_pages
from med_assets.settings import Workspace
from tests.med_assets.review.builders import client, token_of
from tests.med_assets.review.viewing.builders import served
from tests.med_assets.stages.builders import edit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

P = "breast_us"


@pytest.fixture
def home(workspace: Workspace) -> tuple[Workspace, CaseVersion, TestClient]:
    program.get(P).write_phantoms(workspace.landing / P, 2, 1)
    case = taken(workspace)[0]
    return workspace, case, client(workspace)


def taken(ws: Workspace) -> list[CaseVersion]:
    from med_assets.landing import batches

    batch = batches.take(ws, P, batches.untaken(ws, P), 4e9)
    stages.intake(ws, P, batch)
    stages.prepare(ws, P, batch)
    stages.dataset(ws, P)
    stages.splits(ws, P)
    return Catalog(ws, P).case_versions(batch)


def downloaded(browser: TestClient, case: CaseVersion, folder: Path) -> dict[str, Path]:
    answered = browser.get(f"/{P}/cases/{case.case_id}/dicom.zip")
    assert answered.status_code == 200
    assert answered.headers["content-disposition"] == f'attachment; filename="{P}-{case.case_id}.zip"'
    zipfile.ZipFile(io.BytesIO(answered.content)).extractall(folder)
    return {pydicom.dcmread(path).Modality: path for path in folder.rglob("*.dcm")}


def redrawn(ds: Dataset) -> None:
    """A mask of which half is gone, under UIDs of its own."""
    pixels = bytearray(ds.PixelData)
    pixels[len(pixels) // 2 :] = bytes(len(pixels) - len(pixels) // 2)
    ds.PixelData = bytes(pixels)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()


def test_a_segmentation_that_was_downloaded_and_redrawn_is_a_new_version_with_its_reader(
    home: tuple[Workspace, CaseVersion, TestClient], tmp_path: Path
) -> None:
    ws, case, browser = home
    parts = downloaded(browser, case, tmp_path / "downloaded")
    edit(parts["SEG"], redrawn)
    address = f"/{P}/cases/{case.case_id}"
    assert "Submit the correction" in browser.get(address).text
    token = token_of(browser, address)
    answered = browser.post(
        f"{address}/correction?note=lower+border",
        content=parts["SEG"].read_bytes(),
        headers={"X-Review-Token": token, "X-Partial": "true"},
    )
    assert answered.status_code == 201, answered.text
    [row] = Catalog(ws, P).rows(ReaderDecision)
    assert (row.decision, row.reader, row.note, row.version) == ("correct", "reader one", "lower border", case.version)
    [after] = taken(ws)
    assert (after.case_id, after.parent, after.status) == (case.case_id, case.version, "ok")
    assert after.version != case.version
    members = {one.case_id: one.version for one in Catalog(ws, P).dataset().cases}
    assert members[case.case_id] == after.version
    assert len(members) == 2
    assert "corrects version" in browser.get(address).text


def test_a_reader_corrects_a_case_in_a_browser_and_the_dataset_changes(
    home: tuple[Workspace, CaseVersion, TestClient], chromium: "Browser", tmp_path: Path
) -> None:
    ws, case, _ = home
    context = chromium.new_context(accept_downloads=True)
    with served(ws) as address:
        page = context.new_page()
        page.goto(f"{address}/{P}/cases/{case.case_id}")
        page.locator("body[data-keys]").wait_for(state="attached")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download the case as DICOM").click()
        zipfile.ZipFile(download.value.path()).extractall(tmp_path / "downloaded")
        [seg] = [path for path in (tmp_path / "downloaded").rglob("*.dcm") if pydicom.dcmread(path).Modality == "SEG"]
        edit(seg, redrawn)
        page.locator("#correction input[type=file]").set_input_files(seg)
        page.locator("#correction input[name=note]").fill("lower border")
        page.get_by_role("button", name="Submit the correction").click()
        page.get_by_text("lies in the landing zone").wait_for()
        page.get_by_role("cell", name="correct", exact=True).wait_for()
        [after] = taken(ws)
        page.reload()
        page.get_by_text(f"corrects version {case.version}").wait_for()
    context.close()
    assert (after.case_id, after.parent) == (case.case_id, case.version)
    assert {one.version for one in Catalog(ws, P).dataset().cases if one.case_id == case.case_id} == {after.version}


def test_uploads_need_the_token_and_are_bounded_and_of_this_case(
    home: tuple[Workspace, CaseVersion, TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, case, browser = home
    parts = downloaded(browser, case, tmp_path / "downloaded")
    address = f"/{P}/cases/{case.case_id}/correction"
    seg, token = parts["SEG"].read_bytes(), token_of(browser)
    assert browser.post(address, content=seg).status_code == 403
    headers = {"X-Review-Token": token, "X-Partial": "true"}
    refused = browser.post(address, content=b"<script>alert(1)</script>", headers=headers)
    assert (refused.status_code, refused.headers["content-type"].partition(";")[0]) == (422, "text/plain")
    assert browser.post(address, content=parts["US"].read_bytes(), headers=headers).status_code == 422
    [other] = [one for one in Catalog(ws, P).case_versions() if one.case_id != case.case_id]
    wrong = browser.post(f"/{P}/cases/{other.case_id}/correction", content=seg, headers=headers)
    assert (wrong.status_code, case.case_id in wrong.text) == (422, True)
    monkeypatch.setattr(correction_pages, "MAX_LABEL_BYTES", 100)
    assert browser.post(address, content=seg, headers=headers).status_code == 413
    assert browser.get(f"/{P}/cases/none/dicom.zip").status_code == 404
    assert browser.get(f"/{P}/cases/..%2F..%2Fkey/dicom.zip").status_code == 404
    assert Catalog(ws, P).rows(ReaderDecision) == []
    assert not list((ws.landing / P).glob("*correction*"))
    assert not [path for path in ws.home.rglob("*.zip") if path.is_file()]
