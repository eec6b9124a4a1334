"""The worklist: which cases are on it and why, what a reader asks of it, and that it is fast."""

import re
import time
from collections.abc import Iterator

import pandas as pd
import pytest
from starlette.testclient import TestClient

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.records import Calibration, CaseConfidence, CaseScore, Champion, Status
from med_assets.review.decisions import decide
from med_assets.review.worklist import TOP, Asked, Why, listed, worklist
from med_assets.screening.stage import TABLE, folder_of
from med_assets.settings import Workspace
from med_assets.storage.files import write_text
from tests.med_assets.review.builders import CaseRow, add_cases, client, token_of

P, CHECKPOINT, ME = "rt_dose", "checkpoint/0123", "reader one"


def add_champion(ws: Workspace, cases: list[str]) -> None:
    """Scores and confidence of a champion: the first case is the worst and the least certain, and far from training."""
    catalog, metric = Catalog(ws, P), program.get(P).primary_metric
    keys = {"program": P, "experiment": "baseline", "checkpoint": CHECKPOINT}
    given = {
        "dataset_version": "0",
        "n_train": 1,
        "promoted_at": "2026-01-01T00:00:00+00:00",
        "action": "promoted",
        "reason": "better",
    }
    catalog.replace(Champion, [Champion.of(keys | given)])
    better = range(len(cases)) if not metric.lower_is_better else range(len(cases), 0, -1)
    score = {"metric": metric.name, "subject": metric.subject, "unit": metric.unit, "convention": "its definition"}
    rows = [
        CaseScore.of(keys | score | {"case_id": case, "patient_id": f"p{case}", "split": "val", "value": float(value)})
        for case, value in zip(cases, better, strict=True)
    ]
    catalog.replace(CaseScore, rows, "baseline")
    confidences = [
        CaseConfidence.of(
            keys | {"case_id": case, "patient_id": f"p{case}", "split": "val", "confidence": 1.0, "flags": "far" if n == 0 else ""}
            | {"probability": 0.1 + 0.8 * n / len(cases), "distance": 9.0 - n}
        )
        for n, case in enumerate(cases)
    ]  # fmt: skip
    catalog.replace(CaseConfidence, confidences, "baseline")
    calibration = {
        "definition": "d",
        "metric": metric.name,
        "n": 9,
        "n_acceptable": 5,
        "note": "",
        "n_train": 9,
        "distance_limit": 8.5,
    }
    catalog.replace(
        Calibration, [Calibration.of(keys | calibration | {"dataset_version": "0", "code_version": "1"})], "baseline"
    )


@pytest.fixture
def browser(ws: Workspace) -> Iterator[TestClient]:
    with client(ws) as found:
        yield found


def ids(ws: Workspace, **asked: str) -> list[str]:
    return [case.case_id for case in listed(worklist(Catalog(ws, P)), Asked(**asked), ME).cases]


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    add_cases(
        workspace, P,
        [CaseRow("a1"), CaseRow("a2", warnings="few slices"), CaseRow("a3"), CaseRow("b1", Status.QUARANTINED, "no dose")],
    )  # fmt: skip
    add_champion(workspace, ["a1", "a2", "a3"])
    table = pd.DataFrame({"case_id": ["a3", "a1"], "rank": [1, 2], "risk": ["high", "low"], "other": [1.0, 2.0]})
    write_text(folder_of(workspace, P) / TABLE, table.to_csv(index=False))
    return workspace


def test_each_list_has_its_cases_in_its_order_with_the_reason(ws: Workspace) -> None:
    assert ids(ws, why="quarantined") == ["b1"]
    assert ids(ws, why="audit") == ["a2"]
    assert ids(ws, why="uncertain") == ["a1", "a2", "a3"]
    assert ids(ws, why="worst") == ["a1", "a2", "a3"]
    assert ids(ws, why="screening") == ["a3", "a1"]
    assert ids(ws, why="drift") == ["a1"]
    assert ids(ws) == ["b1", "a2", "a1", "a3"], "by list, then by the place there"
    found = {case.case_id: {mark.why: mark.text for mark in case.marks} for case in worklist(Catalog(ws, P)).cases}
    assert found["b1"][Why.QUARANTINED] == "geometry: no dose"
    assert found["a1"][Why.UNCERTAIN] == "acceptable with a probability of 0.10; far"
    assert found["a3"][Why.SCREENING] == "rank 1 of 2, risk high"
    assert found["a1"][Why.DRIFT].startswith("9 SD from the training cases")


