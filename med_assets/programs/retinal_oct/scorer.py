"""A loaded checkpoint applied to prepared cases: the prediction that is kept, and its scores."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.metrics.score import Score
from med_assets.metrics.spread import Space
from med_assets.program import CasePredictor
from med_assets.programs.retinal_oct.embeddings import EmbeddingCache
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from med_assets.programs.retinal_oct.facts import columns, logits_of_facts
from med_assets.programs.retinal_oct.kept import PREDICTION
from med_assets.programs.retinal_oct.neighbours import vote
from med_assets.programs.retinal_oct.network import Classifier, build_encoder
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.score import ALL, BALANCED, LOG_LOSS, score_case
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.storage.files import read_json, write_json
from med_assets.training.accelerator import inference_device
from med_assets.training.ensemble import AS_IT_IS, Output
from med_assets.training.tensors import demand_fit, load_weights, read_checkpoint


def load_predictor(checkpoint: Path, embeddings: Path) -> CasePredictor:
    """Return the predictor of a checkpoint folder: of a classifier, of nearest neighbours, or of a pretraining. Raises CheckpointMismatch."""
    experiment, weights = read_checkpoint("retinal_oct", checkpoint)
    assert isinstance(experiment, RetinalExperiment)
    experiment.demand_known_inputs()
    if experiment.mode == "pretrain":
        return PretrainPredictor(experiment, weights)
    if experiment.learning.of_facts is not None:
        return FactsPredictor(experiment, weights)
    if experiment.learning.neighbours is not None:
        return NeighbourPredictor(experiment, weights, EmbeddingCache(embeddings))
    return ClassPredictor(experiment, weights, EmbeddingCache(embeddings))


def unscored(metric: str, case: PreparedCase) -> Score:
    """A score that a case does not have, which says why: it is not missing."""
    return Score(metric, ALL, None, "1", f"undefined: volumes of {case.protocol} are not scored by this model")


class ClassPredictor(CasePredictor):
    """Predicts the class of the volumes of the experiment's protocols, and of those that state none; not of others."""

    how = ""
    """How it predicts, in the convention of its scores; empty for a head on an encoder."""

    def __init__(self, experiment: RetinalExperiment, weights: dict[str, torch.Tensor], cache: EmbeddingCache) -> None:
        self.experiment, self.cache = experiment, cache
        self.network = Classifier(experiment.network, experiment.head)
        load_weights(self.network, weights)
        self.network.to(inference_device()).eval()

    def predict(self, prepared: Path, out: Path) -> None:
        self.keep(prepared, self.infer(prepared), out)

    def infer(self, prepared: Path, augmentation: str = AS_IT_IS, like: Output | None = None) -> Output:
        """The logits of the classes; no values for a volume of another protocol."""
        case = PreparedCase.open(prepared, self.experiment.network.size)
        if case.protocol and case.protocol not in self.experiment.protocols:
            return Output(Space.CLASS_LOGITS, None)
        mirrored = replace(case, image=np.ascontiguousarray(case.image[..., ::-1]))
        return Output(Space.CLASS_LOGITS, self.logits(case if augmentation == AS_IT_IS else mirrored))

    def keep(self, prepared: Path, output: Output, out: Path) -> None:
        """Keep the class, the probabilities and the logits."""
        experiment, logits = self.experiment, output.values
        case = PreparedCase.open(prepared, experiment.network.size)
        if logits is None:
            write_json(out / PREDICTION, {"protocol": case.protocol})
            return
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        trained = "frozen" if experiment.probe_only else "fine-tuned"
        size = " x ".join(map(str, experiment.network.size))
        how = self.how or f"z-score, {size}; {trained} encoder"
        how += f", mean of {output.averaged} predictions" if output.averaged > 1 else ""
        write_json(
            out / PREDICTION,
            {
                "class": CLASSES[int(logits.argmax())],
                "probabilities": dict(zip(CLASSES, map(float, chances), strict=True)),
                "logits": dict(zip(CLASSES, map(float, logits), strict=True)),
                "protocol": case.protocol,
                "trained_on": list(experiment.protocols),
                "how": how,
            },
        )

    def logits(self, case: PreparedCase) -> np.ndarray:
        """The logits of the classes of a case, (class)."""
        experiment = self.experiment
        embedding = self.cache.of(self.network.encoder, experiment.network, [case], 1, experiment.head.attention)
        with torch.inference_mode():
            found = self.network.head(embedding.to(next(self.network.parameters()).device))[0]
        return np.asarray(found.double().cpu().numpy())


