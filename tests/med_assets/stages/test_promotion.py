"""The gate: who becomes champion, who does not and why, and how a person takes a champion back."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.experiments import policies
from med_assets.promotion.champions import current, version
from med_assets.promotion.checks import challenger_accepted, champion_regression
from med_assets.promotion.gate import decisions
from med_assets.records import Checkpoint, Verdict
from med_assets.settings import Workspace
from tests.conftest import REPOSITORY, MadeOnce
from tests.docs_blocks import blocks
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, configure, constant, make_baseline, model, score


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_baseline)


def decided(ws: Workspace, named: str | None = None) -> dict[str, Verdict]:
    """Run the gate; the newest verdicts by experiment."""
    stages.champion(ws, P, named)
    return {row.challenger: row for row in decisions(ws, P)}


def champion_of(ws: Workspace) -> str | None:
    now = current(ws, P)
    return now.experiment if now else None


def labels(row: Verdict) -> set[str]:
    names = ("promoted", "refused", "recommended", "improved", "regressed", "matches_reference")
    return {name for name in names if getattr(row, name)}


def test_the_best_that_passes_is_promoted_and_every_experiment_gets_its_labels(ws: Workspace) -> None:
    better = model(ws, "baseline", constant(4.0))
    model(ws, "dvh_aware", constant(4.5))
    model(ws, "grad_loss", constant(6.0))
    found = decided(ws)
    assert champion_of(ws) == "baseline"
    assert labels(found["baseline"]) == {"promoted", "recommended", "improved"}
    assert labels(found["dvh_aware"]) == {"improved"}
    assert labels(found["grad_loss"]) == {"regressed"}
    assert found["baseline"].reference == "mean_dose"
    assert (found["baseline"].checkpoint, found["baseline"].n) == (better, len(VAL))
    assert challenger_accepted(ws, P).passed
    assert champion_regression(ws, P).passed


def test_a_worse_challenger_is_refused_and_the_failed_check_says_why(ws: Workspace) -> None:
    model(ws, "baseline", constant(5.5))
    found = decided(ws)
    assert champion_of(ws) is None
    assert labels(found["baseline"]) == {"refused", "regressed"}
    outcome = challenger_accepted(ws, P)
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert "not shown to be better than mean_dose in openkbp_dose_score: +0." in outcome.reason
    assert outcome.metadata["n"] == len(VAL)


def test_a_better_mean_without_a_better_interval_is_not_enough(ws: Workspace) -> None:
    swinging = {name: 5.0 + (1.5 if place % 2 else -1.8) for place, name in enumerate(VAL)}
    model(ws, "baseline", swinging)
    found = decided(ws)["baseline"]
    assert found.mean < 0 < found.high
    assert labels(found) == {"refused", "improved"}


def test_p_is_adjusted_over_all_challengers_of_a_decision_also_of_one_that_is_named(ws: Workspace) -> None:
    gain = np.random.default_rng(3).normal(0.55, 1.0, len(VAL))
    model(ws, "baseline", {name: 5.0 + 0.02 * place - gain[place] for place, name in enumerate(VAL)})
    alone = decided(ws)["baseline"]
    assert alone.challengers == 1
    assert alone.p == alone.p_adjusted <= 0.025
    assert alone.high < 0
    ws.lake.write("champions", P, [])
    for value, experiment in ((5.1, "dvh_aware"), (5.2, "grad_loss"), (5.3, "residual"), (5.4, "cascade")):
        model(ws, experiment, constant(value))
    found = decided(ws, "baseline")["baseline"]
    assert found.challengers == 5
    assert found.p == alone.p
    assert found.p_adjusted == pytest.approx(5 * alone.p)
    assert "refused" in labels(found)
    assert "over 5 challengers" in found.reason
    assert f"{found.detectable:.3g} Gy" in found.reason
    assert champion_of(ws) is None


def test_too_few_patients_promote_nobody_and_a_demo_says_that_it_goes_by_the_mean(workspace: Workspace) -> None:
    few = VAL[:4]
    cases(workspace, {"train": TRAIN, "val": few})
    model(workspace, "mean_dose", constant(5.0, few))
    model(workspace, "baseline", {name: value - 0.1 * len(name) for name, value in constant(4.0, few).items() if value})
    trial = dataclasses.replace(workspace, purpose="research")
    found = decided(trial)["baseline"]
    assert labels(found) == {"refused", "improved"}
    assert found.reason.startswith("too few cases to promote: expected 29 patients")
    assert champion_of(trial) is None
    found = decided(workspace)["baseline"]
    assert "promoted" in labels(found)
    assert "too few cases to promote: 4 patients of at least 29; this demo promotes by the mean alone" in found.reason
    model(workspace, "grad_loss", constant(4.9, few))
    assert "refused" in labels(decided(workspace, "grad_loss")["grad_loss"])


def test_a_champion_trained_again_is_compared_with_itself_as_it_is_in_place(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0))
    decided(ws)
    second = model(ws, "baseline", constant(3.0))
    found = decided(ws)["baseline"]
    assert (found.checkpoint, found.reference_checkpoint) == (second, first)
    assert found.mean == pytest.approx(-1.0)
    assert "promoted" in labels(found)


def test_a_guarded_metric_may_be_worse_by_its_margin_at_the_end_of_the_interval_and_no_more(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On average only 0.1 Gy worse, but the interval ends above the margin of 0.2 Gy.
    spread = {name: 2.0 + (0.6 if place % 2 else -0.4) for place, name in enumerate(VAL)}
    model(ws, "baseline", constant(4.0), spread)
    found = decided(ws)["baseline"]
    assert labels(found) == {"refused", "improved"}
    assert "openkbp_dvh_score: +0.100" in found.reason
    assert "margin of 0.2 Gy" in found.reason
    configure(tmp_path, monkeypatch, promotion={"guard_margins": {"openkbp_dvh_score": 0.6}})
    assert "promoted" in labels(decided(ws)["baseline"])
    configure(tmp_path, monkeypatch, promotion={"guard_margins": {}})
    same = model(ws, "grad_loss", constant(3.0), spread)
    assert decided(ws)["grad_loss"].checkpoint == same
    assert champion_of(ws) == "grad_loss", "no difference at all is no worse, also without a margin"


def test_the_same_weights_are_never_a_new_champion(ws: Workspace) -> None:
    model(ws, "baseline", constant(4.0), weights="one")
    decided(ws)
    model(ws, "grad_loss", constant(3.0), weights="one")
    found = decided(ws)["grad_loss"]
    assert {"matches_reference", "refused"} <= labels(found)
    assert "its weights are those of baseline" in found.reason
    assert champion_of(ws) == "baseline"


@pytest.mark.parametrize("synthetic", [TRAIN[0], VAL[0]])
def test_no_synthetic_case_helps_a_model_into_production(workspace: Workspace, synthetic: str) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL}, synthetic=[synthetic])
    model(workspace, "mean_dose", constant(5.0))
    model(workspace, "baseline", constant(4.0))
    production = dataclasses.replace(workspace, purpose="production")
    assert "synthetic" in decided(production)["baseline"].reason
    assert champion_of(production) is None
    assert "promoted" in labels(decided(workspace)["baseline"])


def test_a_case_that_only_the_challenger_can_not_score_is_not_left_out(ws: Workspace) -> None:
    model(ws, "baseline", {**constant(4.0), VAL[0]: None})
    found = decided(ws)["baseline"]
    assert found.n == len(VAL) - 1
    assert "refused" in labels(found)
    assert "1 validation cases have openkbp_dose_score for mean_dose only" in found.reason


def test_both_are_scored_on_the_cases_of_today_without_those_that_either_learned(ws: Workspace) -> None:
    moved = model(ws, "baseline", constant(4.0), train=[*TRAIN, VAL[0]])
    assert decided(ws)["baseline"].n == len(VAL) - 1
    assert current(ws, P).checkpoint == moved  # type: ignore[union-attr]  # there is a champion


def test_a_checkpoint_that_was_trained_anew_since_its_evaluation_waits_for_the_next_one(ws: Workspace) -> None:
    model(ws, "baseline", constant(4.0))
    row = ws.lake.rows("checkpoints", f"{P}/baseline")[0]
    ws.lake.write("checkpoints", f"{P}/baseline", [row | {"checkpoint": "checkpoint/0123456789abcdef"}])
    assert "med-assets evaluate rt_dose/baseline" in decided(ws)["baseline"].reason
    assert champion_of(ws) is None


def test_the_same_decision_is_written_once_and_a_changed_one_is_added(ws: Workspace) -> None:
    model(ws, "baseline", constant(5.5))
    decided(ws)
    first = ws.lake.rows("promotions", P)
    decided(ws)
    assert ws.lake.rows("promotions", P) == first
    model(ws, "baseline", constant(4.0))
    decided(ws)
    after = ws.lake.rows("promotions", P)
    assert after[: len(first)] == first
    assert [row["promoted"] for row in after] == [False, True]
    decided(ws)
    assert ws.lake.rows("promotions", P) == after, "nobody new came before the champion"


def test_without_the_baseline_there_is_nothing_to_compare_with(workspace: Workspace) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "baseline", constant(4.0))
    assert "expected the baseline mean_dose trained" in decided(workspace)["baseline"].reason
    assert champion_of(workspace) is None


def test_rollback_brings_the_former_champion_back_and_the_gate_leaves_it_there(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0))
    decided(ws)
    second = model(ws, "grad_loss", constant(3.0))
    decided(ws)
    before = version(ws, P)
    row = stages.rollback(ws, P, "hot spots in the bladder")
    assert (row.checkpoint, row.action, row.reason) == (first, "rolled back", "hot spots in the bladder")
    assert version(ws, P) != before
    found = decided(ws)
    assert champion_of(ws) == "baseline"
    assert "hot spots in the bladder" in found["grad_loss"].reason
    assert not labels(found["grad_loss"]) & {"promoted", "refused"}
    assert champion_regression(ws, P).passed
    assert [row["checkpoint"] for row in ws.lake.rows("champions", P)] == [first, second, first]
    assert ws.store.has(second)


def test_what_was_rolled_back_returns_by_name_or_with_another_key(ws: Workspace) -> None:
    model(ws, "baseline", constant(4.0))
    decided(ws)
    model(ws, "grad_loss", constant(3.0))
    decided(ws)
    stages.rollback(ws, P, "by mistake")
    assert "promoted" in labels(decided(ws, "grad_loss")["grad_loss"])
    assert [row["action"] for row in ws.lake.rows("champions", P)] == [
        "promoted", "promoted", "rolled back", "promoted by name",
    ]  # fmt: skip
    stages.rollback(ws, P, "again")
    anew = model(ws, "grad_loss", constant(2.9))
    assert "promoted" in labels(decided(ws)["grad_loss"])
    model(ws, "dvh_aware", constant(2.0))
    decided(ws)
    assert stages.rollback(ws, P, "one back").checkpoint == anew


def test_a_champion_that_came_back_by_name_is_one_to_roll_back_to(ws: Workspace) -> None:
    model(ws, "baseline", constant(4.0))
    decided(ws)
    second = model(ws, "grad_loss", constant(3.0))
    decided(ws)
    stages.rollback(ws, P, "by mistake")
    decided(ws, "grad_loss")
    model(ws, "dvh_aware", constant(2.0))
    decided(ws)
    assert stages.rollback(ws, P, "one back").checkpoint == second


def test_a_named_experiment_still_has_to_pass_the_gate(ws: Workspace) -> None:
    model(ws, "baseline", constant(4.0))
    decided(ws)
    model(ws, "grad_loss", constant(4.2))
    assert "refused" in labels(decided(ws, "grad_loss")["grad_loss"])
    assert champion_of(ws) == "baseline"
    with pytest.raises(ConfigurationError, match="nothing_like_it"):
        stages.champion(ws, P, "nothing_like_it")


def test_rollback_to_a_named_checkpoint_and_what_it_refuses(ws: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="earlier champion"):
        stages.rollback(ws, P, "none yet")
    chain = []
    for value, experiment in ((4.0, "baseline"), (3.0, "grad_loss"), (2.0, "dvh_aware")):
        chain.append(model(ws, experiment, constant(value)))
        decided(ws)
    with pytest.raises(ConfigurationError, match="reason"):
        stages.rollback(ws, P, "  ")
    with pytest.raises(ConfigurationError, match="those promoted before are"):
        stages.rollback(ws, P, "x", "checkpoint/0000000000000000")
    assert stages.rollback(ws, P, "far back", chain[0]).checkpoint == chain[0]
    assert stages.rollback(ws, P, "on again", chain[2]).checkpoint == chain[2]
    # The one before is the first again, which was itself rolled back just now: the second is what is left.
    assert stages.rollback(ws, P, "and back").checkpoint == chain[1]


def test_a_champion_whose_bytes_changed_is_not_brought_back(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0))
    decided(ws)
    model(ws, "grad_loss", constant(3.0))
    decided(ws)
    (ws.store.fetch(first) / "weights.pt").write_bytes(b"something else")
    with pytest.raises(ArtifactCorrupt):
        stages.rollback(ws, P, "back")
    assert champion_of(ws) == "grad_loss"


def test_history_of_a_home_from_before_these_columns_is_read(ws: Workspace) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    checkpoint = model(ws, "baseline", constant(4.0))
    row = {"program": P, "experiment": "baseline", "checkpoint": checkpoint, "promoted_at": "2026", "reason": "first"}
    path = ws.lake.root / "champions" / f"{P}.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), path)
    champion = current(ws, P)
    assert champion is not None
    assert champion.row() == row | {"dataset_version": None, "n_train": None, "action": None}
    assert decided(ws)["baseline"].reason == "baseline is the champion"


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("promotion", {"guard_margins": {"gamma": 1.0}}, "expected guarded metrics"),
        ("promotion", {"guard_margins": {"openkbp_dvh_score": -1.0}}, "margins of at least 0"),
        ("promotion", {"guard_margin": 0.1}, "guard_margin"),
        ("retraining", {"quiet_hours": "late"}, "22:00-06:00"),
        ("retraining", {"min_new_cases": 0}, "min_new_cases"),
        ("monitoring", {"drift_alpha": 2}, "drift_alpha"),
    ],
)
def test_a_policy_that_can_not_be_meant_is_refused_with_the_file_and_the_field(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    values: dict[str, Any],
    message: str,
) -> None:
    configure(tmp_path, monkeypatch, **{section: values})
    with pytest.raises(ConfigurationError, match=message) as refused:
        policies.of(P)
    assert "conf/rt_dose/_program.yaml" in str(refused.value)


@pytest.mark.parametrize("page", ["promotion", "retraining"])
def test_the_policy_on_a_page_of_the_documentation_is_the_one_in_force(page: str) -> None:
    found = [block for block in blocks(REPOSITORY / "docs" / f"{page}.md") if block.language == "yaml"]
    (section,) = [yaml.safe_load(block.text) for block in found]
    assert section == {page: program.config(P)[page]}


def test_every_field_of_a_policy_is_described() -> None:
    for section in (policies.Promotion, policies.Retraining, policies.Monitoring):
        for name, field in section.model_fields.items():
            assert field.description, name


def changed_code(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Scores from here on are of another version of the code."""
    chosen = program.get(P)
    monkeypatch.setattr(chosen, "code_versions", {**chosen.code_versions, "evaluate": version})


