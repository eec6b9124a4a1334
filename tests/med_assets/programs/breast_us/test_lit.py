"""Training: losses, rates, which images are used, augmentation, and what is learnt from a teacher."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us import distil
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.images import ImageDataset, augmented
from med_assets.programs.breast_us.lit import chosen_cases, in_part, mask_loss, task
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.training.job import run
from med_assets.training.task import Teacher, TrainingCase
from tests.med_assets.programs.breast_us.builders import TINY, P, write_job, write_prepared


def tiny(name: str = "tinyusfm", *overrides: str) -> BreastExperiment:
    found = load(P, name, [*TINY, *overrides], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def cases(folder: Path, *kinds: str, dataset: str = "BUSI") -> list[TrainingCase]:
    return [
        TrainingCase(
            f"c{i}", f"p{i}", "train", write_prepared(folder / f"c{i}", i, kind=kind, dataset=dataset), f"v{i}"
        )
        for i, kind in enumerate(kinds)
    ]


def test_the_loss_is_small_for_what_is_right_and_has_a_gradient_on_normals() -> None:
    settings, mask = tiny().loss, torch.zeros(2, 1, 8, 8)
    mask[0, 0, 2:5, 2:5] = 1
    right, wrong = mask_loss(20 * mask - 10, mask, settings), mask_loss(10 - 20 * mask, mask, settings)
    assert right < 0.01 < 0.9 < wrong
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    mask_loss(logits, torch.zeros(1, 1, 8, 8), settings).backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss.bce=0.3",), r"bce \+ dice = 1"),
        (("teacher=sam_lora",), "teacher and distil together"),
        (("distil={task:0.5,logit:0.3,feature:0.0,attention:0.0,temperature:4}", "teacher=sam_lora"), "got 0.8"),
        (("distil={task:1,logit:0,feature:0,attention:0,temperature:4}", "teacher=sam_lora"), "student alone"),
        (("distil={task:0.5,logit:0.5,feature:0,attention:0,temperature:40}", "teacher=sam_lora"), "temperature"),
        (("teacher=tinyusfm", "distil={task:0.5,logit:0.5,feature:0,attention:0,temperature:4}"), "another experiment"),
        (("input_px=30",), "multiple of the patch"),
    ],
)
def test_what_can_not_be_meant_is_refused(overrides: tuple[str, ...], message: str) -> None:
    given = [f"++{one}" if one.startswith("distil") else one for one in overrides]
    with pytest.raises(ConfigurationError, match=message):
        load(P, "tinyusfm", [*TINY, *given], profile="demo")


def test_a_distilled_experiment_needs_its_teacher_first() -> None:
    assert tiny("tinyusfm_from_sam").needs() == ("sam_lora",)
    assert tiny("tinyusfm_from_sam", "initial=tinyusfm").needs() == ("tinyusfm", "sam_lora")
    assert tiny("tinyusfm").hash() == tiny("tinyusfm", "teacher=null").hash()


def test_an_image_is_the_same_for_the_same_epoch_and_place_and_another_for_another(tmp_path: Path) -> None:
    opened = [PreparedCase.open(one.folder) for one in cases(tmp_path, "benign", "malignant", "normal")]
    first, second = (ImageDataset(opened, tiny("tinyusfm", "augment.warp=1", "augment.grey=1")) for _ in range(2))
    assert torch.equal(first[1, 2]["image"], second[1, 2]["image"])
    assert not torch.equal(first[1, 2]["image"], first[2, 2]["image"])
    assert sorted(first.order(1).tolist()) == [0, 0, 1, 1, 2, 2]


def test_all_maps_of_an_image_are_moved_together() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[0, 20:40, 10:30] = 1
    settings = tiny("tinyusfm", "augment.flip=1", "augment.warp=1", "augment.grey=0").augment
    moved = augmented(
        {"image": mask, "mask": mask, distil.LOGIT: mask[:, ::2, ::2]}, settings, np.random.default_rng(5)
    )
    assert not torch.equal(moved["mask"], mask)
    assert ((moved["image"] > 0.5) == (moved["mask"] > 0.5)).float().mean() > 0.98
    smaller = torch.nn.functional.interpolate(moved[distil.LOGIT][None], (64, 64), mode="bilinear")[0]
    assert ((smaller > 0.5) == (moved["mask"] > 0.5)).float().mean() > 0.97


def test_the_two_parts_are_disjoint_and_together_all(tmp_path: Path) -> None:
    parts = {
        take: tiny("tinyusfm", f"data.part.take={take}").data.part for take in ("all", "adaptation", "distillation")
    }
    patients = [f"patient-{number}" for number in range(400)]
    adapted, distilled = (
        {one for one in patients if in_part(one, parts[take])} for take in ("adaptation", "distillation")
    )
    assert not adapted & distilled
    assert adapted | distilled == set(patients)
    assert len(adapted) == pytest.approx(120, abs=30)
    assert all(in_part(one, parts["all"]) for one in patients)


def test_data_sets_and_normals_are_chosen_by_configuration(tmp_path: Path) -> None:
    found = [*cases(tmp_path / "a", "benign", "normal"), *cases(tmp_path / "b", "malignant", dataset="BUSBRA")]
    assert len(chosen_cases(found, tiny())) == 3
    assert len(chosen_cases(found, tiny("tinyusfm", "data.normals=false"))) == 2
    (only,) = chosen_cases(found, tiny("tinyusfm", "data.datasets=[BUSBRA]"))
    assert only[1].dataset == "BUSBRA"
    with pytest.raises(ConfigurationError, match="BUID"):
        chosen_cases(found, tiny("tinyusfm", "data.datasets=[BUID]"))
    balanced = ImageDataset([one for _, one in chosen_cases(found, tiny())], tiny("tinyusfm", "data.balance=true"))
    assert sum(balanced.cases[index].dataset == "BUSBRA" for index in balanced.order(0)) == 3


def test_the_ratio_of_rates_stays_through_warm_up_and_decline(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "rates.layer_decay=0.5", "rates.warmup=1"))
    run(job)
    newest = torch.load(sorted((job / "checkpoints").glob("step-*.ckpt"))[-1], weights_only=True)
    rates = sorted(
        {
            group["lr"] / newest["optimizer_states"][0]["param_groups"][0]["lr"]
            for group in newest["optimizer_states"][0]["param_groups"]
        }
    )
    assert rates == pytest.approx([0.5**number for number in (5, 4, 3, 2, 1, 0)])
    lines = (job / "history.csv").read_text().splitlines()
    found = [float(line.split(",")[lines[0].split(",").index("lr")]) for line in lines[1:]]
    assert found[0] < found[1] > found[2]


def test_a_plateau_lowers_the_rate_and_is_resumed(tmp_path: Path) -> None:
    plateau = (
        "rates.schedule=plateau",
        "rates.warmup=0",
        "rates.patience=1",
        "rates.factor=0.1",
        "optimiser.lr=1e-7",
        "optimiser.min_lr=0",
    )
    job = write_job(tmp_path / "job", overrides=(*TINY, *plateau))
    run(job)
    newest = torch.load(sorted((job / "checkpoints").glob("step-*.ckpt"))[-1], weights_only=True)
    losses = pd.read_csv(job / "history.csv")["val_dice_loss"].tolist()
    waited = sum(loss >= min(losses[:epoch]) for epoch, loss in enumerate(losses) if epoch)
    assert waited > 0
    assert newest["plateau"]["factor"] == pytest.approx(0.1**waited)


def random_teacher(tmp_path: Path) -> Teacher:
    """A teacher of random weights in a folder of its own."""
    from med_assets.programs.breast_us.network import Segmenter

    teacher = tiny()
    torch.manual_seed(1)
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "experiment.json").write_text(teacher.to_json())
    torch.save(Segmenter(teacher).state_dict(), folder / "weights.pt")
    return Teacher("checkpoint/abc", folder, tmp_path / "store")


def test_a_teachers_answers_are_computed_once_per_image_and_checkpoint(tmp_path: Path) -> None:
    found = cases(tmp_path / "cases", "benign", "malignant")
    teacher = random_teacher(tmp_path)
    folders = distil.answers(teacher, found)
    maps = distil.read_answer(folders[0], 32, [distil.LOGIT, distil.FEATURE])
    assert maps[distil.LOGIT].shape == (1, 32, 32)
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "store").rglob("*.npy"))]
    (teacher.folder / "weights.pt").unlink()  # it is not even loaded
    assert distil.answers(teacher, found) == folders
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "store").rglob("*.npy"))] == stamps
    better = distil.answer_key(Teacher("checkpoint/def", teacher.folder, teacher.store), "v0")
    assert better != distil.answer_key(teacher, "v0") != distil.answer_key(teacher, "v1")


def test_a_student_that_answers_as_its_teacher_has_nothing_left_to_learn() -> None:
    logits, features = torch.randn(2, 1, 8, 8), torch.rand(2, 4, 4, 4)
    settings = tiny("tinyusfm_from_sam_attention").distil
    assert settings is not None
    batch = {distil.LOGIT: logits, distil.FEATURE: features}
    found = distil.terms(settings, (logits, features), batch, None)
    assert set(found) == {"logit", "attention"}
    assert all(float(one) == pytest.approx(0, abs=1e-6) for one in found.values())
    other = distil.terms(settings, (-logits, features.flip(-1)), batch, None)
    assert all(float(one) > 0.001 for one in other.values())


def test_the_divergence_is_that_of_two_classes() -> None:
    student, teacher, temperature = torch.tensor([[0.3]]), torch.tensor([[2.0]]), 4.0
    p, q = (torch.softmax(torch.stack([torch.zeros(1, 1), one], -1) / temperature, -1) for one in (teacher, student))
    expected = float((p * (p / q).log()).sum() * temperature**2)
    assert float(distil.soft_divergence(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["tinyusfm_from_sam", "tinyusfm_from_sam_features", "tinyusfm_from_sam_attention"])
def test_a_student_is_trained_from_the_answers_of_its_teacher(tmp_path: Path, name: str) -> None:
    job = write_job(tmp_path / "job", name, (*TINY, "schedule.epochs=1"))
    rows = json.loads((job / "cases.json").read_text())
    (job / "cases.json").write_text(json.dumps([row | {"version": row["case_id"]} for row in rows]))
    with pytest.raises(ConfigurationError, match=r"no teacher\.json"):
        run(job)
    teacher = random_teacher(tmp_path)
    kept = {"key": teacher.key, "folder": str(teacher.folder), "store": str(teacher.store)}
    (job / "teacher.json").write_text(json.dumps(kept))
    assert run(job)["status"] == "completed"
    header = (job / "history.csv").read_text().splitlines()[0]
    assert "train_logit" in header
    assert ("train_feature" in header) == (name != "tinyusfm_from_sam")
    weights = torch.load(job / "weights.pt", weights_only=True)
    assert not any("adapter" in key for key in weights)


def test_a_training_without_a_lesion_to_validate_on_is_refused(tmp_path: Path) -> None:
    found = cases(tmp_path / "train", "benign")
    val = TrainingCase("n", "pn", "val", write_prepared(tmp_path / "n", 4, kind="normal"))
    with pytest.raises(ConfigurationError, match="validation image with a lesion"):
        task(tiny(), [*found, val])
