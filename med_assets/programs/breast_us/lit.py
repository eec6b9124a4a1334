"""The ultrasound training task: loss, learning rates, distillation, and Dice on the validation images."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from med_assets.dataset.splits import hash_fraction
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.programs.breast_us import distil, samed
from med_assets.programs.breast_us.classes import truth_of, why_not
from med_assets.programs.breast_us.experiment import BreastExperiment, Loss, Part, Sam, Sam3
from med_assets.programs.breast_us.images import ImageDataset, as_mask
from med_assets.programs.breast_us.network import Segmenter, layer_of, released
from med_assets.programs.breast_us.predict import both_of
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.sam3_losses import native_loss
from med_assets.training.initial import state_dict
from med_assets.training.module import PatchModule, case_loader, patch_loader
from med_assets.training.reading import open_weights
from med_assets.training.task import Task, Teacher, TrainingCase

DICE = "val_dice"
"""Training-time Dice: mean over the validation images with a lesion of 2 |T and P| / (|T| + |P|) on the network's image, where the
logit is above 0."""

CLASS_DICE = "val_class_dice"
"""Of an experiment of several classes, the same of each class in the image's true mask, a pixel being of the class with the highest logit;
the mean over these classes, and over the images."""

MONITOR = "val_dice_loss"
"""1 - DICE, of several classes 1 - CLASS_DICE: lower is better, so it picks the best epoch."""

NORMALS = "val_normal_recognised"
"""Share of the validation images without a lesion on which nothing is predicted."""


class BreastModule(PatchModule):
    """Learns lesions of whole images, from their masks and, where there is one, from a teacher."""

    def __init__(self, experiment: BreastExperiment, n_val: int, teacher_channels: int | None = None) -> None:
        super().__init__(experiment, Segmenter(experiment), n_val)
        self.experiment = experiment
        self.adapter: distil.Adapter | None = None
        if teacher_channels is not None:
            channels = int(both_of(self.network, np.zeros((64, 64)), experiment.input_px)[1].shape[0])
            self.adapter = distil.Adapter(channels, teacher_channels)
        self._plateau: dict[str, float] = {"best": math.inf, "waited": 0, "factor": 1.0}

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch of images and its terms."""
        assert isinstance(self.network, Segmenter)
        network = self.experiment.network
        if isinstance(network, Sam3) and network.answer == "instances":
            return native_loss(self.network.outputs(batch["image"]), batch["mask"])
        settings, found = self.experiment.distil, self.network.both(batch["image"])
        task = mask_loss(found[0].float(), batch["mask"], self.experiment.loss)
        if settings is None:
            return task, {}
        matched = distil.terms(settings, (found[0].float(), found[1].float()), batch, self.adapter)
        weights = settings.model_dump()
        loss = settings.task * task + sum(weights[name] * value for name, value in matched.items())
        return torch.as_tensor(loss), {"task": task, **matched}

    def measured(self, case: PreparedCase) -> dict[str, float]:
        """Return the Dice of one image with a lesion, else whether nothing was predicted."""
        side = self.experiment.input_px
        true_classes = as_mask(truth_of(case, self.experiment.classes), side)
        logits = both_of(self.network, case.image, side)[0]
        called = logits.argmax(0, keepdim=True) if self.experiment.classes else logits > 0
        truth, predicted = true_classes > 0.5, called > 0
        if not truth.any():
            return {NORMALS: float(not predicted.any())}
        dice = _dice(truth, predicted)
        if not self.experiment.classes:
            return {DICE: dice, MONITOR: 1 - dice}
        each = [_dice(true_classes == one, called == one) for one in true_classes[truth].unique()]
        by_class = sum(each) / len(each)
        return {DICE: dice, CLASS_DICE: by_class, MONITOR: 1 - by_class}

    def configure_optimizers(self) -> Any:
        """AdamW; one factor for all groups, which leaves the ratio between them as it is, stepped per batch."""
        optimiser, rates = self.experiment.optimiser, self.experiment.rates
        groups: dict[tuple[float, float], list[Tensor]] = {}
        named = [*self.network.named_parameters(), *(self.adapter.named_parameters() if self.adapter else [])]
        for name, parameter in named:
            if parameter.requires_grad:
                decay = optimiser.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((lr_factor(name, self.experiment), decay), []).append(parameter)
        adam = torch.optim.AdamW(
            [
                {"params": parameters, "lr": optimiser.lr * factor, "weight_decay": decay}
                for (factor, decay), parameters in sorted(groups.items(), reverse=True, key=lambda item: item[0])
            ]
        )
        epochs = max(1, self.settings.schedule.epochs)
        steps = max(1, int(self.trainer.estimated_stepping_batches) // epochs)
        warm, total = rates.warmup * steps, epochs * steps
        floor = optimiser.min_lr / optimiser.lr

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / warm) if warm else 1.0
            if rates.schedule == "poly":
                left = 1 - min(1.0, max(0.0, step - warm) / max(1.0, total - warm))
                return rise * (floor + (1 - floor) * left**rates.power)
            return rise * (max(floor, self._plateau["factor"]) if rates.schedule == "plateau" else 1.0)

        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_end(self) -> None:
        """Average over the cases, and lower the factor of a plateau when nothing was gained for long enough."""
        super().on_validation_epoch_end()
        value, state = self._validated.get(MONITOR), self._plateau
        if value is None or self.trainer.sanity_checking:
            return
        if value < state["best"]:
            state["best"], state["waited"] = value, 0
            return
        state["waited"] += 1
        if state["waited"] >= self.experiment.rates.patience:
            state["waited"], state["factor"] = 0, state["factor"] * self.experiment.rates.factor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of the epoch, and where the plateau stands."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["plateau"] = dict(self._plateau)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with both."""
        super().on_load_checkpoint(checkpoint)
        self._plateau.update(checkpoint["plateau"])