def test_a_champion_that_changed_code_scores_worse_fails_its_check_until_a_person_accepts_that(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert champion_regression(ws, P).passed  # nobody to hold to anything
    better = model(ws, "baseline", constant(4.0))
    stages.champion(ws, P)
    assert champion_regression(ws, P).passed

    changed_code(monkeypatch, "same scores")
    for name, value in constant(4.0).items():
        score(ws, better, name, value)
    assert champion_regression(ws, P).passed

    changed_code(monkeypatch, "worse within the tolerance of 0.001 Gy")
    for name, value in constant(4.0009).items():
        score(ws, better, name, value)
    assert champion_regression(ws, P).passed

    changed_code(monkeypatch, "worse")
    for name, value in constant(4.02).items():
        score(ws, better, name, value)
    outcome = champion_regression(ws, P)
    assert (outcome.passed, outcome.severity) == (False, "error")
    assert "openkbp_dose_score is worse by 0.02 Gy over 30 cases that did not change" in outcome.reason
    assert outcome.metadata["openkbp_dose_score promoted"] == pytest.approx(4.145)
    assert outcome.metadata["openkbp_dose_score present"] == pytest.approx(4.165)

    with pytest.raises(ConfigurationError, match="expected a reason"):
        stages.accept_scores(ws, P, "")
    row = stages.accept_scores(ws, P, "another definition")
    assert (row.checkpoint, row.action, row.reason) == (better, "scores accepted", "another definition")
    assert champion_regression(ws, P).passed


def test_a_champion_worse_in_a_guarded_metric_or_without_a_value_fails_its_check(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = model(ws, "baseline", constant(4.0))
    stages.champion(ws, P)
    changed_code(monkeypatch, "guarded within its margin of 0.2")
    for name, value in constant(4.0).items():
        score(ws, better, name, value, 2.19)
    assert champion_regression(ws, P).passed
    changed_code(monkeypatch, "guarded worse, and one case without")
    for name, value in constant(4.0).items():
        score(ws, better, name, value, None if name == VAL[0] else 2.21)
    outcome = champion_regression(ws, P)
    assert "1 of 30 cases lost their value of openkbp_dvh_score" in outcome.reason
    assert "openkbp_dvh_score is worse by 0.21" in outcome.reason


def test_new_validation_cases_on_which_the_champion_is_worse_fail_its_check_beyond_the_intervals_alone(
    ws: Workspace,
) -> None:
    better = model(ws, "baseline", constant(4.0))
    stages.champion(ws, P)
    few = tuple(f"w{number:02}" for number in range(3))
    cases(ws, {"val": few}, batch="b2")
    for name in few:
        score(ws, better, name, 4.5)
    assert champion_regression(ws, P).passed  # within what chance does
    many = tuple(f"x{number:02}" for number in range(60))
    cases(ws, {"val": many}, batch="b3")
    for number, name in enumerate(many):
        score(ws, better, name, 5.5 + 0.01 * number)
    outcome = champion_regression(ws, P)
    assert not outcome.passed
    assert "worse beyond both intervals" in outcome.reason


def test_what_a_champion_is_held_to_stays_what_it_was_promoted_with(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = model(ws, "baseline", constant(4.0))
    stages.champion(ws, P)
    changed_code(monkeypatch, "worse")
    for checkpoint, start in ((better, 4.5), (Catalog(ws, P).rows(Checkpoint, "mean_dose")[0].checkpoint, 5.0)):
        for name, value in constant(start).items():
            score(ws, checkpoint, name, value)
    stages.champion(ws, P)
    assert not champion_regression(ws, P).passed
