"""Two models compared: on which cases they differ, and side by side on one."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from med_assets.catalog import Catalog
from med_assets.program import get
from med_assets.programs.lung_ct.kept import PREDICTION
from med_assets.programs.rt_dose.kept import PREDICTION as DOSE
from med_assets.records import CaseScore
from med_assets.review.viewing.compare import Comparer, dice_of
from med_assets.settings import Workspace
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared as write_lung
from tests.med_assets.review.builders import client
from tests.med_assets.review.viewing.builders import (
    add_case,
    add_prediction,
    add_several,
    served,
    write_placed_dose,
)  # fmt: skip

if TYPE_CHECKING:
    from playwright.sync_api import Page


def keep(mask: np.ndarray, folder: Path) -> None:
    np.save(folder / PREDICTION, np.packbits(mask))


def score(ws: Workspace, experiment: str, values: dict[str, float | None]) -> None:
    metric = get("lung_ct").primary_metric
    rows = [
        CaseScore(
            program="lung_ct", experiment=experiment, checkpoint=f"checkpoint/{experiment}", case_id=case, patient_id=f"p{case}",
            split="val", metric=metric.name, subject=metric.subject, value=value, unit="1", convention="c", truth=None,
            prediction=None, limit=None, passed=None, passed_truth=None, n=None,
        )
        for case, value in values.items()
    ]  # fmt: skip
    Catalog(ws, "lung_ct").replace(CaseScore, rows, experiment)


@pytest.fixture
def two_models(workspace: Workspace) -> Workspace:
    """A home with three cases that two models predicted: alike on a1, shifted on a2, and with scores that differ on a3."""
    ids = ("a1", "a2", "a3")
    keys = add_several(workspace, "lung_ct", {case: partial(write_lung, seed=n) for n, case in enumerate(ids)})
    for case, key in zip(ids, keys, strict=True):
        truth = np.load(workspace.store.fetch(key) / "truth.npy") == 23
        other = {"a1": truth, "a2": np.roll(truth, 30, axis=2), "a3": truth}[case]
        add_prediction(workspace, "lung_ct", key, "foundation", partial(keep, truth))
        add_prediction(workspace, "lung_ct", key, "from_scratch", partial(keep, other))
    score(workspace, "foundation", {"a1": 0.8, "a2": None, "a3": 0.9})
    score(workspace, "from_scratch", {"a1": 0.8, "a2": 0.1, "a3": 0.4})
    return workspace


def test_the_largest_difference_of_scores_is_first_then_the_lowest_dice(two_models: Workspace) -> None:
    found = Comparer(two_models).compare("lung_ct", "foundation", "from_scratch")
    assert [row.case_id for row in found.rows] == ["a3", "a1", "a2"]
    assert [row.change for row in found.rows] == [pytest.approx(-0.5), pytest.approx(0.0), None]
    by_case = {row.case_id: row.dice for row in found.rows}
    assert by_case["a1"] == by_case["a3"] == 1
    dice = by_case["a2"]
    assert dice is not None
    assert dice < 0.5
    assert found.waiting == 0


def test_dice_of_two_empty_masks_is_one() -> None:
    empty, full = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert (dice_of(empty, empty), dice_of(empty, full), dice_of(full, full)) == (1, 0, 1)


def test_the_page_lists_the_cases_and_links_each_to_both_pictures(two_models: Workspace) -> None:
    browser = client(two_models)
    page = browser.get("/lung_ct/compare").text
    links = re.findall(r'href="(/lung_ct/cases/\w+/compare[^"]+)"', page)
    assert [link.split("/")[3] for link in links] == ["a3", "a1", "a2"]
    assert "undefined" in page
    both = browser.get(links[0].replace("&amp;", "&")).text
    assert "view.json?model=foundation" in both
    assert "view.json?model=from_scratch" in both
    assert "Two models with predictions" in browser.get("/rt_dose/compare").text


@pytest.mark.parametrize("query", ["a=foundation&b=other", "a=%3Cb%3E&b=foundation", "a=..%2F..&b=foundation"])
def test_a_model_that_there_is_not_is_not_found(two_models: Workspace, query: str) -> None:
    browser = client(two_models)
    for path in ("/lung_ct/compare", "/lung_ct/cases/a1/compare"):
        answer = browser.get(f"{path}?{query}")
        assert answer.status_code == 404
        assert "<b>" not in answer.text
    assert browser.get("/lung_ct/cases/a9/compare?a=foundation&b=from_scratch").status_code == 404


def test_models_without_masks_are_compared_by_scores_alone(workspace: Workspace) -> None:
    key = add_case(workspace, "rt_dose", write_placed_dose)
    dose = np.load(workspace.store.fetch(key) / "dose.npy")
    for experiment in ("baseline", "mean_dose"):
        add_prediction(workspace, "rt_dose", key, experiment, lambda folder: np.save(folder / DOSE, dose))
    found = Comparer(workspace).compare("rt_dose", "baseline", "mean_dose")
    assert not found.masks
    assert found.waiting == 0
    assert [row.case_id for row in found.rows] == ["a1"]


def test_both_pictures_scroll_and_zoom_together(two_models: Workspace, open_page: "Callable[[str], Page]") -> None:
    with served(two_models) as address:
        page = open_page(f"{address}/lung_ct/cases/a2/compare?a=foundation&b=from_scratch")
        viewers = "[...document.querySelectorAll('.viewer')].map((root) => root.viewer)"
        assert page.evaluate(f"{viewers}.length") == 2
        page.keyboard.press("ArrowDown")
        page.keyboard.press("+")
        page.keyboard.press("3")
        states = page.evaluate(f"{viewers}.map((one) => JSON.stringify([one.cursor, one.zoom, one.window]))")
        assert states[0] == states[1]
        page.locator(".viewer").nth(1).locator("canvas").first.hover()
        page.mouse.wheel(0, 120)
        states = page.evaluate(f"{viewers}.map((one) => JSON.stringify(one.cursor))")
        assert states[0] == states[1]
