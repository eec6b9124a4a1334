"""A suite over facts says what failed, in which cases, and whether that stops the batch."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from med_assets.errors import ConfigurationError
from med_assets.preparation import audit
from med_assets.preparation.audit import KNOWN, audited, expectations_of
from med_assets.preparation.expectations import Expectation, run_suite
from med_assets.settings import Workspace

FACTS = pd.DataFrame(
    {
        "case_id": ["a1", "b2", "c3"],
        "d95_gy": [68.0, 60.0, np.nan],
        "site": ["prostate", "prostate", "brain"],
        "slices": [120, 110, 5],
    },
    index=[7, 7, 9],
)
IN_RANGE = Expectation("d95_gy", "ExpectColumnValuesToBeBetween", {"min_value": 64.0}, "error", "PTV70 is covered")


def test_rows_that_fail_are_named_by_their_case() -> None:
    audit = run_suite(FACTS, [IN_RANGE])
    assert not audit.passed
    assert audit.results[0].failing == ("b2",)
    assert audit.failing == {IN_RANGE.name: ("b2",)}
    assert audit.failing_cases() == ("b2",)


def test_an_undefined_fact_fails_only_where_it_must_be_there() -> None:
    present = Expectation("d95_gy", "ExpectColumnValuesToNotBeNull")
    assert run_suite(FACTS, [present]).results[0].failing == ("c3",)


def test_a_warning_is_reported_and_does_not_fail_the_suite() -> None:
    few = Expectation("slices", "ExpectColumnValuesToBeBetween", {"min_value": 20}, "warn", "enough slices")
    audit = run_suite(FACTS, [few])
    assert audit.passed
    assert not audit.results[0].passed
    assert audit.failing_cases() == ()
    assert audit.failing_cases("warn") == ("c3",)


def test_all_expectations_are_run_and_listed_in_order() -> None:
    sites = Expectation("site", "ExpectColumnValuesToBeInSet", {"value_set": ["prostate", "brain"]}, meaning="known")
    table = run_suite(FACTS, [sites, IN_RANGE]).table()
    assert table["passed"].tolist() == [True, False]
    assert table["meaning"].tolist() == ["known", "PTV70 is covered"]
    assert table["failing"].tolist() == ["", "b2"]
    assert table["n"].tolist() == [3, 3]


def test_an_expectation_about_the_whole_column_holds_every_case_responsible() -> None:
    mean = Expectation("slices", "ExpectColumnMeanToBeBetween", {"min_value": 100})
    result = run_suite(FACTS, [mean]).results[0]
    assert result.failing == ("a1", "b2", "c3")
    assert float(result.observed) == pytest.approx(235 / 3)


def test_an_expectation_of_most_cases_holds_and_says_how_many_do_not_meet_it() -> None:
    most = Expectation("slices", "ExpectColumnValuesToBeBetween", {"min_value": 20, "mostly": 0.5})
    result = run_suite(FACTS, [most]).results[0]
    assert (result.passed, result.observed, result.failing) == (True, "1 of 3 cases do not meet it", ())


def test_an_expectation_that_holds_says_that_no_case_does_not_meet_it_or_what_was_observed() -> None:
    mean = Expectation("slices", "ExpectColumnMeanToBeBetween", {"min_value": 10})
    few = Expectation("slices", "ExpectColumnValuesToBeBetween", {"min_value": 5})
    held, of_all = run_suite(FACTS, [few, mean]).results
    assert (held.passed, held.observed) == (True, "0 of 3 cases do not meet it")
    assert of_all.passed
    assert float(of_all.observed) == pytest.approx(235 / 3)


def test_no_cases_means_nothing_failed() -> None:
    assert run_suite(FACTS.iloc[:0], [IN_RANGE]).passed


@pytest.mark.parametrize(
    ("facts", "expectation", "message"),
    [
        (FACTS, Expectation("d98_gy", "ExpectColumnValuesToNotBeNull"), "d98_gy"),
        (FACTS, Expectation("d95_gy", "ExpectMagic"), "ExpectMagic"),
        (FACTS, Expectation("d95_gy", "ExpectColumnValuesToBeBetween", {"lowest": 3}), "lowest"),
        (FACTS, Expectation("site", "ExpectColumnValuesToBeBetween", {"min_value": 1.0}), "can't be evaluated"),
        (FACTS.drop(columns="case_id"), IN_RANGE, "case_id"),
        (pd.concat([FACTS, FACTS]), IN_RANGE, "one row per case_id"),
    ],
)
def test_a_suite_that_can_not_be_run_says_why(facts: pd.DataFrame, expectation: Expectation, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_suite(facts, [expectation])


def test_importing_the_audit_does_not_import_great_expectations() -> None:
    code = "import sys, med_assets.preparation.expectations; assert 'great_expectations' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_suite_runs_without_touching_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a suite tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run_suite(FACTS, [IN_RANGE]).failing_cases() == ("b2",)
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_a_suite_is_validated_once_and_once_more_what_fails_and_each_outcome_keeps_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from great_expectations.validator.validator import Validator

    runs = []
    validate = Validator.graph_validate

    def counted(self: Validator, *given: Any, **named: Any) -> Any:
        runs.append(len(named.get("configurations") or given[0]))
        return validate(self, *given, **named)

    monkeypatch.setattr(Validator, "graph_validate", counted)
    sites = Expectation("site", "ExpectColumnValuesToBeInSet", {"value_set": ["prostate", "brain"]})
    mean = Expectation("slices", "ExpectColumnMeanToBeBetween", {"min_value": 100})
    asked = [IN_RANGE, sites, mean, replace(IN_RANGE, severity="warn"), IN_RANGE]
    audit = run_suite(FACTS, asked)
    assert runs == [4, 4], (
        "those about each value, then what does not hold, to list its cases, and the one about all values"
    )
    assert [one.expectation for one in audit.results] == asked
    assert [one.failing for one in audit.results] == [("b2",), (), ("a1", "b2", "c3"), ("b2",), ("b2",)]


def test_what_a_suite_measures_is_found_out_once_and_each_table_has_outcomes_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from great_expectations.validator.metrics_calculator import MetricsCalculator

    planned = []
    build = MetricsCalculator.build_metric_dependency_graph

    def counted(self: MetricsCalculator, *given: Any, **named: Any) -> Any:
        planned.append(self)
        return build(self, *given, **named)

    monkeypatch.setattr(MetricsCalculator, "build_metric_dependency_graph", counted)
    suite = [replace(IN_RANGE, kwargs={"min_value": 61.5}), Expectation("site", "ExpectColumnValuesToNotBeNull")]
    tables = [FACTS, FACTS.assign(d95_gy=[70.0, 71.0, 1.0]), FACTS.assign(d95_gy=70.0, site=["brain", None, "brain"])]
    expected = [[("b2",), ()], [("c3",), ()], [(), ("b2",)]]
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            results = list(threads.map(lambda table: run_suite(table, suite), tables))
        assert [[one.failing for one in result.results] for result in results] == expected
    assert len(planned) == 4, "two that are to hold, and each of them to list its cases"


def test_one_expectation_that_can_not_be_evaluated_is_named_among_others() -> None:
    wrong = Expectation("site", "ExpectColumnValuesToBeBetween", {"min_value": 1.0})
    with pytest.raises(ConfigurationError, match=r"site: ExpectColumnValuesToBeBetween.* can't be evaluated"):
        run_suite(FACTS, [IN_RANGE, wrong, IN_RANGE])


def test_labelled_and_unlabelled_cases_of_a_batch_are_audited_together(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from great_expectations.validator.validator import Validator

    runs = []
    validate = Validator.graph_validate

    def counted(self: Validator, *given: Any, **named: Any) -> Any:
        runs.append(self)
        return validate(self, *given, **named)

    monkeypatch.setattr(Validator, "graph_validate", counted)
    name = "rt_dose"
    (needed,) = {one.column for one in expectations_of(workspace, name) if one.kind == KNOWN}
    low = next(one for one in expectations_of(workspace, name) if one.column == "slices")
    facts = [{"case_id": case_id, "slices": 1} for case_id in ("labelled", "to_predict")]
    found = audited(workspace, name, facts, unlabelled={"to_predict"})
    assert len(runs) == 2, "one of all, and one that lists the cases of what does not hold"
    assert found["to_predict"].errors == (f"expected {low.meaning}, got slices = 1",)
    assert any(needed in text for text in found["labelled"].errors)
    assert len(found["labelled"].errors) == 2


def test_facts_that_a_process_audited_under_the_same_expectations_are_not_audited_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites: list[pd.DataFrame] = []

    def counted(facts: pd.DataFrame, expectations: Any) -> Any:
        suites.append(facts)
        return run_suite(facts, expectations)

    monkeypatch.setattr(audit, "run_suite", counted)
    rows: list[dict[str, Any]] = [{"case_id": "of this test", "slices": 1}]
    before = audited(workspace, "rt_dose", rows)
    assert audited(workspace, "rt_dose", [dict(rows[0])]) == before
    assert len(suites) == 1
    unlabelled = audited(workspace, "rt_dose", rows, unlabelled={"of this test"})
    assert len(unlabelled["of this test"].errors) == len(before["of this test"].errors) - 1
    assert len(suites) == 1
    assert audited(workspace, "rt_dose", [rows[0] | {"slices": 100}]) != before
    assert audited(workspace, "rt_dose", [*rows, {"case_id": "another"}]).keys() == {"of this test", "another"}
    assert len(suites) == 3
    more = replace(IN_RANGE, column="slices")
    monkeypatch.setattr(audit, "expectations_of", lambda ws, name: [*expectations_of(ws, name), more])
    assert len(audited(workspace, "rt_dose", rows)["of this test"].errors) == len(before["of this test"].errors) + 1
    assert len(suites) == 4
