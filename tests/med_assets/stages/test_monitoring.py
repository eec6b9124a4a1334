"""The champion over batches: what waits for it, what counts, and when a metric left its limits."""

from pathlib import Path

import numpy as np
import pytest

from med_assets.cli import stages
from med_assets.errors import ScoringFailed
from med_assets.monitoring.checks import in_control
from med_assets.monitoring.stage import headline, trend, waiting
from med_assets.settings import Workspace
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import GUARDED, PRIMARY, TRAIN, VAL, cases, configure, constant, model, score


def make_monitored(ws: Workspace) -> None:
    """A champion, scored on its own batch, which it was trained on but for one test case."""
    cases(ws, {"train": TRAIN, "val": VAL, "test": ["x0"]})
    model(ws, "mean_dose", constant(5.0, [*VAL, "x0"]))
    crown(ws, "baseline", 4.0)
    stages.monitor(ws, P)


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_monitored)


def crown(ws: Workspace, experiment: str, value: float) -> str:
    """Make an experiment the champion, with scores of the cases of the first batch."""
    checkpoint = model(ws, experiment, {**constant(value), "x0": value + 1.0})
    for name in TRAIN:
        score(ws, checkpoint, name, value - 2.0)
    stages.champion(ws, P)
    return checkpoint


def arrive(ws: Workspace, batch: str, values: list[float], split: str = "train") -> None:
    """A batch of new cases with the champion's scores of them."""
    names = [f"{batch}-{number}" for number in range(len(values))]
    cases(ws, {split: names}, batch=batch)
    checkpoint = ws.lake.rows("champions", P)[-1]["checkpoint"]
    for name, value in zip(names, values, strict=True):
        score(ws, checkpoint, name, value)


def test_only_batches_that_the_champion_was_not_scored_on_wait(ws: Workspace) -> None:
    assert waiting(ws, P) == {}
    arrive(ws, "b2", [4.0])
    arrive(ws, "b3", [4.0])
    assert list(waiting(ws, P)) == ["b2", "b3"]
    done = stages.monitor(ws, P)
    assert done.counts == {"new": 0, "reused": 2, "failed": 0, "batches": 2}
    assert waiting(ws, P) == {}
    assert stages.monitor(ws, P).counts["batches"] == 0


def test_after_a_promotion_all_earlier_batches_wait_again(ws: Workspace) -> None:
    arrive(ws, "b2", [4.0])
    stages.monitor(ws, P)
    second = crown(ws, "grad_loss", 3.0)
    score(ws, second, "b2-0", 3.0)
    assert list(waiting(ws, P)) == ["b1", "b2"]
    stages.monitor(ws, P)
    assert {row["checkpoint"] for row in ws.lake.rows("monitoring", P)} == {second}


def test_a_batch_whose_cases_changed_or_that_has_none_is_scored_once_more_and_no_oftener(ws: Workspace) -> None:
    cases(ws, {}, batch="b2")
    assert list(waiting(ws, P)) == ["b2"]
    stages.monitor(ws, P)
    assert waiting(ws, P) == {}
    arrive(ws, "b2", [4.0])
    assert list(waiting(ws, P)) == ["b2"]


def test_cases_that_the_champion_was_trained_on_are_marked_and_no_part_of_the_headline(ws: Workspace) -> None:
    rows = [row for row in ws.lake.rows("monitoring", P) if row["metric"] == PRIMARY]
    assert {row["case_id"] for row in rows if row["seen_in_training"]} == {*TRAIN, *VAL}
    assert headline(ws, P)[PRIMARY] == "5.00 (n = 1) Gy"
    arrive(ws, "b2", [6.0, 7.0])
    stages.monitor(ws, P)
    assert headline(ws, P)[PRIMARY].startswith("6.00 [")
    assert headline(ws, P)[PRIMARY].endswith("(n = 3) Gy")
    stages.withdraw(ws, P, "b2-1", "consent withdrawn")
    assert headline(ws, P)[PRIMARY].startswith("5.50 [")


def test_without_a_case_that_the_champion_has_not_seen_the_headline_is_undefined(workspace: Workspace) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "mean_dose", constant(5.0))
    checkpoint = model(workspace, "baseline", constant(4.0))
    for name in TRAIN:
        score(workspace, checkpoint, name, 1.0)
    stages.champion(workspace, P)
    stages.monitor(workspace, P)
    assert headline(workspace, P)[PRIMARY].startswith("undefined")
    assert in_control(workspace, P).passed


