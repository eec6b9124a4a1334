"""Chromium without a window, driven by Playwright: tests with it skip where one of both is missing, and fail where NEEDS_CHROMIUM is set."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from med_assets.review import access

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NEEDED = "NEEDS_CHROMIUM"
"""Set where a missing Chromium is a failure."""

PATIENCE_MS = 30_000


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed at the least cost; that of users takes a quarter of a second for each login."""
    monkeypatch.setattr(access, "SCRYPT_N", 16)
    monkeypatch.setattr(access, "UNKNOWN_READER", replace(access.UNKNOWN_READER, n=16))


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """A browser for the tests of a module: as long as Playwright runs, nothing else in this thread can run an event loop."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get(NEEDED):
            pytest.fail(f"expected chromium, since {NEEDED} is set, got none")
        pytest.skip("expected chromium, got none; install Debian's package chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def complaints_of() -> "Callable[[Page], list[str]]":
    """Starts to collect the errors that a page reports, those against its Content-Security-Policy among them."""

    def collect(page: "Page") -> list[str]:
        found: list[str] = []
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
        return found

    return collect


@pytest.fixture
def open_page(chromium: "Browser", complaints_of: "Callable[[Page], list[str]]") -> "Iterator[Callable[[str], Page]]":
    """Opens an address and waits until all viewers on it are complete; what the browser complains of fails the test."""
    complaints: list[list[str]] = []
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})

    def opened(address: str) -> "Page":
        page = context.new_page()
        complaints.append(complaints_of(page))
        page.goto(address)
        page.wait_for_selector('.viewer[data-state="complete"]', timeout=PATIENCE_MS)
        return page

    yield opened
    context.close()
    assert [one for each in complaints for one in each] == []
