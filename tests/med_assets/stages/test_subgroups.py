"""Declared subgroups: their scores, the guard of the worst one, and what can't be declared."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.evaluation.subgroups import UNKNOWN, Subgroup, label_of, subgroup_scores, subgroup_table, subgroups
from med_assets.experiments import policies
from med_assets.metrics.bootstrap import SEED, mean_with_interval
from med_assets.promotion.champions import current
from med_assets.promotion.checks import challenger_accepted
from med_assets.promotion.gate import decisions
from med_assets.records import CaseScore, SubgroupScore, Verdict
from med_assets.settings import Workspace
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import GUARDED, PRIMARY, TRAIN, VAL, cases, configure, constant, facts, model

SMALL, LARGE = "below 100 ml", "100 ml or more"
FEW = 12
"""Validation cases with a small target."""


def volumes(n_small: int = FEW) -> dict[str, dict[str, Any]]:
    """Target volumes of all cases: of so many validation cases 50 ml, else 200 ml."""
    small = set(VAL[:n_small])
    return {name: {"target_ml": 50.0 if name in small else 200.0} for name in (*TRAIN, *VAL)}


def make_volumes(ws: Workspace) -> None:
    """Cases with small and large targets, and the baseline of 5 Gy."""
    cases(ws, {"train": TRAIN, "val": VAL})
    facts(ws, volumes())
    model(ws, "mean_dose", constant(5.0, step=0.02))


@pytest.fixture
def ws(made_once: MadeOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A baseline of 5 Gy on cases with small and large targets, which are declared subgroups and guarded by 0.5 Gy."""
    workspace = made_once(make_volumes)
    configure(
        tmp_path,
        monkeypatch,
        subgroups={"min_patients": 5, "facts": {"target_ml": [100]}},
        promotion={"worst_subgroup": {"min_patients": 10, "margins": {PRIMARY: 0.5}}},
    )
    return workspace


def by_volume(small: float, large: float, n_small: int = FEW) -> dict[str, float | None]:
    """Scores of a model about one value for small targets and another for large ones."""
    first = set(VAL[:n_small])
    return {name: (small if name in first else large) + 0.02 * place for place, name in enumerate(VAL)}


def decided(ws: Workspace) -> dict[str, Verdict]:
    stages.champion(ws, P)
    return {row.challenger: row for row in decisions(ws, P)}