def _dice(truth: Tensor, predicted: Tensor) -> float:
    return 2 * float((truth & predicted).sum()) / float(truth.sum() + predicted.sum())


def mask_loss(logits: Tensor, mask: Tensor, settings: Loss) -> Tensor:
    """Return the mix of cross entropy and Dice of logits (b, outputs, h, w) and masks (b, 1, h, w), both over the whole batch.

    Dice is (2 sum(p t) + s) / (sum(p^2) + sum(t^2) + s), so that a batch of normals has a gradient too. Of several outputs a mask holds
    the number of each pixel's class, the cross entropy is that of the softmax, and Dice is the mean over the classes, background aside.
    """
    if logits.shape[1] > 1:
        return _loss_of_classes(logits, mask[:, 0].long(), settings)
    weight = torch.as_tensor(settings.pos_weight, device=logits.device)
    bce = functional.binary_cross_entropy_with_logits(logits, mask, pos_weight=weight)
    probability = torch.sigmoid(logits)
    both = (probability * mask).sum()
    sizes = probability.square().sum() + mask.square().sum()
    dice = (2 * both + settings.smooth) / (sizes + settings.smooth)
    return settings.bce * bce + settings.dice * (1 - dice)


def _loss_of_classes(logits: Tensor, classes: Tensor, settings: Loss) -> Tensor:
    weights = torch.where(classes > 0, settings.pos_weight, 1.0)
    entropy = (functional.cross_entropy(logits, classes, reduction="none") * weights).mean()
    probability = logits.softmax(1)[:, 1:]
    truth = functional.one_hot(classes, logits.shape[1]).movedim(-1, 1)[:, 1:].to(probability)
    over = (0, 2, 3)
    sizes = probability.square().sum(over) + truth.sum(over)
    dice = (2 * (probability * truth).sum(over) + settings.smooth) / (sizes + settings.smooth)
    return settings.bce * entropy + settings.dice * (1 - dice).mean()


def lr_factor(name: str, experiment: BreastExperiment) -> float:
    """Return what the learning rate of a parameter is multiplied by: its group's factor times the decay of its layer."""
    rates = experiment.rates
    fitting = [prefix for prefix in rates.groups if name.startswith(prefix)]
    group = rates.groups[max(fitting, key=len)] if fitting else 1.0
    return float(group * rates.layer_decay ** layer_of(name, experiment))


def in_part(patient_id: str, part: Part) -> bool:
    """Whether a patient is in the part; drawn by the patient alone, so that no later case moves it."""
    if part.take == "all":
        return True
    return (hash_fraction(patient_id, part.salt) < part.share) == (part.take == "adaptation")


