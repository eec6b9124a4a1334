"""A loaded model applied to prepared images: what is kept of a prediction, its scores, and its pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from med_assets.metrics.score import Score
from med_assets.metrics.spread import Space
from med_assets.program import CasePredictor, Predicted
from med_assets.programs.breast_us.classes import are_organs, class_map, class_of_image, of_lesion
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.kept import (
    CHANCES,
    CLASSES,
    FEATURES,
    PROBABILITY,
    STRENGTH,
    read_classes,
    read_probability,
)
from med_assets.programs.breast_us.pictures import (
    case_picture,
    class_picture,
    confusion_picture,
    disagreement,
    feature_plane,
    gallery,
)
from med_assets.programs.breast_us.predict import load_predictor, probabilities
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.score import score_case, score_classes
from med_assets.storage.files import write_json
from med_assets.training.accelerator import inference_device
from med_assets.training.ensemble import AS_IT_IS, Output

SHOWN = 6
"""Images in each row of a gallery."""


class LesionPredictor(CasePredictor):
    """Predicts images with one checkpoint, on the machine's own pixels."""

    def __init__(self, checkpoint: Path) -> None:
        self.predictor = load_predictor(checkpoint, inference_device())

    def predict(self, prepared: Path, out: Path) -> None:
        self.keep(prepared, self.infer(prepared), out)

    def infer(self, prepared: Path, augmentation: str = AS_IT_IS, like: Output | None = None) -> Output:
        """The probabilities of a lesion, or of the background and each class, at the image's own pixels."""
        case = PreparedCase.open(prepared)
        mirrored = augmentation != AS_IT_IS
        logits, features = self.predictor.both(np.asarray(case.image)[:, ::-1] if mirrored else case.image)
        chances = probabilities(logits, case.image.shape)
        return Output(Space.PROBABILITIES, chances[..., ::-1] if mirrored else chances, own=features)

    def keep(self, prepared: Path, output: Output, out: Path) -> None:
        """Keep probabilities, and what sums up the features."""
        chances, features, classes = output.values, output.own, self.predictor.experiment.classes
        assert chances is not None
        if classes:
            np.save(out / CHANCES, chances.astype(np.float16))
            write_json(out / CLASSES, list(classes))
        np.save(out / PROBABILITY, (of_lesion(chances) if classes else chances[0]).astype(np.float16))
        np.save(out / FEATURES, features.mean((1, 2)).numpy())
        np.save(out / STRENGTH, features.square().mean(0).sqrt().numpy())


def score(prepared: Path, predicted: Path, settings: EvaluationSettings) -> list[Score]:
    """Score what `LesionPredictor.predict` kept. Raises NoTruth for a case to predict."""
    case = PreparedCase.open(prepared)
    several = read_classes(predicted)
    of_organs = several is not None and are_organs(several[1])
    found = score_case(case, read_probability(predicted).astype(np.float64), settings, of_organs)
    if several is not None:
        found += score_classes(case, *several, settings)
    return found


def facts(prepared: Path, predicted: Path, threshold: float) -> dict[str, float | str | None]:
    """Size of the predicted lesion, and how sure the model is of it."""
    pixel, probability = PreparedCase.open(prepared).pixel_mm, read_probability(predicted)
    n = int(np.count_nonzero(probability > threshold))
    of_classes: dict[str, float | str | None] = {}
    if (several := read_classes(predicted)) is not None:
        chances, names = several
        if are_organs(names):
            called = class_map(chances, threshold)
            return {f"{name}, pixels": float((called == number).sum()) for number, name in enumerate(names, start=1)}
        of_image = class_of_image(chances, threshold)
        of_classes = {f"probability of {name}": float(chance) for name, chance in zip(names, of_image, strict=True)}
    return {
        "lesion, pixels": float(n),
        "lesion, mm2": None if pixel is None else n * pixel[0] * pixel[1],
        "highest probability": float(probability.max()),
        "pixels between 0.1 and 0.9, share": float(np.mean((probability > 0.1) & (probability < 0.9))),
        **of_classes,
    }


