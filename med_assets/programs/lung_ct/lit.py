"""The VISTA3D training task: prompts, loss, patches, and training-time Dice on whole validation volumes."""

import warnings
from collections.abc import Iterable, Sequence
from math import fsum

import numpy as np
import torch
from torch import Tensor

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.programs.lung_ct.classes import check_mapping, relabelling
from med_assets.programs.lung_ct.dice import dice_on_grid
from med_assets.programs.lung_ct.experiment import LungExperiment
from med_assets.programs.lung_ct.labels import UNLABELLED
from med_assets.programs.lung_ct.network import build_network, class_logits, freeze_unused, released
from med_assets.programs.lung_ct.patches import PatchDataset
from med_assets.programs.lung_ct.predict import predict_logits
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.training.module import PatchModule, case_loader, patch_loader
from med_assets.training.task import Task, TrainingCase

DICE = "val_dice"
"""Training-time Dice: mean over the validation cases of the mean over the classes that the experiment trains and the case
has, of 2 |T and P| / (|T| + |P|) on the training grid, prediction where the logit is above 0, unlabelled voxels left out."""

MONITOR = "val_dice_loss"
"""1 - DICE: lower is better, so it picks the best epoch."""

TARGET_DICE = "val_dice_target"
"""The same of the target alone, in an experiment that trains other classes too."""

OUT_OF_PLAY = -30.0
"""Logit put at unlabelled voxels before the loss: their share of it is below 1e-12, and they pass no gradient."""