def test_a_challenger_better_on_average_and_worse_in_a_subgroup_is_refused_by_its_name_n_and_interval(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(ws, "baseline", by_volume(small=6.0, large=2.0))
    found = decided(ws)["baseline"]
    assert found.mean is not None
    assert found.mean < -1
    assert found.p_adjusted is not None
    assert found.p_adjusted < 0.025
    assert found.refused
    assert current(ws, P) is None
    text = str(found.reason)
    assert re.search(
        rf"worst subgroup target_ml = {SMALL}: {PRIMARY}: \+1\.000 (\[[^\]]+\]|no interval) Gy.*n = {FEW}", text
    ), text
    assert "margin of 0.5 Gy" in text
    outcome = challenger_accepted(ws, P)
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert f"target_ml = {SMALL}" in outcome.reason
    configure(tmp_path, monkeypatch, promotion={"worst_subgroup": None})
    assert decided(ws)["baseline"].promoted, "without the guard the mean of all decides"


def test_one_that_is_better_in_every_subgroup_is_promoted_and_the_verdict_names_the_worst(ws: Workspace) -> None:
    model(ws, "baseline", by_volume(small=4.9, large=3.0))
    found = decided(ws)["baseline"]
    assert found.promoted
    assert f"worst subgroup of 2 with at least 10 patients, target_ml = {SMALL}: {PRIMARY}: -0.100" in str(found.guards)
    assert f"target_ml = {SMALL}" in str(found.reason)


def test_a_subgroup_with_fewer_patients_than_the_guard_asks_for_guards_nothing(ws: Workspace) -> None:
    facts(ws, volumes(9))
    model(ws, "baseline", by_volume(small=6.0, large=2.0, n_small=9))
    assert decided(ws)["baseline"].promoted


def test_a_guard_that_no_subgroup_is_large_enough_for_promotes_nobody(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, promotion={"worst_subgroup": {"min_patients": 40, "margins": {PRIMARY: 0.5}}})
    model(ws, "baseline", constant(2.0))
    found = decided(ws)["baseline"]
    assert found.refused
    assert "worst subgroup of at least 40 patients, and none has as many" in str(found.reason)


def test_cases_without_the_fact_are_guarded_as_a_subgroup_too(ws: Workspace) -> None:
    known = volumes(0)
    facts(ws, {name: {"target_ml": None if name in VAL[:FEW] else 200.0} for name in known})
    model(ws, "baseline", by_volume(small=6.0, large=2.0))
    assert f"worst subgroup target_ml = {UNKNOWN}" in str(decided(ws)["baseline"].reason)


def scores(values: Mapping[str, float | None], metric: str = PRIMARY, subject: str = "body") -> list[CaseScore]:
    keys = {"program": P, "experiment": "e", "checkpoint": "c", "split": "val", "unit": "Gy", "convention": "test"}
    return [
        CaseScore.of(
            keys | {"case_id": name, "patient_id": f"p-{name}", "metric": metric, "subject": subject, "value": value}
        )
        for name, value in values.items()
    ]


def test_scores_of_a_subgroup_are_those_of_its_cases_alone_with_n_and_the_interval_over_patients(ws: Workspace) -> None:
    values = by_volume(small=6.0, large=2.0)
    found = {(one.subgroup, one.metric): one for one in subgroup_scores(P, scores(values), volumes())}
    small = found[SMALL, PRIMARY]
    own = [value for name, value in values.items() if name in VAL[:FEW]]
    wanted = mean_with_interval(own, SEED)
    assert (small.mean, small.low, small.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert (small.n, small.n_cases, small.n_patients, small.note) == (FEW, FEW, FEW, None)
    assert found[LARGE, PRIMARY].n == len(VAL) - FEW


def test_a_subgroup_of_few_patients_has_its_number_and_no_score(ws: Workspace) -> None:
    found = {one.subgroup: one for one in subgroup_scores(P, scores(constant(4.0)), volumes(4))}
    few = found[SMALL]
    assert (few.mean, few.low, few.high, few.n_cases, few.n_patients) == (None, None, None, 4, 4)
    assert few.note == "too few: 4 of at least 5 patients"
    assert "too few: 4 of at least 5 patients" in subgroup_table([few]).to_string()
    undefined = {name: None if place < 9 else 4.0 for place, name in enumerate(VAL)}
    by_label = {one.subgroup: one for one in subgroup_scores(P, scores(undefined), volumes())}
    assert (by_label[SMALL].n_cases, by_label[SMALL].n_patients, by_label[SMALL].mean) == (12, 3, None)


def test_values_and_bands_have_labels_and_what_is_not_known_is_a_subgroup_of_its_own() -> None:
    volume, plan = program.get(P).facts["target_ml"], program.get(P).facts["prescription_in_plan"]
    assert [label_of(volume, [3, 15], value) for value in (2.99, 3.0, 14.9, 15, None, float("nan"))] == [
        "below 3 ml", "3 to below 15 ml", "3 to below 15 ml", "15 ml or more", UNKNOWN, UNKNOWN,
    ]  # fmt: skip
    assert [label_of(plan, [], value) for value in (True, False, None)] == ["yes", "no", UNKNOWN]
    device = program.get("retinal_oct").facts["device"]
    assert [label_of(device, [], value) for value in ("A", "", None)] == ["A", UNKNOWN, UNKNOWN]


def test_the_subgroups_of_a_fact_hold_every_case_once_in_the_order_of_their_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, subgroups={"facts": {"target_ml": [9, 100], "prescription_in_plan": []}})
    values: dict[str, dict[str, Any]] = {"a": {"target_ml": 200.0}, "b": {"target_ml": 5.0}, "c": {}}
    found = subgroups(P, values)
    assert list(found) == [
        Subgroup("prescription_in_plan", UNKNOWN),
        Subgroup("target_ml", "below 9 ml"),
        Subgroup("target_ml", "100 ml or more"),
        Subgroup("target_ml", UNKNOWN),
    ]
    assert found[Subgroup("prescription_in_plan", UNKNOWN)] == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("subgroups", {"facts": {"shoe_size": [40]}}, "expected facts that cases share"),
        ("subgroups", {"facts": {"structures_missing": [1]}}, "expected"),
        ("subgroups", {"facts": {"target_ml": []}}, "expected limits of its bands, ml"),
        ("subgroups", {"facts": {"prescription_in_plan": [1]}}, r"expected \[\] for words"),
        ("subgroups", {"facts": {"target_ml": [15, 3]}}, "ascending"),
        ("subgroups", {"min_patients": 1}, "min_patients"),
        ("promotion", {"worst_subgroup": {"margins": {"gamma": 1.0}}}, "expected deciding metrics"),
        ("promotion", {"worst_subgroup": {"margins": {GUARDED: -1.0}}}, "margins of at least 0"),
        ("promotion", {"worst_subgroup": {"margins": {}}}, "margins"),
    ],
)
def test_subgroups_that_can_not_be_meant_are_refused_with_the_file_and_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, values: dict[str, Any], message: str
) -> None:
    configure(tmp_path, monkeypatch, **{section: values})
    with pytest.raises(ConfigurationError, match=message) as caught:
        policies.of(P)
    assert "conf/rt_dose/_program.yaml" in str(caught.value)


@pytest.mark.parametrize("name", program.registered())
def test_every_program_declares_subgroups_by_facts_that_it_has(name: str) -> None:
    declared = policies.of(name).subgroups.facts
    assert declared
    assert declared.keys() <= program.get(name).facts.keys()


def test_the_scores_of_the_last_evaluation_are_a_table_of_their_own(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    from med_assets.cli.command_line import cli

    checkpoint = model(ws, "baseline", by_volume(small=4.9, large=3.0))
    catalog = Catalog(ws, P)
    found = subgroup_scores(P, catalog.rows(CaseScore, "baseline"), volumes())
    made = {"program": P, "experiment": "baseline", "checkpoint": checkpoint, "dataset_version": "d"}
    rows = [SubgroupScore.of(vars(one) | made | {"code_version": "c", "git_commit": "g"}) for one in found]
    catalog.replace(SubgroupScore, rows, "baseline")
    assert cli.main(["subgroups", f"{P}/baseline"], standalone_mode=False) in (None, 0)
    printed = capsys.readouterr().out
    assert SMALL in printed
    assert "(n = 12)" in printed
    with pytest.raises(ConfigurationError, match="med-assets evaluate rt_dose/grad_loss"):
        cli.main(["subgroups", f"{P}/grad_loss"], standalone_mode=False)
