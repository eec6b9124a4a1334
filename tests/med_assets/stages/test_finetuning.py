"""The record of a fine-tuning: its gain over its initial weights, and what the check says of it."""

import json

import pytest

from med_assets.evaluation import finetuning
from med_assets.evaluation.checks import fine_tuning
from med_assets.evaluation.costs import record_prediction_peak
from med_assets.launch.endings import Ending
from med_assets.metrics.bootstrap import Interval
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, constant, model


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    cases(workspace, {"train": TRAIN, "val": VAL})
    return workspace


def test_a_gain_is_recorded_with_its_interval_and_recommended(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(5.0))
    tuned = model(ws, "grad_loss", constant(4.0, step=0.02), initial=first, history=[5.2, 4.4, 4.1, 4.6])
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    out = record.output
    assert (out["baseline_val_mae_gy"], out["best_val_mae_gy"], out["best_epoch_index"]) == (5.2, 4.1, 2)
    assert out["improvement_over_baseline"] == pytest.approx(1.1)
    assert (out["improved"], out["regressed"]) == (True, False)
    assert out["val_mae_gy_per_epoch"] == [5.2, 4.4, 4.1, 4.6]
    assert out["formal_pretrained_val_openkbp_dose_score"] == pytest.approx(5.145)
    assert out["formal_finetuned_val_openkbp_dose_score"] == pytest.approx(4.29)
    assert out["formal_improvement_over_pretrained"] == pytest.approx(0.855)
    low, high = out["formal_improvement_interval"]
    assert 0.75 < low < 0.855 < high < 0.95
    assert (out["formal_n"], out["recommended_ckpt"], out["finetuned_ckpt"]) == (len(VAL), tuned, tuned)
    assert out["checkpoint_comparisons_to_pretrained"]["changed"] == 1
    assert not out["finetuned_ckpt_matches_pretrained_weights"]
    written = read_json(finetuning.record_path(ws, P, "grad_loss"))
    assert written["cost"] == {"steps": 7}
    assert written["output"] == json.loads(json.dumps(record.output))
    assert finetuning.recorded(ws, P, "grad_loss") == record
    assert record.improvement == Interval(out["formal_improvement_over_pretrained"], low, high, len(VAL))
    outcome = fine_tuning(ws, P, "grad_loss")
    assert outcome.passed
    assert outcome.reason == f"formal improvement +0.8550 [{low:+.4f}, {high:+.4f}], n = {len(VAL)}"
    row = finetuning.table(ws, P).iloc[0]
    assert (row["recommended"], row["every epoch worse"]) == ("fine-tuned", "no")


def test_a_harmful_training_is_called_so_and_its_initial_weights_are_recommended(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0))
    tuned = model(ws, "grad_loss", constant(6.0), initial=first, history=[4.0, 5.5, 6.0])
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    out = record.output
    assert (out["best_epoch_index"], out["improvement_over_baseline"], out["regressed"]) == (0, 0.0, True)
    assert out["recommended_ckpt"] == first
    outcome = fine_tuning(ws, P, "grad_loss")
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert "not better than its initial weights: formal improvement -2.0000" in outcome.reason
    assert "every epoch of training was worse" in outcome.reason


def test_weights_that_did_not_change_are_no_improvement(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0), weights="same")
    tuned = model(ws, "grad_loss", constant(3.0), weights="same", initial=first)
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    assert record.output["finetuned_ckpt_matches_pretrained_weights"]
    assert record.output["recommended_ckpt"] == first
    assert "its weights are those" in fine_tuning(ws, P, "grad_loss").reason


def test_published_numbers_are_held_against_ours(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(5.0))
    expected = ("+expected.improvement_over_baseline=0.5", "+expected.formal_improvement_over_pretrained=2")
    tuned = model(ws, "grad_loss", constant(4.0), initial=first, history=[5.0, 4.0], overrides=expected)
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    found = record.output["sanity_reference_checks"]
    assert {field: check["passed"] for field, check in found.items()} == {
        "improvement_over_baseline": True,
        "formal_improvement_over_pretrained": False,
    }
    assert record.output["sanity_recovery_demonstrated"] is False
    assert "expected formal_improvement_over_pretrained of at least 2, got 1" in fine_tuning(ws, P, "grad_loss").reason