def confidence(predicted: Path, threshold: float) -> float:
    """The mean probability inside the predicted lesion; without one how far the highest probability is from 1."""
    probability = read_probability(predicted)
    inside = probability[probability > threshold]
    return float(inside.mean(dtype=np.float64)) if inside.size else 1 - float(probability.max())


def plot(prepared: Path, predicted: Path, out: Path, threshold: float) -> list[Path]:
    """Outlines, probability and features of one case, as a PNG file under `out`."""
    case, probability = PreparedCase.open(prepared), read_probability(predicted)
    out.mkdir(parents=True, exist_ok=True)
    drawn = [
        case_picture(
            out / f"{case.case_id}_lesion.png", np.asarray(case.image), np.asarray(case.truth) if case.labelled else None,
            probability > threshold, probability, np.load(predicted / STRENGTH),
            f"case {case.case_id}" + (f", {case.label}" if case.labelled else ""),
        )
    ]  # fmt: skip
    if (several := read_classes(predicted)) is not None:
        chances, classes = several
        called = class_map(chances, threshold)
        truth = np.asarray(case.truth) if case.labelled else None
        path = out / f"{case.case_id}_classes.png"
        drawn.append(class_picture(path, np.asarray(case.image), truth, called, chances, classes))
    return drawn


def model_images(cases: Sequence[Predicted], out: Path, metric: str, threshold: float) -> list[tuple[Path, str]]:
    """The gallery of best, median and worst images, the plane of features, and where a student differs from its teacher."""
    drawn = []
    scored = sorted(
        (one for one in cases if one.scores.get(metric) is not None), key=lambda one: -(one.scores[metric] or 0)
    )
    out.mkdir(parents=True, exist_ok=True)
    if scored:
        middle = max(0, (len(scored) - SHOWN) // 2)
        chosen = {"best": scored[:SHOWN], "median": scored[middle : middle + SHOWN], "worst": scored[::-1][:SHOWN]}
        rows = {}
        for title, members in chosen.items():
            rows[title] = [
                (f"{one.row.facts['label']} {one.scores[metric]:.2f}", _arrays(one, threshold)) for one in members
            ]
        drawn.append((gallery(out / "gallery.png", rows), f"Best, median and worst held-out images by {metric}"))
    if len(cases) > 2:
        features = np.stack([np.load(one.predicted / FEATURES) for one in cases])
        labels, sets = ([str(one.row.facts[name]) for one in cases] for name in ("label", "dataset"))
        caption = "Mean features of the held-out images, principal components; colour by label, marker by data set"
        drawn.append((feature_plane(out / "features.png", features, labels, sets), caption))
    called = [
        (str(one.row.facts["label"]), read[1][int(class_of_image(read[0], threshold).argmax())], read[1])
        for one in cases
        if (read := read_classes(one.predicted)) is not None and str(one.row.facts["label"]) in read[1]
    ]
    if called:
        path = confusion_picture(out / "confusion.png", [(true, as_) for true, as_, _ in called], called[0][2])
        drawn.append(
            (path, f"True and most probable class of {len(called)} held-out images with a lesion of a known class")
        )
    taught = [one for one in cases if one.teacher is not None]
    if taught:
        differing = []
        for one in taught:
            assert one.teacher is not None
            student, teacher = read_probability(one.predicted), read_probability(one.teacher)
            apart = float(np.abs(student - teacher).mean())
            differing.append((apart, one.row.case_id, one, student, teacher))
        differing.sort(key=lambda item: (-item[0], item[1]))
        entries = [
            (
                f"{one.row.facts['label']}, mean difference {apart:.2f}",
                np.asarray(PreparedCase.open(one.prepared).image),
                s,
                t,
            )
            for apart, _, one, s, t in differing[:3]
        ]
        caption = "Held-out images on which student and teacher differ most"
        drawn.append((disagreement(out / "disagreement.png", entries), caption))
    return drawn


def _arrays(one: Predicted, threshold: float) -> dict[str, np.ndarray]:
    case = PreparedCase.open(one.prepared)
    prediction = read_probability(one.predicted) > threshold
    return {"image": np.asarray(case.image), "truth": np.asarray(case.truth), "prediction": prediction}
