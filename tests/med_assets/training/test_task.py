"""Which cases a training learned from."""

from pathlib import Path

from med_assets.training.task import ClosedForm, Task, TrainingCase, used

CASES = [TrainingCase(name, name, split, Path()) for name, split in (("a", "train"), ("b", "train"), ("v", "val"))]


def test_cases_that_a_task_leaves_out_are_not_used_and_no_epoch_uses_none() -> None:
    task = Task(None, None, None, "loss", dict, left_out=("b",))
    assert used(task, 3, CASES) == ("a", "v")
    assert used(task, 0, CASES) == ()


def test_weights_without_a_loop_are_selected_on_no_case() -> None:
    assert used(ClosedForm("loss", lambda _: ({}, {}), ("a",)), 0, CASES) == ("b",)
