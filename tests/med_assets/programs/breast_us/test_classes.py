"""Benign and malignant as classes: what is learnt and left out, scores by class, pictures, files, and a teacher of several classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread

from med_assets.dicom.segmentation_2d import read_segments_2d
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us import distil, kept, scorer
from med_assets.programs.breast_us.classes import class_map, class_of_image, truth_of
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.export import write_measurements, write_prediction
from med_assets.programs.breast_us.images import ImageDataset
from med_assets.programs.breast_us.lit import BreastModule, chosen_cases, mask_loss, task
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.prepare import prepare_case
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.score import pooled, score_classes
from med_assets.records import CaseScore
from med_assets.training.job import run
from med_assets.training.task import Teacher, TrainingCase
from tests.med_assets.programs.breast_us.builders import TINY, P, write_case, write_job, write_prepared

BOTH = ("benign", "malignant")


def tiny(name: str = "tinyusfm_classes", *overrides: str) -> BreastExperiment:
    found = load(P, name, [*TINY, *overrides], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def cases(folder: Path, *kinds: str, split: str = "train") -> list[TrainingCase]:
    return [
        TrainingCase(f"{split}{i}", f"p{i}", split, write_prepared(folder / f"{split}{i}", i, kind=kind), f"v{i}")
        for i, kind in enumerate(kinds)
    ]


def checkpoint(folder: Path, experiment: BreastExperiment) -> Path:
    """A network of random weights in a checkpoint folder."""
    torch.manual_seed(1)
    folder.mkdir()
    (folder / "experiment.json").write_text(experiment.to_json())
    torch.save(Segmenter(experiment).state_dict(), folder / "weights.pt")
    return folder


def test_one_class_beside_the_background_is_learnt_as_the_lesion_alone_is() -> None:
    generator = torch.Generator().manual_seed(0)
    lesion = torch.randn(2, 1, 8, 8, generator=generator)
    mask, settings = (torch.rand(2, 1, 8, 8, generator=generator) > 0.6).float(), tiny().loss
    settings = settings.model_copy(update={"pos_weight": 3.0})
    two = torch.cat([torch.zeros_like(lesion), lesion], dim=1)
    assert float(mask_loss(two, mask, settings)) == pytest.approx(float(mask_loss(lesion, mask, settings)), rel=1e-5)
    other = lesion.flip(0)
    wanted = distil.soft_divergence(lesion, other, 4.0)
    found = distil.soft_divergence(two, torch.cat([torch.zeros_like(other), other], dim=1), 4.0)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_the_loss_of_a_lesion_called_the_other_class_is_large() -> None:
    classes, settings = torch.zeros(1, 1, 8, 8), tiny().loss
    classes[..., 2:5, 2:5] = 2
    right = 20 * torch.nn.functional.one_hot(classes[:, 0].long(), 3).movedim(-1, 1).float()
    other = right[:, [0, 2, 1]]
    assert mask_loss(right, classes, settings) < 0.01 < 0.8 < mask_loss(other, classes, settings)


def test_an_image_of_no_known_class_is_left_out_of_training_and_validation_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = cases(tmp_path, "benign", "malignant", "normal", "lesion")
    given += cases(tmp_path, "malignant", "lesion", split="val")
    assert len(chosen_cases(given, tiny("tinyusfm"))) == 4
    chosen = [prepared for _, prepared in chosen_cases(given, tiny())]
    assert [one.label for one in chosen] == ["benign", "malignant", "normal"]
    assert "1 training images are left out: its label is lesion, none of benign, malignant" in capsys.readouterr().out
    assert set(task(tiny(), given).left_out) == {"train3", "val1"}
    dataset = ImageDataset(chosen, tiny("tinyusfm_classes", "augment.warp=1"))
    values = {tuple(dataset[0, place]["mask"].unique().tolist()) for place in range(3)}
    assert values == {(0.0, 1.0), (0.0, 2.0), (0.0,)}


def test_classes_that_can_not_be_meant_are_refused() -> None:
    for overrides, message in (
        (("classes=[benign,benign]",), "each class once"),
        (("classes=[benign,normal]",), "none of normal"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            tiny("tinyusfm_classes", *overrides)
    with pytest.raises(ConfigurationError, match="an output for each class"):
        load(P, "sam3", ["classes=[benign,malignant]"], profile="demo")
    with pytest.raises(ConfigurationError, match="multimask_outputs 3"):
        load(P, "sam_classes", ["classes=[benign,malignant,cyst]"], profile="demo")
    assert tiny("tinyusfm").objection_to(tiny()) == (
        "its classes are benign, malignant, and those of this experiment are lesion alone"
    )
    assert tiny("tinyusfm").hash() == tiny("tinyusfm", "classes=[]").hash() != tiny().hash()


@pytest.mark.parametrize("name", ["sam_classes", "segformer", "tinyusfm_classes"])
def test_each_family_has_an_output_for_the_background_and_for_each_class(name: str) -> None:
    experiment = load(P, name, ["input_px=32", "classes=[benign,malignant]"], profile="demo")
    assert isinstance(experiment, BreastExperiment)
    logits, _ = Segmenter(experiment).both(torch.rand(1, 1, 32, 32))
    assert logits.shape == (1, 3, 32, 32)


def test_validation_measures_the_class_and_not_the_lesion_alone(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "c", kind="malignant"))
    module = BreastModule(tiny(), 1)
    truth = torch.nn.functional.interpolate(
        torch.from_numpy(truth_of(case, BOTH))[None, None].float(), (32, 32), mode="nearest-exact"
    )
    for called, by_class in ((2, 1.0), (1, 0.0)):

        def both(images: torch.Tensor, called: int = called) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.zeros(1, 3, 32, 32)
            logits[:, 0], logits[:, called] = 1, 5 * (truth[:, 0] > 0).float()
            return logits, torch.zeros(1, 1, 1, 1)

        module.network.both = both  # type: ignore[union-attr,assignment,method-assign]  # answers of a known network
        found = module.measured(case)
        assert found["val_dice"] == 1
        assert found["val_class_dice"] == by_class == 1 - found["val_dice_loss"]


def chances_of(*classes: np.ndarray) -> np.ndarray:
    """Probabilities of the background and of classes."""
    return np.stack([1 - sum(classes), *classes])


def test_scores_by_class_are_those_by_hand(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "c", kind="benign"))
    truth = np.zeros(case.image.shape, np.uint8)
    truth[10:20, 10:20] = 1
    case = replace(case, stated_truth=truth)
    benign, malignant = np.zeros(truth.shape), np.zeros(truth.shape)
    benign[10:20, 10:15], malignant[10:20, 10:15] = 0.5, 0.25
    benign[10:20, 15:20], malignant[10:20, 15:20] = 0.2, 0.6
    chances = chances_of(benign, malignant)
    assert class_map(chances, 0.5)[15, [12, 17, 30]].tolist() == [1, 2, 0]
    found = {(one.metric, one.subject): one for one in score_classes(case, chances, BOTH, EvaluationSettings())}
    assert found["class_dice", "benign"].value == pytest.approx(2 * 50 / (100 + 50))
    assert found["class_dice", "malignant"].value is None
    assert found["class_probability", "malignant"].value == pytest.approx(0.425 / (0.425 + 0.35))
    assert [found["class_probability", name].truth for name in BOTH] == [1.0, 0.0]
    unknown = score_classes(replace(case, stated_label="lesion"), chances, BOTH, EvaluationSettings())
    assert {one.value for one in unknown} == {None}
    nothing = class_of_image(chances_of(0.1 * benign, 0.1 * malignant), 0.5)
    assert nothing == pytest.approx(class_of_image(chances, 0.5))


def score_row(case: int, subject: str, value: float, truth: bool) -> CaseScore:
    return CaseScore(
        program=P, experiment="e", checkpoint="c", case_id=f"c{case}", patient_id=f"p{case}", split="val", metric="class_probability",
        subject=subject, value=value, unit="1", convention="", truth=float(truth), prediction=None, limit=None, passed=None,
        passed_truth=None, n=None,
    )  # fmt: skip


def test_classes_of_a_split_are_pooled_with_area_interval_and_confusion() -> None:
    malignant = {True: (0.9, 0.8, 0.3), False: (0.1, 0.2, 0.6)}
    rows = []
    for truth, values in malignant.items():
        for chance in values:
            number = len(rows)
            rows += [score_row(number, "benign", 1 - chance, not truth), score_row(number, "malignant", chance, truth)]
    found = {(one.metric, one.subject): one for one in pooled(rows)}
    area = found["auroc", "malignant"]
    assert area.value == pytest.approx(8 / 9)
    assert area.n == 6
    assert area.low is not None  # type: ignore[attr-defined]  # pooled scores with an interval are PooledScore
    assert area.low < 8 / 9 <= area.high  # type: ignore[attr-defined]  # as above
    assert found["balanced_accuracy", "classes"].value == pytest.approx(2 / 3)
    counts = {subject: one.value for (metric, subject), one in found.items() if metric == "class_confusion"}
    assert counts == {
        "benign called benign": 2, "benign called malignant": 1, "malignant called benign": 1, "malignant called malignant": 2,
    }  # fmt: skip
    assert not [one for one in pooled([]) if one.metric == "auroc"]


def test_a_model_of_classes_is_trained_predicts_scores_draws_and_writes_a_segment_for_each(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "tinyusfm_classes", TINY)
    run(job)
    model, case = job / "result", job / "cases" / "case0"
    model = model if model.is_dir() else next(path.parent for path in job.rglob("weights.pt"))
    out = tmp_path / "out"
    out.mkdir()
    scorer.LesionPredictor(model).predict(case, out)
    chances, classes = kept.read_classes(out) or pytest.fail("expected classes")
    assert classes == BOTH
    assert chances.sum(0) == pytest.approx(1, abs=2e-3)
    assert kept.read_probability(out) == pytest.approx(chances[1:].sum(0), abs=2e-3)
    scores = scorer.score(case, out, EvaluationSettings())
    assert {"dice", "class_dice", "class_probability"} <= {one.metric for one in scores}
    assert {"probability of benign", "probability of malignant"} <= set(scorer.facts(case, out, 0.5))
    pictures = scorer.plot(case, out, tmp_path / "pictures", 0.5)
    assert [path.name for path in pictures] == ["case0_lesion.png", "case0_classes.png"]
    plain = tmp_path / "plain"
    plain.mkdir()
    scorer.LesionPredictor(checkpoint(tmp_path / "one", tiny("tinyusfm"))).predict(case, plain)
    assert sorted(path.name for path in plain.iterdir()) == ["features.npy", "probability.npy", "strength.npy"]
    assert {one.metric for one in scorer.score(case, plain, EvaluationSettings())} == {
        one.metric for one in scores if not one.metric.startswith("class_")
    }


def test_a_student_learns_from_a_teacher_of_its_classes_and_from_no_other(tmp_path: Path) -> None:
    given = [*cases(tmp_path, "benign", "malignant"), *cases(tmp_path, "malignant", split="val")]
    student = tiny("tinyusfm_classes_from_sam")
    teacher = Teacher("checkpoint/abc", checkpoint(tmp_path / "two", tiny()), tmp_path / "store")
    module = task(student, given, teacher).module
    assert isinstance(module, BreastModule)
    answers = distil.answers(teacher, given[:2])
    maps = distil.read_answer(answers[0], 32, [distil.LOGIT])
    assert maps[distil.LOGIT].shape == (3, 32, 32)
    batch = {
        "image": torch.rand(1, 1, 32, 32),
        "mask": torch.ones(1, 1, 32, 32),
        distil.LOGIT: maps[distil.LOGIT][None],
    }
    loss, terms = module.losses(batch)
    assert set(terms) == {"task", "logit"}
    assert float(loss.detach()) == pytest.approx(
        sum(weight * float(terms[name].detach()) for name, weight in (("task", 0.7), ("logit", 0.3)))
    )
    one = Teacher("checkpoint/def", checkpoint(tmp_path / "one", tiny("tinyusfm")), tmp_path / "store")
    with pytest.raises(ConfigurationError, match="student's classes"):
        task(student, given, one)


def test_a_prediction_is_written_with_a_segment_and_an_area_for_each_class(tmp_path: Path) -> None:
    raw = write_case(tmp_path / "raw", 1)
    prepared, out = tmp_path / "prepared", tmp_path / "out"
    prepared.mkdir()
    prepare_case("c", raw, prepared, {})
    shape = PreparedCase.open(prepared).image.shape
    benign, malignant = np.zeros(shape), np.zeros(shape)
    benign[10:20, 10:15], malignant[30:40, 30:50] = 0.9, 0.8
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    np.save(predicted / kept.PROBABILITY, (benign + malignant).astype(np.float16))
    np.save(predicted / kept.CHANCES, chances_of(benign, malignant).astype(np.float16))
    (predicted / kept.CLASSES).write_text('["benign", "malignant"]')
    path, _ = write_prediction(raw, prepared, predicted, out, "a model", 0.5)
    found = {one.label: int(one.mask.sum()) for one in read_segments_2d(dcmread(path))}
    assert found == {"benign": 50, "malignant": 200}
    (report,) = write_measurements(raw, prepared, out, "a model")
    areas = [float(item.MeasuredValueSequence[0].NumericValue) for item in numbers(dcmread(report))]
    assert areas[1] == pytest.approx(4 * areas[0])


def numbers(item: Dataset) -> list[Dataset]:
    """All numbers in the content tree of a report."""
    below = [found for child in item.get("ContentSequence", ()) for found in numbers(child)]
    return [item, *below] if item.get("ValueType") == "NUM" else below
