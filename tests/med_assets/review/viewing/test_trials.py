"""A file tried on the champion: the answer of the service, for its session alone, and nothing that is left of it."""

import io
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from med_assets.review.viewing import trials as module
from med_assets.review.viewing.trials import KEPT_S, Trials
from med_assets.serving.service import Busy
from med_assets.settings import Workspace
from tests.cases.test_to_predict import champion, files_of, phantoms
from tests.conftest import settings_of
from tests.med_assets.review.builders import client, token_of
from tests.med_assets.review.viewing.builders import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PROGRAM = "breast_us"
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A home with an untrained champion."""
    ws = Workspace.from_env(settings_of(tmp_path_factory.mktemp("trials") / "home"))
    champion(ws, PROGRAM)
    return ws


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A zip of one phantom."""
    folder, content = tmp_path_factory.mktemp("study"), io.BytesIO()
    phantoms(folder, PROGRAM, 1, 5)
    with zipfile.ZipFile(content, "w") as packed:
        for path in files_of(folder):
            packed.write(path, path.relative_to(folder).as_posix())
    return content.getvalue()


@pytest.fixture(scope="module")
def browser(home: Workspace) -> Iterator[TestClient]:
    """A browser on its review page, whose services end with it."""
    with client(home) as found:
        yield found


def send(browser: TestClient, content: bytes, program: str = PROGRAM) -> Any:
    token = token_of(browser, f"/{program}/try")
    return browser.post(f"/{program}/try", content=content, headers={"x-review-token": token, "x-partial": "true"})


def answer(browser: TestClient, trial: str) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE_S
    while (found := browser.get(f"/{PROGRAM}/try/{trial}").json())["state"] not in ("done", "failed"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def left_of_uploads(ws: Workspace) -> list[Path]:
    return list((ws.home / "tmp").glob("scratch-*/upload-*"))


def test_a_study_gets_the_answer_of_the_champion_and_nothing_is_left_of_it(
    browser: TestClient, home: Workspace, study: bytes
) -> None:
    page = browser.get(f"/{PROGRAM}/try").text
    assert "Research use only" in page
    trial = send(browser, study).json()["trial"]
    found = answer(browser, trial)
    (case,) = found["cases"]
    assert case["status"] == "predicted", case
    assert "highest probability" in case["measured"]
    assert any("confidence" in name for name in case["measured"])
    base = f"/{PROGRAM}/try/{trial}/files"
    picture = next(name for name in case["files"] if name.endswith(".png"))
    assert browser.get(f"{base}/{picture}").headers["content-type"] == "image/png"
    dicom = next(name for name in case["files"] if name.endswith(".dcm"))
    assert "attachment" in browser.get(f"{base}/{dicom}").headers["content-disposition"]
    assert zipfile.ZipFile(io.BytesIO(browser.get(f"{base}/prediction.zip").content)).testzip() is None
    for name in ("other.png", "../result.json", "..%2f..%2fresult.json", "%2Fetc%2Fhostname"):
        assert browser.get(f"{base}/{name}").status_code == 404
    stranger = client(home)
    assert stranger.get(f"/{PROGRAM}/try/{trial}").status_code == 404, "another session sees nothing of it"
    assert browser.get(f"/rt_dose/try/{trial}").status_code == 404
    assert browser.delete(f"/{PROGRAM}/try/{trial}").status_code == 403, "removing is a write"
    headers = {"x-review-token": token_of(browser, f"/{PROGRAM}/try")}
    assert browser.delete(f"/{PROGRAM}/try/{trial}", headers=headers).status_code == 204
    assert browser.get(f"/{PROGRAM}/try/{trial}").status_code == 404
    assert left_of_uploads(home) == []
    assert not list((home.home / "lake").glob("raw_cases/**/*.parquet"))


def test_what_is_no_study_is_refused_with_a_reason(browser: TestClient, home: Workspace) -> None:
    trial = send(browser, b"no image at all" * 100).json()["trial"]
    found = answer(browser, trial)
    assert found["state"] == "done"
    assert all(case["status"] == "refused" and case["reason"] for case in found["cases"])
    browser.delete(f"/{PROGRAM}/try/{trial}", headers={"x-review-token": token_of(browser, f"/{PROGRAM}/try")})
    assert send(browser, b"").status_code == 400
    assert left_of_uploads(home) == []


def test_an_upload_needs_the_token_a_champion_and_a_bounded_body(
    browser: TestClient, study: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser.post(f"/{PROGRAM}/try", content=study).status_code == 403
    assert send(browser, study, "rt_dose").status_code == 409
    assert "no champion yet" in browser.get("/rt_dose/try").text
    headers = {"x-review-token": token_of(browser), "content-length": str(module.LIMITS.upload_bytes + 1)}
    assert browser.post(f"/{PROGRAM}/try", content=b"x", headers=headers).status_code == 413


def test_an_upload_is_removed_after_a_while_and_places_are_bounded(home: Workspace) -> None:
    now = [0.0]
    trials = Trials(home, lambda: now[0])
    first = [trials.enter(PROGRAM, "s") for _ in range(module.LIMITS.waiting + 1)]
    with pytest.raises(Busy):
        trials.enter(PROGRAM, "s")
    now[0] = KEPT_S + 1
    assert trials.find(first[0].id, "s", PROGRAM) is None
    assert left_of_uploads(home) == []
    trials.enter(PROGRAM, "s")
    trials.close()
    assert left_of_uploads(home) == []


def test_a_file_is_tried_in_the_browser(
    home: Workspace, study: bytes, chromium: "Browser", tmp_path: Path, complaints_of: Callable[[Any], list[str]]
) -> None:
    (tmp_path / "study.zip").write_bytes(study)
    with served(home) as address:
        page = chromium.new_page()
        complaints = complaints_of(page)
        page.goto(f"{address}/{PROGRAM}/try")
        page.set_input_files("#try input", tmp_path / "study.zip")
        page.wait_for_selector("#try-answer img", timeout=PATIENCE_S * 1000)
        assert "Research use only" in page.locator("#try-progress").inner_text()
        assert page.locator("#try-answer table tr").count() > 2
        page.get_by_role("button", name="Remove upload and answer").click()
        page.get_by_text("Removed.").wait_for()
        page.close()
    assert complaints == []
    assert left_of_uploads(home) == []
