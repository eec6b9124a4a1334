"""A reader with a keyboard alone, in a real browser: from the worklist through ten cases to another dataset."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from med_assets.catalog import Catalog
from med_assets.records import ReaderDecision
from med_assets.settings import Workspace
from tests.med_assets.review.builders import CaseRow, add_cases
from tests.med_assets.review.viewing.builders import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

P = "lumbar_mr"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def selected(page: "Page") -> str:
    return page.locator("tr[aria-current]").get_attribute("data-case") or ""


def opened(page: "Page", case: str) -> None:
    page.locator(f'body[data-keys] #case[data-case="{case}"]').wait_for(state="attached")


def progress(page: "Page", n: int) -> None:
    page.get_by_text(f"{n} of 12 read").wait_for()


def test_a_reader_goes_through_ten_cases_with_the_keyboard_and_the_dataset_changes(
    workspace: Workspace, chromium: "Browser"
) -> None:
    cases = [f"a{n:02}" for n in range(12)]
    add_cases(workspace, P, [CaseRow(case, warnings="<b>few</b> slices") for case in cases])
    catalog = Catalog(workspace, P)
    context = chromium.new_context(viewport={"width": 1200, "height": 800})
    complaints: list[str] = []
    with served(workspace) as address:
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(f"{address}/{P}/?sort=case")
        page.locator("body[data-keys]").wait_for()
        progress(page, 0)
        press = page.keyboard.press
        press("j")
        press("j")
        press("k")
        assert selected(page) == "a01"
        press("?")
        page.locator("#help-dialog[open]").wait_for()
        press("Escape")
        press("a")
        progress(page, 1)
        assert selected(page) == "a01", "the list stays where it was"
        press("j")
        press("e")
        page.keyboard.type("motion, <i>much</i>")
        press("Enter")
        progress(page, 2)
        press("j")
        press("r")
        page.keyboard.press("s")  # the first finding that starts so
        press("Enter")
        progress(page, 3)
        press("j")
        press("Enter")
        for n, case in enumerate(cases[4:11]):
            opened(page, case)
            press("a")
            if n % 2:
                progress(page, 4 + n)
                page.get_by_role("cell", name="accept", exact=True).wait_for()
            press("j")  # which waits until the decision is recorded
        opened(page, "a11")
        press("u")
        page.locator("body[data-keys] #worklist").wait_for()
        progress(page, 10)
        assert selected(page) == "a11"
        assert "motion, <i>much</i>" in page.locator('tr[data-case="a02"]').inner_text()
        until(lambda: "a02" not in {case.case_id for case in catalog.dataset().cases})
    context.close()
    assert complaints == []
    made = {row.case_id: (row.decision, row.note) for row in catalog.rows(ReaderDecision)}
    assert made == {
        **dict.fromkeys(cases[4:11], ("accept", "")),
        "a01": ("accept", ""), "a02": ("exclude", "motion, <i>much</i>"), "a03": ("sacralised", ""),
    }  # fmt: skip
    assert [case.case_id for case in catalog.dataset().cases] == [case for case in cases if case != "a02"]