class LungModule(PatchModule):
    """Learns to segment what it is prompted for; validates by class prompts on whole volumes."""

    def __init__(self, experiment: LungExperiment, cases: Sequence[PreparedCase]) -> None:
        from monai.losses.dice import DiceCELoss

        super().__init__(experiment, build_network(experiment.network), len(cases))
        self.experiment = experiment
        self.frozen = freeze_unused(self.network, experiment.prompts)
        settings = experiment.loss
        self.loss = DiceCELoss(
            include_background=True, sigmoid=True, to_onehot_y=False, squared_pred=settings.squared,
            smooth_nr=settings.smooth_nr, smooth_dr=settings.smooth_dr, lambda_dice=settings.dice, lambda_ce=settings.ce,
        )  # fmt: skip
        self._relabel = {case.case_id: relabelling(case, experiment.labels) for case in cases}

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over patches of the mean loss over their prompts."""
        ask = self._by_class if self.experiment.prompts.drop_points == 1 else self._by_points
        found = list(ask(batch))
        return torch.stack(found).mean(), {}

    def _by_class(self, batch: dict[str, Tensor]) -> Iterable[Tensor]:
        """Loss of each patch, asked for its classes: all patches go through the network at once."""
        asked = sorted(set(batch["prompts"].unique().tolist()) - {0})
        logits = class_logits(self.network, batch["image"], asked)
        for index, row in enumerate(batch["prompts"].tolist()):
            own = [value for value in row if value]
            yield self._of(logits[index][[asked.index(value) for value in own]], batch["label"][index], own)

    def _by_points(self, batch: dict[str, Tensor]) -> Iterable[Tensor]:
        """Loss of each patch, asked by class, points or both: VISTA3D takes point prompts of one image at a time."""
        from monai.apps.vista3d.sampler import sample_prompt_pairs

        prompts = self.experiment.prompts
        # With a share of 0 every parameter gets a gradient, whichever prompts this step drew: processes wait for all.
        nothing = total_of(parameter for parameter in self.network.parameters() if parameter.requires_grad)
        for image, label, row in zip(batch["image"], batch["label"], batch["prompts"].tolist(), strict=True):
            classes, points, signs, asked = sample_prompt_pairs(
                label[None], [value for value in row if value], max_backprompt=len(row), max_point=prompts.max_points,
                drop_label_prob=prompts.drop_labels, drop_point_prob=prompts.drop_points,
            )  # fmt: skip
            assert asked is not None
            with warnings.catch_warnings():
                # MONAI blends points into class prompts on a mesh, in a way that torch will one day write otherwise.
                warnings.filterwarnings("ignore", message="torch.meshgrid")
                logits = self.network(
                    input_images=image[None], point_coords=points, point_labels=signs, class_vector=classes,
                    prompt_class=asked,
                )  # fmt: skip
            own = [int(value) for value in asked.flatten()]
            yield self._of(logits[:, 0], label, own) + 0.0 * nothing

    def _of(self, logits: Tensor, label: Tensor, classes: list[int]) -> Tensor:
        """Mean loss of the prompts of one patch: logits (n, x, y, z), label (1, x, y, z)."""
        logits = torch.where(label == UNLABELLED, OUT_OF_PLAY, logits.float())
        wanted = torch.tensor(classes, device=label.device)[:, None, None, None]
        # A float target: MONAI's squared Dice can't take the norm of booleans or integers.
        loss: Tensor = self.loss(logits[:, None], (label == wanted).float()[:, None])
        return loss

    def measured(self, case: PreparedCase) -> dict[str, float]:
        """Return the training-time Dice of one whole case; empty where it has none of the classes."""
        relabel = self._relabel[case.case_id]
        label = relabel(case.sources)
        present = [value for value in relabel.classes if (label == value).any()]
        if not present:
            return {}
        logits = predict_logits(self.network, case.image, present, self.experiment.inference)
        dices = {value: dice_on_grid(one, label, value) for value, one in zip(present, logits, strict=True)}
        found = [dice for dice in dices.values() if dice is not None]
        mean = fsum(found) / len(found)
        metrics = {DICE: mean, MONITOR: 1 - mean}
        target = dices.get(case.target_id)
        if self.experiment.labels.mode == "auto" and target is not None:
            metrics[TARGET_DICE] = target
        return metrics


def total_of(parameters: Iterable[Tensor]) -> Tensor:
    """Return the sum of all values of some tensors, float32."""
    return torch.stack([parameter.float().sum() for parameter in parameters]).sum()


def task(experiment: Experiment, cases: Sequence[TrainingCase]) -> Task:
    """Return what the training process runs for an experiment of this program.

    Raises ConfigurationError when cases were prepared for different targets or spacings, when a label mapping can't be
    meant, and, unless it is untrained, when no validation case has any of the classes.
    """
    assert isinstance(experiment, LungExperiment)
    train, val = (
        [PreparedCase.open(case.folder) for case in cases if case.split == split] for split in ("train", "val")
    )
    kinds = sorted({(case.target, tuple(case.spacing_mm)) for case in (*train, *val)})
    if len(kinds) > 1:
        raise ConfigurationError(
            f"expected cases prepared for one target at one spacing, got {kinds}; prepare them again with the same settings"
        )
    for warning in check_mapping((*train, *val), experiment.labels):
        print(f"warning: {warning}", flush=True)
    relabels = [relabelling(case, experiment.labels) for case in val]
    if not any(np.isin(one.classes, one(case.sources)).any() for case, one in zip(val, relabels, strict=True)):
        if experiment.untrained:
            network = build_network(experiment.network)
            left_out = tuple(case.case_id for case in cases)
            return Task(None, None, None, MONITOR, lambda: dict(network.state_dict()), released, left_out=left_out)
        wanted = sorted({value for one in relabels for value in one.classes})
        raise ConfigurationError(
            f"expected a validation case with labels of {wanted} ({val[0].target if val else 'no case at all'}), got none "
            f"among {len(val)}: {DICE} would be undefined in every epoch; assign a case that has some to validation"
        )
    # Where nothing is trained, only a step's memory is measured with them.
    dataset = PatchDataset(train or val, experiment)
    # The patches depend on no global random state, so the weights are the only thing this seed decides.
    torch.manual_seed(experiment.seed)
    module = LungModule(experiment, val)
    loader = patch_loader(dataset, len(dataset), experiment)
    return Task(module, loader, case_loader(val), MONITOR, lambda: dict(module.network.state_dict()), released)