def chosen_cases(
    cases: Sequence[TrainingCase], experiment: BreastExperiment
) -> list[tuple[TrainingCase, PreparedCase]]:
    """Return the training cases that an experiment uses. Raises ConfigurationError where that is none, or a data set is missing.

    Images whose pixels are not known by the experiment's classes are not used, and how many, and why, is printed.
    """
    data = experiment.data
    opened = [(case, PreparedCase.open(case.folder)) for case in cases if case.split == "train"]
    if absent := sorted(set(data.datasets) - {prepared.dataset for _, prepared in opened}):
        known = sorted({prepared.dataset for _, prepared in opened})
        raise ConfigurationError(f"data.datasets: expected data sets among the training images ({known}), got {absent}")
    found = [
        (case, prepared)
        for case, prepared in opened
        if (not data.datasets or prepared.dataset in data.datasets)
        and (data.normals or prepared.truth.any())
        and in_part(case.patient_id, data.part)
        and not why_not(prepared, experiment.classes)
    ]
    reasons = Counter(why_not(prepared, experiment.classes) for _, prepared in opened)
    for reason, n in sorted(reasons.items()):
        if reason:
            print(f"{n} training images are left out: {reason}", flush=True)
    if not found:
        raise ConfigurationError(
            f"expected training images in part {data.part.take} of data sets {list(data.datasets) or 'all'}, got none of "
            f"{len(opened)}; take in more, or choose another part"
        )
    return found


def task(
    experiment: Experiment,
    cases: Sequence[TrainingCase],
    teacher: Teacher | None = None,
    files: Mapping[str, Path] | None = None,
) -> Task:
    """Return what the training process runs for an experiment of this program. Raises ConfigurationError."""
    assert isinstance(experiment, BreastExperiment)
    train = [] if experiment.untrained else chosen_cases(cases, experiment)
    opened = [(case, PreparedCase.open(case.folder)) for case in cases if case.split == "val"]
    known = [(case, prepared) for case, prepared in opened if not why_not(prepared, experiment.classes)]
    val = [prepared for _, prepared in known]
    scored = any(case.truth.any() for case in val)
    kept = {case.case_id for case, _ in train} | {case.case_id for case, _ in known if scored}
    left_out = tuple(case.case_id for case in cases if case.case_id not in kept)
    if not scored and not experiment.untrained:
        raise ConfigurationError(
            f"expected a validation image with {' or '.join(experiment.classes) or 'a lesion'}, got none among {len(val)}: {DICE} would be undefined in every epoch; "
            "take in more images"
        )
    extra, channels = None, None
    if experiment.distil is not None and train:
        assert teacher is not None
        distil.demand_classes(teacher, experiment)
        folders = distil.answers(teacher, [case for case, _ in train])
        wanted = [distil.LOGIT, *([distil.FEATURE] if experiment.distil.feature or experiment.distil.attention else [])]

        def extra(number: int) -> dict[str, Tensor]:
            return distil.read_answer(folders[number], experiment.input_px, wanted)

        if experiment.distil.feature:
            channels = int(extra(0)[distil.FEATURE].shape[0])
    # The images depend on no global random state, so the weights are the only thing this seed decides.
    torch.manual_seed(experiment.seed)
    module = BreastModule(experiment, len(val), channels)
    own = dict(module.network.state_dict())
    given = None
    if experiment.adapters is not None:
        (path,) = (files or {}).values()
        given = state_dict(open_weights(path, f"the adapters {experiment.adapters}"))
    network = experiment.network
    adapted = isinstance(network, Sam) and samed.holds_all_that_is_trained(network, own)
    alone = adapted and experiment.initial != "random"
    loaders: tuple[Any, Any, Any] = None, None, None
    if scored:
        # Where nothing is trained, only a step's memory is measured with them.
        dataset = ImageDataset([prepared for _, prepared in train] or val, experiment, extra)
        loaders = module, patch_loader(dataset, len(dataset), experiment), case_loader(val)
    return Task(
        *loaders, MONITOR, lambda: dict(module.network.state_dict()), released(experiment, own, given),
        left_out=left_out, adapters=samed.write_adapters if alone else None,
    )  # fmt: skip