def test_a_metric_that_leaves_its_limits_fails_the_check_with_batch_value_and_limits(ws: Workspace) -> None:
    steady = [3.9, 4.0, 4.1, 4.2, 3.8]
    for number in (2, 3, 4):
        arrive(ws, f"b{number}", steady)
    stages.monitor(ws, P)
    assert "no batch to compare" not in in_control(ws, P).reason
    assert in_control(ws, P).passed
    arrive(ws, "b5", [9.0, 9.5])
    result = stages.monitor(ws, P)
    outcome = in_control(ws, P)
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert outcome.reason.startswith(f"batch b5: {PRIMARY} 9.250 Gy (n = 2), limits ")
    assert GUARDED not in outcome.reason
    assert result.images.keys() == {f"trend_{PRIMARY}", f"trend_{GUARDED}"}
    assert all(path.is_file() for path in result.images.values())
    for number in range(6, 11):
        arrive(ws, f"b{number}" if number < 10 else "c0", steady)
    stages.monitor(ws, P)
    assert in_control(ws, P).passed, "five batches later it is history, in the table and the plot"


def test_limits_are_the_prediction_interval_of_a_mean_from_the_baseline_cases(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, monitoring={"control_cases": 4, "control_alpha": 0.05})
    arrive(ws, "b2", [3.0, 4.0])
    arrive(ws, "b3", [5.0])  # with the test case of b1 (5 Gy) the baseline is 5, 3, 4, 5
    arrive(ws, "b4", [4.0, 4.0])
    arrive(ws, "b5", [4.0])
    stages.monitor(ws, P)
    points = {point.batch: point for point in trend(ws, P)[PRIMARY]}
    assert [points[batch].lower for batch in ("b1", "b2", "b3")] == [None] * 3
    # mean 4.25, s 0.957427, t(0.975, 3) = 3.182446
    assert points["b4"].upper == pytest.approx(4.25 + 3.182446 * 0.957427 * (1 / 2 + 1 / 4) ** 0.5, abs=1e-5)
    assert points["b5"].lower == pytest.approx(4.25 - 3.182446 * 0.957427 * (1 / 1 + 1 / 4) ** 0.5, abs=1e-5)


def test_the_limits_have_the_published_factors_of_hahn_and_meeker(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 % prediction intervals from five values: 3.04 s for one value, 1.76 s for the mean of five."""
    configure(tmp_path, monkeypatch, monitoring={"control_cases": 5, "control_alpha": 0.05})
    arrive(ws, "b2", [3.0, 4.0, 6.5, 5.2])  # with the test case of b1, 5 Gy
    arrive(ws, "b3", [4.0])
    arrive(ws, "b4", [4.0, 4.5, 5.0, 5.5, 6.0])
    stages.monitor(ws, P)
    points = {point.batch: point for point in trend(ws, P)[PRIMARY]}
    baseline = np.array([5.0, 3.0, 4.0, 6.5, 5.2])
    for batch, factor in (("b3", 3.04), ("b4", 1.76)):
        upper = points[batch].upper
        assert upper is not None
        assert (upper - baseline.mean()) / baseline.std(ddof=1) == pytest.approx(factor, abs=5e-3)


def test_without_a_champion_nothing_is_scored_and_that_is_said(workspace: Workspace) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    assert waiting(workspace, P) == {}
    assert "no champion yet" in stages.monitor(workspace, P, ["b1"]).summary["note"]
    assert in_control(workspace, P).passed


@pytest.mark.usefixtures("full_layout")
def test_the_report_shows_trend_and_drift_of_the_champion(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from med_assets import program

    arrive(ws, "b2", [4.0, 4.5])
    stages.monitor(ws, P)
    monkeypatch.setattr(program.get(P), "report_tables", lambda rows: [])
    monkeypatch.setattr(program.get(P), "report_images", lambda *_: [])
    for row in [*ws.lake.rows("raw_cases", P), *ws.lake.rows("prepared_cases", P)]:
        with ws.store.create(row["artifact"]) as folder:
            (folder / "1.dcm").write_bytes(b"")
    stages.report(ws, P)
    page = (ws.reports / P / "report.html").read_text()
    for part in ("Monitoring", "prediction interval", "Drift", "Decisions of the gate", "recommended"):
        assert part in page, part


def test_a_champion_that_no_case_can_be_scored_with_ends_with_an_error_and_lists_the_failures(ws: Workspace) -> None:
    cases(ws, {"train": ["b2-0", "b2-1"]}, batch="b2")  # their artifacts hold nothing that could be predicted
    with pytest.raises(ScoringFailed, match="scores of 2 cases, all of them failed"):
        stages.monitor(ws, P)
    failed = ws.lake.read("failures", f"{P}/monitoring")
    assert set(failed["case_id"]) == {"b2-0", "b2-1"}
    assert list(waiting(ws, P)) == ["b2"]


def test_some_failures_beside_scores_are_counted(ws: Workspace) -> None:
    arrive(ws, "b2", [4.0])
    cases(ws, {"train": ["b3-0"]}, batch="b3")
    assert stages.monitor(ws, P).counts["failed"] == 1