class NeighbourPredictor(ClassPredictor):
    """Predicts the class that most of the nearest training cases have."""

    def __init__(self, experiment: RetinalExperiment, weights: dict[str, torch.Tensor], cache: EmbeddingCache) -> None:
        self.experiment, self.cache = experiment, cache
        self.encoder = build_encoder(experiment.network)
        n, width = len(weights.get("labels", ())), experiment.network.hidden
        expected = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()} | {
            "bank": torch.empty(n, width), "labels": torch.empty(n), "class_weights": torch.empty(len(CLASSES)),
            "mean": torch.empty(width), "std": torch.empty(width), "k": torch.tensor(0),
        }  # fmt: skip
        demand_fit(expected, weights, "the weights of the checkpoint", "load it with its own experiment")
        self.votes = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.")}
        self.encoder.load_state_dict(
            {name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")}
        )
        self.encoder.to(inference_device()).eval()
        size = " x ".join(map(str, experiment.network.size))
        self.how = f"z-score, {size}; frozen encoder, {int(self.votes['k'])} nearest neighbours"

    def logits(self, case: PreparedCase) -> np.ndarray:
        """Logarithms of the classes' shares of the votes."""
        settings = self.experiment.learning.neighbours
        assert settings is not None
        embedding = self.cache.of(self.encoder, self.experiment.network, [case], 1)
        return np.asarray(vote(embedding, self.votes, settings.temperature)[0].numpy())


class FactsPredictor(ClassPredictor):
    """Predicts the class that facts of the case make likely, and looks at no volume."""

    def __init__(self, experiment: RetinalExperiment, weights: dict[str, torch.Tensor]) -> None:
        settings = experiment.learning.of_facts
        assert settings is not None
        self.experiment, self.settings, self.fitted = experiment, settings, weights
        one, names = torch.tensor(0.0), columns(settings)
        expected = {
            "coefficients": torch.empty(len(names), len(CLASSES)), "intercept": torch.empty(len(CLASSES)), "age_mean": one, "age_std": one,
        }  # fmt: skip
        demand_fit(expected, weights, "the weights of the checkpoint", "load it with its own experiment")
        self.how = f"logistic regression on {', '.join(settings.facts)}; no volume"

    def logits(self, case: PreparedCase) -> np.ndarray:
        """The logits of the classes of a case, (class)."""
        return np.asarray(logits_of_facts([case], self.settings, self.fitted)[0].numpy())


class PretrainPredictor(CasePredictor):
    """Measures how well a pretraining predicts hidden tokens of a volume, under masks that are the same for all encoders."""

    SEED = 0

    def __init__(self, experiment: RetinalExperiment, weights: dict[str, torch.Tensor]) -> None:
        from med_assets.programs.retinal_oct.jepa import Jepa
        from med_assets.programs.retinal_oct.lit import published

        self.experiment = experiment
        self.network = Jepa(experiment)
        expected = published(self.network, experiment)
        demand_fit(expected, weights, "the weights of the checkpoint", "load it with its own experiment")
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(weights[name])
        self.network.to(inference_device()).eval()

    def predict(self, prepared: Path, out: Path) -> None:
        case = PreparedCase.open(prepared, self.experiment.network.size)
        # A released encoder comes without its predictor.
        if case.protocol not in self.experiment.protocols or not self.experiment.schedule.epochs:
            write_json(out / PREDICTION, {"protocol": case.protocol, "prediction_error": None})
            return
        volume = torch.from_numpy(case.volume())[None, None].to(next(self.network.parameters()).device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(self.SEED)
            error = float(self.network.loss(volume))
        if not math.isfinite(error):
            raise CheckpointMismatch(f"expected a finite prediction error, got {error}: the weights are of no use")
        write_json(out / PREDICTION, {"prediction_error": error, "protocol": case.protocol})


def facts(predicted: Path) -> dict[str, float | str | None]:
    """The predicted class, and the probability of each."""
    kept = read_json(predicted / PREDICTION)
    if "probabilities" not in kept:
        return {}
    chances = {f"probability of {name}": float(chance) for name, chance in kept["probabilities"].items()}
    return {"class": str(kept["class"]), **chances}


def confidence(predicted: Path) -> float | None:
    """The highest probability of a class; None where no class was predicted."""
    chances = read_json(predicted / PREDICTION).get("probabilities")
    return max(map(float, chances.values())) if chances else None


def score(prepared: Path, predicted: Path) -> list[Score]:
    """Score what was kept of a prediction. Raises NoTruth for a case whose class nobody stated."""
    case, kept = PreparedCase.open(prepared), read_json(predicted / PREDICTION)
    if "prediction_error" in kept:
        error = kept["prediction_error"]
        if error is None:
            return [unscored("prediction_error", case)]
        convention = (
            "mean absolute difference of predicted and normalised target tokens, under fixed masks; comparable within one "
            "pretraining alone, since each encoder sets its own target"
        )
        return [Score("prediction_error", ALL, error, "1", convention)]
    if "logits" not in kept:
        return [unscored(BALANCED, case), unscored(LOG_LOSS, case)]
    logits = np.array([kept["logits"][name] for name in CLASSES])
    return score_case(case.label, logits, f"one volume of {case.protocol}, {kept['how']}")
