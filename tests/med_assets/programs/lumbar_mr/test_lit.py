"""Loss, monitor and cases of a training of lumbar_mr."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.programs.lumbar_mr.experiment import Loss
from med_assets.programs.lumbar_mr.lit import NOT_FOUND_MM, case_metrics, pixel_loss, task
from med_assets.programs.lumbar_mr.predict import Prediction
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.training.initial import INITIAL, start_from
from med_assets.training.job import read_job, run
from med_assets.training.task import Task
from tests.med_assets.programs.lumbar_mr.builders import TINY, write_job, write_prepared

torch.set_num_threads(1)
EVEN = Loss(background_weight=1, level_weight=1)


def test_the_loss_of_a_case_with_all_levels_is_cross_entropy_with_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, 4, generator=generator)
    target = torch.randint(0, 6, (2, 4, 4), generator=generator)
    known = torch.ones(2, 6, dtype=torch.bool)
    weights = Loss(background_weight=1, level_weight=3)
    expected = torch.nn.functional.cross_entropy(logits, target, torch.tensor([1.0, 3, 3, 3, 3, 3]))
    assert float(pixel_loss(logits, target, known, weights)) == pytest.approx(float(expected))


def test_a_level_that_nobody_marked_may_be_anywhere_in_the_background() -> None:
    logits = torch.zeros(1, 6, 2, 2)
    logits[0, 5, 0, 0] = 30.0
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    known = torch.ones(1, 6, dtype=torch.bool)
    assert float(pixel_loss(logits, target, known, EVEN)) > 7
    known[0, 5] = False
    leaf = logits.clone().requires_grad_()
    loss = pixel_loss(leaf, target, known, EVEN)
    assert float(loss.detach()) == pytest.approx(0.75 * np.log(3), abs=1e-5)
    loss.backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert float(leaf.grad[0, :, 0, 0].abs().max()) < 1e-9


def test_a_level_that_is_not_found_is_a_penalty_in_the_monitor(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case", marked=("l4_l5", "l5_s1")))
    s, y, x = case.levels["l4_l5"] or (0, 0, 0)
    empty = np.zeros((0, 5, 160, 160))
    points = dict.fromkeys(case.levels) | {"l4_l5": (s + 1, y + 2, x)}
    found = case_metrics(case, Prediction(empty, empty, (), empty, points, 4))
    # Two rows of 2 mm; across the slices nothing counts.
    assert found == {"val_error_mm": (4 + NOT_FOUND_MM) / 2, "val_found": 0.5, "val_within_5mm": 0.5}


def test_cases_without_points_are_left_out_and_without_any_nothing_is_trained(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY, cases=4)
    facts = job / "cases" / "case0" / "case.json"
    bare = json.loads(facts.read_text())
    facts.write_text(json.dumps(bare | {"levels": dict.fromkeys(bare["levels"])}))
    _, experiment, cases = read_job(job)
    found = task(experiment, cases)
    assert isinstance(found, Task)
    assert [case.case_id for case in found.train.dataset.cases] == ["case1", "case2"]
    facts = job / "cases" / "case3" / "case.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"levels": dict.fromkeys(bare["levels"])}))
    with pytest.raises(
        ConfigurationError, match=r"expected a case of split val with a marked level and an anatomy .* got none among 1"
    ):
        task(experiment, cases)


def test_spines_known_to_be_transitional_are_learned_from_only_where_an_experiment_says_so(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY, cases=4)
    for case, lstv in (("case0", "lumbarised"), ("case1", "unknown")):
        facts = job / "cases" / case / "case.json"
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"lstv": lstv}))
    _, experiment, cases = read_job(job)
    for anatomy, wanted in (("normal", ["case1", "case2"]), ("all", ["case0", "case1", "case2"])):
        found = task(experiment.model_copy(update={"anatomy": anatomy}), cases)
        assert isinstance(found, Task)
        assert [case.case_id for case in found.train.dataset.cases] == wanted


def test_a_training_writes_weights_and_its_error_and_the_baseline_needs_no_loop(tmp_path: Path) -> None:
    result = run(write_job(tmp_path / "job", overrides=TINY))
    assert result["status"] == "completed"
    assert result["monitor"] == "val_error_mm"
    assert 0 < result["best_value"] <= NOT_FOUND_MM
    baseline = run(write_job(tmp_path / "mean", "mean_position", TINY))
    assert baseline["best_metrics"]["val_found"] == 1.0
    assert 0 < baseline["best_value"] < 40


def test_a_training_starts_from_a_released_checkpoint_under_its_wrapper(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "initial=released/point_net"))
    _, experiment, cases = read_job(job)
    found = task(experiment, cases)
    assert isinstance(found, Task)
    wanted = {name: tensor + 1 for name, tensor in found.weights().items()}
    wanted["mean"] = torch.zeros(1, 3, 1, 1)
    torch.save({"state_dict": wanted}, job / INITIAL)
    start_from(job, experiment, found)
    assert torch.equal(found.weights()["logit.bias"], wanted["logit.bias"])
    assert float(found.weights()["mean"]) == 0.0
