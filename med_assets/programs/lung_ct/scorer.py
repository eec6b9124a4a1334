"""A loaded VISTA3D model applied to prepared cases: the predicted mask that is kept, its scores, and its picture."""

from pathlib import Path
from typing import Any

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.metrics.score import Score
from med_assets.metrics.spread import Space
from med_assets.program import CasePredictor
from med_assets.programs.lung_ct.evaluation_settings import EvaluationSettings
from med_assets.programs.lung_ct.experiment import Inference
from med_assets.programs.lung_ct.kept import ON_TRAINING_GRID, PREDICTION, SUMMARY, read_prediction, unpacked
from med_assets.programs.lung_ct.predict import load_predictor
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.lung_ct.score import score_case
from med_assets.storage.files import read_json, write_json
from med_assets.training.accelerator import inference_device
from med_assets.training.ensemble import AS_IT_IS, Output


class TargetPredictor(CasePredictor):
    """Predicts the target in whole volumes with one checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.predictor = load_predictor(checkpoint, inference_device())

    def predict(self, prepared: Path, out: Path) -> None:
        self.keep(prepared, self.infer(prepared), out)

    def infer(self, prepared: Path, augmentation: str = AS_IT_IS, like: Output | None = None) -> Output:
        """The logits of the target on the network's grid. Raises CaseRejected for a class with a side that is to be mirrored."""
        from med_assets.programs.lung_ct.transforms import forward

        case = PreparedCase.open(prepared)
        # The image is made again, equal to the stored one, since only a traced one knows the way back.
        image = like.own if like else forward(np.asarray(case.ct), case.geometry, case.spacing_mm)
        array = image[0].numpy()
        if augmentation == AS_IT_IS:
            (logits,) = self.predictor(array, [case.target_id])
            return Output(Space.LOGITS, logits, own=image)
        if {"left", "right"} & set(case.target.lower().replace("_", " ").split()):
            raise CaseRejected(
                "augmentation",
                f"expected a class without a side to predict with {augmentation}, got {case.target}: a mirror changes sides",
            )
        (logits,) = self.predictor(np.ascontiguousarray(array[::-1]), [case.target_id])
        return Output(Space.LOGITS, np.ascontiguousarray(logits[::-1]), own=image)

    def keep(self, prepared: Path, output: Output, out: Path) -> None:
        """Keep the mask that logits above 0 are, on both grids, and what sums them up."""
        from med_assets.programs.lung_ct.transforms import to_scanner_grid

        case, image, logits = PreparedCase.open(prepared), output.own, output.values
        assert logits is not None
        prediction = to_scanner_grid((logits > 0).astype(np.uint8), image).astype(bool)
        inference = self.predictor.experiment.inference
        np.save(out / PREDICTION, np.packbits(prediction))
        np.save(out / ON_TRAINING_GRID, np.packbits(np.asarray(logits) > 0))
        write_json(out / SUMMARY, _summary(case, prediction, logits) | {"inference": inference.model_dump()})


def score(prepared: Path, predicted: Path, settings: EvaluationSettings) -> list[Score]:
    """Score what `TargetPredictor.predict` kept, on the scanner's grid. Raises NoTruth for a case to predict."""
    case = PreparedCase.open(prepared)
    stated = read_json(predicted / SUMMARY)["inference"]
    inference = None if stated is None else Inference.model_validate(stated)
    prediction, on_training_grid = (
        unpacked(predicted / name, shape)
        for name, shape in ((PREDICTION, case.ct.shape), (ON_TRAINING_GRID, case.image.shape))
    )
    return score_case(case, prediction, on_training_grid, inference, settings)


def _summary(case: PreparedCase, prediction: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    inside = probability[logits > 0]
    return {
        "class": case.target_id,
        "name": case.target,
        "shape": list(prediction.shape),
        "volume_ml": int(np.count_nonzero(prediction)) * float(np.prod(case.geometry.spacing_mm)) / 1000,
        "highest_probability": float(probability.max()),
        "mean_probability_inside": float(inside.mean()) if inside.size else None,
        "uncertain_share": float(np.mean((probability > 0.1) & (probability < 0.9))),
    }


def facts(predicted: Path) -> dict[str, float | str | None]:
    """What a prediction says in a few numbers, and how sure it is."""
    kept = read_json(predicted / SUMMARY)
    return {
        "target": str(kept["name"]),
        "volume, ml": float(kept["volume_ml"]),
        "highest probability": float(kept["highest_probability"]),
        "mean probability inside": kept["mean_probability_inside"],
        "voxels between 0.1 and 0.9, share": float(kept["uncertain_share"]),
    }


def confidence(predicted: Path) -> float | None:
    """The mean probability inside the prediction; of an empty one how far the highest probability is from 1."""
    kept = read_json(predicted / SUMMARY)
    inside = kept["mean_probability_inside"]
    return 1 - float(kept["highest_probability"]) if inside is None else float(inside)


def plot(prepared: Path, predicted: Path, out: Path) -> list[Path]:
    """Outlines of the true and the predicted target on three axial slices of one case, as a PNG file under `out`."""
    from med_assets.reporting.mask_plots import plot_masks

    case = PreparedCase.open(prepared)
    prediction = read_prediction(predicted, case.ct.shape)
    truth = np.asarray(case.truth) == case.target_id if case.truths else None
    out.mkdir(parents=True, exist_ok=True)
    title = f"case {case.case_id}, {case.target}"
    return [
        plot_masks(
            out / f"{case.case_id}_target.png",
            np.asarray(case.ct),
            truth,
            prediction,
            case.geometry.spacing_mm,
            title=title,
        )
    ]
