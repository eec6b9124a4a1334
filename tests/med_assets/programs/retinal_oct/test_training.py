"""Pretraining, probe and fine-tuning: what is hidden, what moves when, what is computed once, and that resuming changes nothing."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import result_fields
from med_assets.programs.retinal_oct.embeddings import EmbeddingCache
from med_assets.programs.retinal_oct.experiment import Augment, Masks
from med_assets.programs.retinal_oct.jepa import Jepa, draw_masks
from med_assets.programs.retinal_oct.lit import ClassModule, overfit_loss, schedule, task, weights_of
from med_assets.programs.retinal_oct.network import ClassHead, Classifier, build_encoder
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.transforms import check_input, network_input
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.programs.retinal_oct.volumes import VolumeDataset, augmented, cropped
from med_assets.training.job import run
from med_assets.training.saving import SaveCheckpoints
from med_assets.training.task import TrainingCase
from tests.med_assets.programs.retinal_oct.builders import TINY, write_job, write_prepared
from tests.med_assets.programs.retinal_oct.experiments import tiny

torch.set_num_threads(1)


def prepared(folder: Path, labels: Sequence[int]) -> list[PreparedCase]:
    return [
        PreparedCase.open(write_prepared(folder / f"case{index}", index, label=label))
        for index, label in enumerate(labels)
    ]


def test_masks_hide_blocks_and_leave_a_context() -> None:
    masks = Masks(blocks=4, low=0.3, high=0.6, least_context=0.3)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        visible, hidden = draw_masks((4, 6, 8), masks)
        assert sorted([*visible.tolist(), *hidden.tolist()]) == list(range(192))
        assert len(hidden) > 0
        assert len(visible) >= 0.3 * 192
        seen.add(tuple(hidden.tolist()))
    assert len(seen) > 35
    torch.manual_seed(7)
    _, hidden = draw_masks((4, 6, 8), masks.model_copy(update={"blocks": 1}))
    places = np.array(np.unravel_index(hidden.numpy(), (4, 6, 8)))
    sides = places.max(axis=1) - places.min(axis=1) + 1
    assert sides.prod() == len(hidden)


def test_a_pretraining_step_moves_the_context_and_the_target_only_follows() -> None:
    experiment = tiny("pretrain_multi_domain")
    torch.manual_seed(0)
    jepa = Jepa(experiment)
    before = {name: tensor.clone() for name, tensor in jepa.state_dict().items()}
    loss = jepa.loss(torch.randn(2, 1, 4, 16, 16))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is None for parameter in jepa.target_encoder.parameters())
    graded = [name for name, parameter in jepa.context_encoder.named_parameters() if parameter.grad is not None]
    assert len(graded) == len(list(jepa.context_encoder.parameters()))
    with torch.no_grad():
        for parameter in jepa.context_encoder.parameters():
            parameter += 1
    jepa.follow(0.9)
    for name, tensor in jepa.target_encoder.state_dict().items():
        assert torch.allclose(tensor, before[f"target_encoder.{name}"] + 0.1, atol=1e-5)


def test_the_rates_rise_then_fall_without_a_jump_at_the_unfreeze() -> None:
    total, warm = 100, 10.0
    rates = [schedule(step, warm, total, 0.1) for step in range(total + 1)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) <= 1
    assert all(later > earlier for earlier, later in itertools.pairwise(rates[:10]))
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= 0.1 + 1e-9
    assert rates[-1] == pytest.approx(0.1)
    assert schedule(0, 0.0, 5, 0.0) == 1


def fitted(job: Path) -> tuple[dict[str, torch.Tensor], pd.DataFrame, dict[str, Any]]:
    result = run(job)
    return torch.load(job / "weights.pt", weights_only=True), pd.read_csv(job / "history.csv"), result


def test_the_encoder_is_frozen_until_its_epoch_and_then_learns(tmp_path: Path) -> None:
    more = ("schedule.epochs=3", "learning.unfreeze_at=2", "schedule.patience=9", "warmup_epochs=1")
    history = fitted(write_job(tmp_path / "job", overrides=[*TINY, *more]))[1]
    assert list(history["encoder_lr"] > 0) == [False, False, True]
    # One schedule for both rates, so their ratio is that of the first rates.
    experiment = tiny("scratch", *more)
    state = torch.load(sorted((tmp_path / "job" / "checkpoints").glob("step-*.ckpt"))[-1], weights_only=True)
    rates = experiment.learning.encoder_lr / experiment.optimiser.lr
    assert history["encoder_lr"].iloc[-1] / history["lr"].iloc[-1] == pytest.approx(rates)
    groups = state["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [experiment.optimiser.lr, experiment.learning.encoder_lr]
    moved = write_job(tmp_path / "short", overrides=[*TINY, *more, "schedule.epochs=2"])
    kept, _, _ = fitted(moved)
    torch.manual_seed(experiment.seed)
    start = Classifier(experiment.network, experiment.head).state_dict()
    assert all(torch.equal(kept[name], start[name]) for name in start if name.startswith("encoder."))
    assert not torch.equal(kept["head.layers.1.weight"], start["head.layers.1.weight"])
    last = state["state_dict"]
    assert any(not torch.equal(last[f"network.{name}"], start[name]) for name in start if name.startswith("encoder."))


def test_a_probe_embeds_each_volume_once_for_an_encoder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    probe = [*TINY, "learning.unfreeze_at=null"]
    fitted(write_job(tmp_path / "a", "random_probe", probe))
    assert "embeddings: 4 computed, 0 reused" in capfd.readouterr().out
    fitted(write_job(tmp_path / "b", "random_probe", [*probe, "optimiser.lr=0.5"]))
    assert "embeddings: 0 computed, 4 reused" in capfd.readouterr().out
    fitted(write_job(tmp_path / "c", "random_probe", [*probe, "seed=1"]))
    assert "embeddings: 4 computed, 0 reused" in capfd.readouterr().out
    assert len(list((tmp_path / "embeddings").rglob("*.npy"))) == 10


def test_a_damaged_embedding_is_computed_again(tmp_path: Path) -> None:
    experiment, cases = tiny(), prepared(tmp_path / "cases", [0, 1])
    encoder = build_encoder(experiment.network)
    cache = EmbeddingCache(tmp_path / "cache")
    first = cache.of(encoder, experiment.network, cases, 2)
    path = sorted((tmp_path / "cache").rglob("*.npy"))[0]
    path.write_bytes(path.read_bytes()[:40])
    again = EmbeddingCache(tmp_path / "cache")
    assert torch.allclose(again.of(encoder, experiment.network, cases, 2), first, atol=1e-6)
    assert (again.computed, again.reused) == (1, 1)


def test_eight_cases_are_learned_by_heart_by_the_head_and_by_the_whole_network(tmp_path: Path) -> None:
    experiment = tiny()
    labels = [0, 1, 2, 3] * 2
    cases = prepared(tmp_path / "cases", labels)
    volumes = torch.from_numpy(np.stack([np.asarray(case.image) for case in cases]))[:, None]
    torch.manual_seed(0)
    network = Classifier(experiment.network, experiment.head.model_copy(update={"dropout": 0.0}))
    head = ClassHead(16, experiment.head)
    assert overfit_loss(head, torch.randn(12, 16), [*labels, 0, 1, 2, 3]) < 0.01
    same = torch.ones(8, 16)
    assert overfit_loss(head, same, labels) > 1
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(volumes), torch.tensor(labels))
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def test_class_weights_balance_what_training_has(tmp_path: Path) -> None:
    cases = prepared(tmp_path, [0, 0, 0, 1, 2])
    assert weights_of(cases, "auto").tolist() == pytest.approx([5 / 12, 5 / 4, 5 / 4, 0])
    assert weights_of(cases, "none").tolist() == [1, 1, 1, 1]


def test_class_weights_may_be_a_list_with_one_for_each_class(tmp_path: Path) -> None:
    given = tiny("scratch", "learning.class_weights=[0.5,1,2,3]").learning.class_weights
    assert weights_of(prepared(tmp_path, [0, 1]), given).tolist() == [0.5, 1, 2, 3]
    assert tiny("scratch", "learning.class_weights=[1,1,1,1]").hash() != tiny("scratch").hash()
    for wrong in ("[1,2,3]", "[0,0,0,0]", "[1,1,1,-1]", "other"):
        with pytest.raises(ConfigurationError, match=r"class_weights|weight for each of 4"):
            tiny("scratch", f"learning.class_weights={wrong}")


def test_pieces_of_a_batch_add_up_to_the_batch(tmp_path: Path) -> None:
    experiment = tiny("scratch", "learning.label_smoothing=0.1", "head.dropout=0")
    cases = prepared(tmp_path, [0, 0, 1, 2])
    module = ClassModule(experiment, cases, cases[:1])
    batch = {"image": torch.randn(4, 1, 4, 16, 16), "label": torch.tensor([0, 0, 1, 2]), "case": torch.arange(4)}
    whole = module.losses(batch)[0]
    halves = [
        module.losses({name: value[part] for name, value in batch.items()})[0] for part in (slice(2), slice(2, 4))
    ]
    assert float(whole.detach()) == pytest.approx(float(torch.stack(halves).mean().detach()), rel=1e-5)


def test_volumes_are_flipped_along_the_width_alone() -> None:
    image = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    flipped = augmented(image, Augment(flip=1, brightness=0, contrast=0), np.random.default_rng(0))
    assert np.array_equal(flipped, image[:, :, ::-1])
    kept = augmented(image, Augment(flip=0, brightness=0, contrast=0), np.random.default_rng(0))
    assert np.array_equal(kept, image)


def test_a_random_crop_is_a_box_of_the_volume_at_its_size_and_scale() -> None:
    # Each voxel is its place along the width, so that a crop shows where it was taken.
    image = network_input(np.broadcast_to(np.arange(40.0), (8, 20, 40)), (8, 20, 40)).image
    keeping = Augment(flip=0, brightness=0, contrast=0)
    assert np.array_equal(augmented(image, keeping, np.random.default_rng(0)), image)
    assert keeping.crop == 0
    slopes = []
    for seed in range(20):
        found = augmented(image, keeping.model_copy(update={"crop": 0.5}), np.random.default_rng(seed))
        assert (found.shape, found.dtype) == (image.shape, np.float32)
        check_input(found)
        assert np.allclose(found, found[:1, :1])
        slopes.append(float(np.diff(found[0, 0]).mean()))
    # Whatever the box, a ramp between its ends has the same slope after the scaling; it is cut at random places, not interpolated beyond them.
    assert np.allclose(slopes, np.diff(image[0, 0]).mean(), rtol=0.1)
    steps = image.copy()
    steps[..., 30:] = 5
    shares = {
        round(float((box[0, 0] > box[0, 0].mean()).mean()), 2)
        for seed in range(20)
        if (box := cropped(steps, 0.5, np.random.default_rng(seed))) is not None
    }
    assert len(shares) > 5


def test_a_crop_without_contrast_leaves_the_volume_whole() -> None:
    image = np.zeros((4, 6, 200), dtype=np.float32)
    image[..., 0] = 1
    found = [cropped(image, 0.9, np.random.default_rng(seed)) for seed in range(20)]
    assert any(np.array_equal(one, image) for one in found)
    assert all(np.isfinite(one).all() for one in found)


def test_a_crop_leaves_what_is_trained_without_one_and_changes_the_hash() -> None:
    assert "crop" not in result_fields(tiny("scratch").augment)
    assert tiny("scratch", "augment.crop=0.0").hash() == tiny("scratch").hash()
    assert tiny("scratch", "augment.crop=0.2").hash() != tiny("scratch").hash()


@pytest.mark.slow
def test_two_processes_unfreeze_as_one_does(tmp_path: Path) -> None:
    jobs = [
        write_job(
            tmp_path / f"job{devices}",
            overrides=(*TINY, "head.dropout=0", "schedule.epochs=3", "warmup_epochs=0", f"runtime.devices={devices}"),
        )
        for devices in (1, 2)
    ]
    run(jobs[0])
    done = subprocess.run(
        [sys.executable, "-m", "med_assets.training", str(jobs[1])], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(job / "weights.pt", weights_only=True) for job in jobs)
    rates = [pd.read_csv(job / "history.csv")["encoder_lr"].tolist() for job in jobs]
    assert [rate > 0 for rate in rates[1]] == [False, True, True]
    assert rates[0] == pytest.approx(rates[1])
    assert json.loads((jobs[1] / "result.json").read_text())["memory"]["processes"] == 2
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name


def test_an_epoch_has_every_case_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    dataset = VolumeDataset(prepared(tmp_path, [0, 1, 2, 3, 0]), tiny())
    orders = [[int(dataset[epoch, place]["case"]) for place in range(5)] for epoch in range(3)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert torch.equal(dataset[1, 2]["image"], dataset[1, 2]["image"])


@pytest.mark.parametrize("name", ["pretrain_multi_domain", "random_probe"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*TINY, "schedule.epochs=3", "schedule.val_every=1", "runtime.save_every_s=0"]
    more += ["learning.unfreeze_at=null"] if name == "random_probe" else []
    whole, broken = (write_job(tmp_path / job, name, more) for job in ("whole", "broken"))
    run(whole)

    class Stopped(Exception):
        pass

    saves, original = 0, SaveCheckpoints._save

    def stopping(self: SaveCheckpoints, *arguments: Any) -> None:
        nonlocal saves
        original(self, *arguments)
        saves += 1
        if saves == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(SaveCheckpoints, "_save", stopping)
        with pytest.raises(Stopped):
            run(broken)
    assert run(broken)["resumed"]
    assert (whole / "history.csv").read_bytes() == (broken / "history.csv").read_bytes()
    assert (whole / "weights.pt").read_bytes() == (broken / "weights.pt").read_bytes()


def test_a_pretraining_gives_a_probe_its_initial_weights(tmp_path: Path) -> None:
    first = write_job(tmp_path / "pretrain", "pretrain_multi_domain", [*TINY, "schedule.val_every=1"])
    weights, history, _ = fitted(first)
    assert history["val_loss"].notna().all()
    assert (history["val_embedding_std"] >= 0).all()
    job = write_job(
        tmp_path / "probe", "random_probe", [*TINY, "learning.unfreeze_at=null", "initial=pretrain_multi_domain"]
    )
    (job / "initial.pt").write_bytes((first / "weights.pt").read_bytes())
    found, seen, _ = fitted(job)
    assert torch.equal(found["encoder.norm.weight"], weights["context_encoder.norm.weight"])
    assert (seen["overfit_loss"] < 0.05).all()


def test_no_case_of_the_protocol_is_said(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "a", protocol="maestro2_macula_6x6")
    cases = [TrainingCase("a", "p", "train", folder), TrainingCase("b", "q", "val", folder)]
    with pytest.raises(ConfigurationError, match="protocol"):
        task(tiny(), cases)
    assert json.loads((folder / "case.json").read_text())["study_group"] == CLASSES[0]
