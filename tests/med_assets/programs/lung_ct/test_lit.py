"""Prompts, loss and training-time Dice of lung_ct."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct import lit
from med_assets.programs.lung_ct.dice import dice_on_grid
from med_assets.programs.lung_ct.lit import LungModule, task
from med_assets.training.job import read_job
from med_assets.training.task import Task
from tests.med_assets.programs.lung_ct.prepared_builders import TINY, write_job, write_prepared

torch.set_num_threads(1)


def built(job: Path) -> Task:
    _, experiment, cases = read_job(job)
    found = task(experiment, cases)
    assert isinstance(found, Task)
    return found


def batch_of(task: Task, size: int = 2) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = task.train.collate_fn([task.train.dataset[(0, index)] for index in range(size)])
    return found


@pytest.fixture
def module(tmp_path: Path) -> LungModule:
    found: LungModule = built(write_job(tmp_path / "job", overrides=TINY)).module
    return found


def test_the_loss_is_dice_and_cross_entropy_of_each_prompt(module: LungModule) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, 4, generator=generator)
    label = torch.randint(0, 2, (1, 4, 4, 4), generator=generator).to(torch.uint8) * 23
    expected = []
    for one, number in zip(logits, (23, 28), strict=True):
        truth, p = (label[0] == number).double(), one.double().sigmoid()
        dice = 1 - (2 * (truth * p).sum() + 1e-4) / ((truth**2).sum() + (p**2).sum() + 0.01)
        expected.append(dice - (truth * p.log() + (1 - truth) * (1 - p).log()).mean())
    found = module._of(logits, label, [23, 28])
    assert float(found) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)


def test_unlabelled_voxels_neither_count_nor_teach(module: LungModule) -> None:
    label = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    label[0, 0] = 255
    label[0, 1] = 23
    logits = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = module._of(logits, label, [23])
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[0, 0].any()
    assert logits.grad[0, 1].all()
    other = logits.detach().clone()
    other[0, 0] += 5
    assert float(module._of(other, label, [23])) == float(loss.detach())


def test_patches_of_a_batch_are_asked_for_their_own_classes(tmp_path: Path) -> None:
    found = built(write_job(tmp_path / "job", overrides=TINY))
    batch = batch_of(found)
    with torch.no_grad():
        both, _ = found.module.losses(batch)
        alone = [
            found.module.losses({name: tensor[index : index + 1] for name, tensor in batch.items()})[0]
            for index in range(2)
        ]
    assert float(both) == pytest.approx(float(sum(alone)) / 2, rel=1e-4)


@pytest.mark.parametrize("drop", [(0.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_point_prompts_train_and_every_parameter_that_is_not_frozen_gets_a_gradient(
    tmp_path: Path, drop: tuple[float, float]
) -> None:
    points, labels = drop
    asked = (f"prompts.drop_points={points}", f"prompts.drop_labels={labels}")
    found = built(write_job(tmp_path / "job", overrides=(*TINY, *asked)))
    loss, _ = found.module.losses(batch_of(found))
    loss.backward()
    assert torch.isfinite(loss)
    without = {name for name, one in found.module.network.named_parameters() if one.grad is None}
    assert without == set(found.module.frozen)
    touched = {
        name.split(".")[0]
        for name, one in found.module.network.named_parameters()
        if one.grad is not None and one.grad.any()
    }
    assert "point_head" in touched


def test_the_dice_of_a_class_that_is_not_there_is_undefined_and_of_a_missed_one_zero() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    logits = np.full(label.shape, -1.0, np.float32)
    assert dice_on_grid(logits, label, 23) is None
    label[0] = 23
    assert dice_on_grid(logits, label, 23) == 0.0
    logits[0] = 1
    assert dice_on_grid(logits, label, 23) == 1.0
    logits[1] = 1
    assert dice_on_grid(logits, label, 23) == pytest.approx(2 * 16 / (16 + 32))
    label[1] = 255
    assert dice_on_grid(logits, label, 23) == 1.0


def test_validation_means_over_the_classes_of_a_case_and_names_the_target(
    module: LungModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lit.PreparedCase.open(tmp_path / "job" / "cases" / "case2")

    def right_but_for_the_target(
        network: object, image: np.ndarray, classes: list[int], settings: object
    ) -> np.ndarray:
        return np.stack([np.where((case.label == number) & (number != 23), 1.0, -1.0) for number in classes])

    monkeypatch.setattr(lit, "predict_logits", right_but_for_the_target)
    found = module.measured(case)
    assert found == {"val_dice": 0.8, "val_dice_loss": pytest.approx(0.2), "val_dice_target": 0.0}


def test_without_the_target_in_validation_nothing_is_trained(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "target_anatomy", TINY[:-1])
    for path in (job / "cases" / "case2").iterdir():
        path.unlink()
    (job / "cases" / "case2").rmdir()
    write_prepared(job / "cases" / "case2", tumours=0)
    with pytest.raises(
        ConfigurationError, match=r"expected a validation case with labels of \[23\] \(lung tumor\), got none"
    ):
        built(job)


def test_cases_prepared_for_different_spacings_are_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    facts = job / "cases" / "case1" / "case.json"
    facts.write_text(facts.read_text().replace('"spacing_mm": [8.0, 8.0, 8.0]', '"spacing_mm": [7.0, 8.0, 8.0]'))
    with pytest.raises(ConfigurationError, match="expected cases prepared for one target at one spacing"):
        built(job)


def test_a_class_of_ones_own_trains_its_free_embedding_row(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY[:-1], "labels={mode:mapping,mapping:[[7,133]]}"))
    found = built(job)
    batch = batch_of(found)
    assert set(batch["label"].unique().tolist()) <= {0, 133}
    assert batch["prompts"].tolist() == [[133], [133]]
    loss, _ = found.module.losses(batch)
    loss.backward()
    gradient = found.module.network.class_head.class_embeddings.weight.grad
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [133]