def test_the_trace_of_a_published_run_stands_beside_ours(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(5.0))
    published = "+published={source: a paper, per_epoch: [5.5, 4.0, 4.2, 4.1], best_epoch: 1, peak_gpu_mb: 1000}"
    tuned = model(ws, "grad_loss", constant(4.0), initial=first, history=[5.0, 4.5, 3.2], overrides=(published,))
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    run = record.output["published_run"]
    assert isinstance(run, dict)
    assert [epoch["got"] for epoch in run["val_mae_gy_per_epoch"]] == [5.0, 4.5, 3.2, None]
    assert [epoch["difference"] for epoch in run["val_mae_gy_per_epoch"]] == [-0.5, 0.5, pytest.approx(-1.0), None]
    assert run["best_epoch_index"] == {"published": 1, "got": 2, "difference": 1}
    assert run["peak_gpu_mb"] == {"published": 1000, "got": None, "difference": None}
    table = finetuning.published_table(ws, P)
    assert table["what"].tolist()[:2] == ["val_mae_gy, epoch 0", "val_mae_gy, epoch 1"]
    assert table["ours"].tolist()[:2] == [5.0, 4.5]


def test_that_the_weights_changed_is_a_check_of_the_recipe(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(4.0), weights="same")
    expected = ("+expected.finetuned_ckpt_changed=1",)
    same = model(ws, "grad_loss", constant(3.0), weights="same", initial=first, overrides=expected)
    record = finetuning.finetuning(ws, P, "grad_loss", same)
    assert record is not None
    assert [(check.field, check.got, check.passed) for check in record.checks] == [
        ("finetuned_ckpt_changed", 0.0, False)
    ]
    assert "expected finetuned_ckpt_changed of at least 1, got 0" in fine_tuning(ws, P, "grad_loss").reason
    other = model(ws, "grad_loss", constant(3.0), weights="other", initial=first, overrides=expected)
    record = finetuning.finetuning(ws, P, "grad_loss", other)
    assert record is not None
    assert [(check.got, check.passed) for check in record.checks] == [(1.0, True)]


def test_the_record_says_how_training_ended_and_what_memory_predicting_took(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(5.0))
    tuned = model(ws, "grad_loss", constant(4.0), initial=first, history=[5.0, 4.0])
    finetuning.finetuning(ws, P, "grad_loss", tuned)
    before = read_json(finetuning.record_path(ws, P, "grad_loss"))["runtime"]
    assert (before["return_code"], before["log_tail"], before["phase_peak_host_mb"]) == (None, [], {})
    Ending(75, ("epoch 1", "saved")).write(ws.store.fetch(tuned))
    record_prediction_peak(ws, P, tuned, {"peak_host_mb": 800.0, "peak_accelerator_mb": 2000.0})
    finetuning.finetuning(ws, P, "grad_loss", tuned)
    runtime = read_json(finetuning.record_path(ws, P, "grad_loss"))["runtime"]
    assert (runtime["return_code"], runtime["log_tail"]) == (75, ["epoch 1", "saved"])
    assert (runtime["phase_peak_gpu_mb"], runtime["peak_gpu_mb"]) == ({"evaluate": 2000.0}, 2000.0)
    assert runtime["phase_peak_host_mb"] == {"evaluate": 800.0}


def test_random_weights_have_no_record(ws: Workspace) -> None:
    cold = model(ws, "baseline", constant(5.0))
    assert finetuning.finetuning(ws, P, "baseline", cold) is None
    assert fine_tuning(ws, P, "baseline").passed
    assert finetuning.table(ws, P).empty


def test_what_started_from_a_released_file_has_no_formal_comparison(ws: Workspace) -> None:
    tuned = model(ws, "grad_loss", constant(4.0), initial="released/net-0123", history=[5.0, 4.0])
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    assert record.output["recommended_ckpt"] is None
    assert fine_tuning(ws, P, "grad_loss").reason == "its initial weights can't be scored here"


def test_weights_that_can_not_do_the_task_are_not_recommended(ws: Workspace) -> None:
    first = model(ws, "baseline", dict.fromkeys(VAL))
    tuned = model(ws, "grad_loss", constant(4.0), initial=first, history=[5.0, 4.0])
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    assert record.output["recommended_ckpt"] == tuned
    assert "openkbp_dose_score" in record.output["pretrained_cannot"]
    neither = model(ws, "dvh_aware", dict.fromkeys(VAL), initial=first, history=[5.0, 4.0], weights="other")
    record = finetuning.finetuning(ws, P, "dvh_aware", neither)
    assert record is not None
    assert record.output["recommended_ckpt"] is None


def test_the_invocation_repeats_what_ran(ws: Workspace) -> None:
    first = model(ws, "baseline", constant(5.0))
    tuned = model(ws, "grad_loss", constant(4.0), initial=first, history=[5.0, 4.0], overrides=["seed=7"])
    record = finetuning.finetuning(ws, P, "grad_loss", tuned)
    assert record is not None
    assert read_json(finetuning.record_path(ws, P, "grad_loss"))["invocation"].endswith(
        "med-assets train rt_dose/grad_loss seed=7"
    )