def test_a_reader_filters_searches_and_sorts(ws: Workspace) -> None:
    assert ids(ws, why="all", state="quarantined") == ["b1"]
    assert ids(ws, text="FEW") == ["a2"]
    assert ids(ws, text="b1") == ["b1"]
    assert ids(ws, sort="case") == ["a1", "a2", "a3", "b1"]
    decide(ws, P, "a2", "accept", "", ME)
    decide(ws, P, "a3", "accept", "", "another")
    decide(ws, P, "a1", "comment", "hm", ME)
    assert ids(ws, read="unread", sort="case") == ["a1", "a3", "b1"], "a comment is no reading"
    assert ids(ws, read="read") == ["a2"]
    assert ids(ws, read="nobody", sort="case") == ["a1", "b1"]
    found = listed(worklist(Catalog(ws, P), 9), Asked(read="unread"), ME)
    assert (found.read, found.in_question, found.counts[Why.WORST]) == (1, 4, 3)
    assert listed(worklist(Catalog(ws, P)), Asked(sort="case"), ME).around("a2") == ("a1", "a3")


def test_the_page_shows_the_progress_and_one_link_to_each_case(ws: Workspace, browser: TestClient) -> None:
    page = browser.get(f"/{P}/?sort=case").text
    assert "0 of 4 read" in page
    assert re.findall(rf'<a href="/{P}/cases/(\w+)\?sort=case">', page) == ["a1", "a2", "a3", "b1"]
    headers = {"x-review-token": token_of(browser), "x-partial": "true"}
    browser.post(f"/{P}/cases/a1/decisions", data={"decision": "exclude", "note": "motion"}, headers=headers)
    part = browser.get(f"/{P}/", headers={"x-partial": "true"}).text
    assert "1 of 4 read" in part
    assert "<html" not in part
    case = browser.get(f"/{P}/cases/a2?sort=case&read=unread").text
    assert f'rel="prev" href="/{P}/cases/a1?read=unread&amp;sort=case"' in case
    assert f'rel="next" href="/{P}/cases/a3?read=unread&amp;sort=case"' in case


def test_what_a_query_holds_is_text(ws: Workspace) -> None:
    page = client(ws).get(f"/{P}/?text=%22%3E%3Cscript%3E&why=%3Cb%3E&page=-1&sort=drop").text
    assert "<script>" not in page
    assert "<b>" not in page
    assert client(ws).get(f"/{P}/?page=99999999999999999999").status_code == 200


@pytest.mark.parametrize("name", program.registered())
def test_every_program_has_a_worklist(workspace: Workspace, name: str) -> None:
    add_cases(workspace, name, [CaseRow("b1", Status.QUARANTINED, "no image")])
    assert "no image" in client(workspace).get(f"/{name}/").text


@pytest.mark.slow
def test_ten_thousand_cases_are_listed_at_once(workspace: Workspace) -> None:
    cases = [CaseRow(f"c{n:05}", Status.QUARANTINED, "no dose") for n in range(10_000)]
    add_cases(workspace, P, cases)
    add_champion(workspace, [case.case_id for case in cases])
    browser = client(workspace)
    assert len(ids(workspace, why="worst")) == TOP
    decide(workspace, P, "c00007", "comment", "seen", ME)
    browser.get(f"/{P}/")
    started = time.perf_counter()
    page = browser.get(f"/{P}/?page=3").text
    assert time.perf_counter() - started < 2.0
    assert page.count("data-case=") == 50
    assert "of 10000 read" in page
