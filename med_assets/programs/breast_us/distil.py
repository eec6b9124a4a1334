"""Distillation: what a student is asked to match of its teacher, and the teacher's answers, computed once per image.

An answer is kept in the store under the hash of the teacher's checkpoint and the image's prepared content, so that no student and
no setting computes it again. Augmentation moves the answer with the image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import from_json
from med_assets.programs.breast_us.experiment import BreastExperiment, Distil
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.storage.artifacts import LocalStore
from med_assets.storage.files import digest
from med_assets.storage.versions import version_of, versioned
from med_assets.training.accelerator import inference_device
from med_assets.training.task import Teacher, TrainingCase

LOGIT, FEATURE = "teacher_logit", "teacher_feature"
"""Names of the maps that an answer adds to an image, and of their files, float16."""


def answer_key(teacher: Teacher, version: str) -> str:
    """Key of a teacher's answer to an image, by the version of its prepared content."""
    return f"answer/{digest(teacher.key, version, version_of(answers))}"


def demand_classes(teacher: Teacher, experiment: BreastExperiment) -> None:
    """Raise ConfigurationError unless the teacher tells the student's classes apart, in the same order."""
    of = from_json("breast_us", (teacher.folder / "experiment.json").read_text(encoding="utf-8"))
    assert isinstance(of, BreastExperiment)
    if of.classes != experiment.classes:
        theirs, wanted = (", ".join(one) or "lesion alone" for one in (of.classes, experiment.classes))
        raise ConfigurationError(
            f"expected a teacher of the student's classes ({wanted}), got one of {theirs}; give both the same `classes`"
        )


@versioned("1")
def answers(teacher: Teacher, cases: Sequence[TrainingCase]) -> list[Path]:
    """Return the folders of the teacher's answers to the cases, computing those that are not there; it is loaded only for those."""
    from med_assets.programs.breast_us.predict import load_predictor

    if missing := [case.case_id for case in cases if not case.version]:
        raise ConfigurationError(
            f"expected the version of each case's content, by which the teacher's answers are kept, got none of {missing[:5]}; "
            "start the training with `med-assets train`"
        )
    store, predictor = LocalStore(teacher.store), None
    keys = [answer_key(teacher, case.version) for case in cases]
    for key, case in zip(keys, cases, strict=True):
        if store.has(key):
            continue
        predictor = predictor or load_predictor(teacher.folder, inference_device())
        logits, features = predictor.both(PreparedCase.open(case.folder).image)
        with store.create(key) as folder:
            np.save(folder / f"{LOGIT}.npy", logits.numpy().astype(np.float16))
            np.save(folder / f"{FEATURE}.npy", features.numpy().astype(np.float16))
    return [store.fetch(key) for key in keys]


def read_answer(folder: Path, side: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Return an answer's maps by name, float32; the logits at the student's `side`."""
    maps = {name: torch.from_numpy(np.load(folder / f"{name}.npy").astype(np.float32)) for name in names}
    if maps[LOGIT].shape[-1] != side:
        maps[LOGIT] = functional.interpolate(maps[LOGIT][None], (side, side), mode="bilinear")[0]
    return maps


class Adapter(nn.Module):
    """Takes a student's features to as many channels as the teacher's: 1 x 1 convolution, batch norm, ReLU."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, wanted, 1), nn.BatchNorm2d(wanted), nn.ReLU())

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return adapted features at the teacher's (height, width)."""
        found: Tensor = functional.interpolate(self.layers(features), size, mode="bilinear")
        return found


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over pixels of KL(teacher || student), softened by T, times T^2, of logits (b, outputs, h, w). Hinton et al. 2015.

    One logit is that of two classes, [0, logit].
    """
    if student.shape[1] > 1:
        sure, like = (functional.log_softmax(one / temperature, dim=1) for one in (teacher, student))
        return (sure.exp() * (sure - like)).sum(1).mean() * temperature**2
    t, s = teacher / temperature, student / temperature
    p = torch.sigmoid(t)
    divergence = p * (functional.logsigmoid(t) - functional.logsigmoid(s))
    divergence = divergence + (1 - p) * (functional.logsigmoid(-t) - functional.logsigmoid(-s))
    return divergence.mean() * temperature**2


def attention_map(features: Tensor) -> Tensor:
    """Return the mean square over channels at each place, of unit length per image, (b, height * width). Zagoruyko 2017."""
    return functional.normalize(features.square().mean(1).flatten(1), dim=1)


def terms(
    settings: Distil, student: tuple[Tensor, Tensor], batch: dict[str, Tensor], adapter: Adapter | None
) -> dict[str, Tensor]:
    """Return the terms that have weight, by name, of a batch with the teacher's answers: logit, feature, attention."""
    logits, features = student
    found = {}
    if settings.logit:
        found["logit"] = soft_divergence(logits, batch[LOGIT], settings.temperature)
    if settings.feature and adapter is not None:
        wanted = batch[FEATURE]
        found["feature"] = functional.mse_loss(adapter(features, wanted.shape[-2:]), wanted)
    if settings.attention:
        size = features.shape[-2:]
        wanted = functional.interpolate(batch[FEATURE], size, mode="bilinear")
        # The squared distance of two unit maps, 0 to 2 for each image.
        found["attention"] = (attention_map(features) - attention_map(wanted)).square().sum(1).mean()
    return found
