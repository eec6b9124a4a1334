"""The dose-prediction training task: network, loss, patches, and validation on whole volumes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.programs.rt_dose import diffusion, mean_dose
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.losses import DoseLoss
from med_assets.programs.rt_dose.patches import PatchDataset
from med_assets.programs.rt_dose.perceptual import Perceptual, random_weights, read_weights
from med_assets.programs.rt_dose.predict import Predictor, build_network, predict_case
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.resenc import Cascade
from med_assets.programs.rt_dose.resident import Keys, Resident
from med_assets.programs.rt_dose.site import Site
from med_assets.training.module import PatchModule, case_loader, mean_metrics, patch_loader
from med_assets.training.task import ClosedForm, Task, TrainingCase

MONITOR = "val_mae_gy"
"""The metric that picks the best epoch: mean over cases of the mean absolute error in the body, Gy; lower is better."""


FOLLOWED_GY = 70.0
"""Dose of the V70 of organs that is followed by epoch where a site limits it, Gy."""


def volume_metrics(case: PreparedCase, predicted_gy: np.ndarray, site: Site) -> dict[str, float]:
    """Return of one whole case the MAE in the body, Gy, and predicted minus planned: D95 of each target it has, Gy, and of each organ
    the volume at FOLLOWED_GY or more that the site limits, % of the organ.
    """
    true_gy, body = np.asarray(case.dose), np.asarray(case.body)
    metrics: dict[str, float] = {}
    if body.any():
        metrics[MONITOR] = float(np.abs(predicted_gy - true_gy)[body].mean(dtype=np.float64))
    for name in site.targets:
        mask = case.mask(name)
        if mask.any():
            low = [float(np.percentile(dose[mask], 5, method="lower")) for dose in (predicted_gy, true_gy)]
            metrics[f"val_d95_gap_{name}_gy"] = low[0] - low[1]
    for limit in site.limits:
        if (limit.metric, limit.unit) == (f"V{FOLLOWED_GY:g}", "%") and (mask := case.mask(limit.structure)).any():
            predicted, planned = (100 * float((dose[mask] >= FOLLOWED_GY).mean()) for dose in (predicted_gy, true_gy))
            metrics[f"val_v{FOLLOWED_GY:g}_gap_{limit.structure}_pct"] = predicted - planned
    return metrics


class DoseModule(PatchModule):
    """Learns the dose of patches, and predicts that of whole validation cases in Gy."""

    def __init__(
        self, experiment: DoseExperiment, n_val: int, files: Mapping[str, Path], resident: Resident | None = None
    ) -> None:
        super().__init__(experiment, build_network(experiment), n_val)
        self.experiment, self.resident = experiment, resident
        self.loss = DoseLoss(experiment.losses, experiment.site, experiment.adversary, _perceptual(experiment, files))
        self.noise = diffusion.schedule(experiment.diffusion) if experiment.network.kind == "ddpm" else None

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its terms."""
        if self.resident is not None:
            batch = self.resident.batch(batch["key"])
        if self.noise is not None:
            noise = diffusion.noise_by_region(batch["noise"], batch["input"], self.experiment)
            return diffusion.noise_loss(self.network, {**batch, "noise": noise}, self.noise, self.experiment.losses)
        weight = self.experiment.losses.rough
        if weight and isinstance(self.network, Cascade):
            rough, final = self.network.stages(batch["input"], batch["constraints"])
            (first, _), (second, terms) = self.loss(rough, batch), self.loss(final, batch)
            return second + weight * first, {**terms, "rough": first.detach()}
        loss, terms = self.loss(self.network(batch["input"], batch["constraints"]), batch)
        return loss, terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network; the discriminator, with its own learning rate; the learned weights of the loss, which do not decay."""
        groups = super().parameter_groups()
        if self.loss.discriminator is not None:
            groups.append({"params": list(self.loss.discriminator.parameters()), "lr": self.experiment.adversary.lr})
        if len(self.loss.log_variances):
            groups.append({"params": list(self.loss.log_variances.parameters()), "weight_decay": 0.0})
        return groups

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each group by its own norm, so that a discriminator does not shorten the steps of the network."""
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], self.experiment.optimiser.clip)

    def compiled(self) -> list[torch.nn.Module]:
        """The networks of a cascade one by one, since training calls them so."""
        return [self.network.first, self.network.second] if isinstance(self.network, Cascade) else [self.network]

    def measured(self, case: PreparedCase) -> dict[str, float]:
        """Predict one whole case and measure it in Gy."""
        predicted = predict_case(self.network, case, self.experiment, validating=True)
        predicted *= np.float32(case.prescription_gy)
        return volume_metrics(case, predicted, self.experiment.site)


def _perceptual(experiment: DoseExperiment, files: Mapping[str, Path]) -> Perceptual | None:
    if not experiment.losses.perceptual:
        return None
    weights = [read_weights(files[name]) for name in experiment.released_files()]
    return Perceptual((weights or [random_weights(experiment.seed)])[0], experiment.losses.perceptual_stride)


def task(
    experiment: Experiment, cases: Sequence[TrainingCase], files: Mapping[str, Path] | None = None
) -> Task | ClosedForm:
    """Return what the training process runs for an experiment of this program; `files` are the released ones that it reads.

    Raises ConfigurationError when a case is of another site than the experiment, CheckpointMismatch for a file that does not fit.
    """
    assert isinstance(experiment, DoseExperiment)
    folders = {split: [case.folder for case in cases if case.split == split] for split in ("train", "val")}
    opened = {split: [PreparedCase.open(folder) for folder in paths] for split, paths in folders.items()}
    for case in [*opened["train"], *opened["val"]]:
        if case.structures != experiment.site.structures:
            raise ConfigurationError(
                f"case {case.case_id} is of site {case.site}, the experiment trains {experiment.site.name}; "
                f"give the job cases of one site, or override site={case.site}"
            )
    if experiment.network.kind == "mean_dose":
        return ClosedForm(MONITOR, lambda _: _mean_dose(experiment, folders["train"], opened["val"]))
    if experiment.untrained and not opened["val"]:
        network = build_network(experiment)
        left_out = tuple(case.case_id for case in cases)
        return Task(None, None, None, MONITOR, lambda: dict(network.state_dict()), left_out=left_out)
    noisy = experiment.network.kind == "ddpm"
    dataset = PatchDataset(
        opened["train"] or opened["val"],  # of an untrained one, to measure a step's memory
        experiment.site,
        experiment.patches,
        experiment.seed,
        beams=experiment.network.beams,
        noisy=noisy,
    )
    whole = opened["val"]
    # The patches depend on no global random state, so the weights are the only thing this seed decides.
    torch.manual_seed(experiment.seed)
    resident = Resident(dataset) if experiment.patches.resident else None
    module = DoseModule(experiment, len(whole), files or {}, resident)
    train = patch_loader(Keys(dataset) if resident else dataset, len(dataset), experiment)
    return Task(module, train, case_loader(whole), MONITOR, lambda: dict(module.network.state_dict()))


def _mean_dose(
    experiment: DoseExperiment, train: Sequence[Path], val: Sequence[PreparedCase]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    weights = mean_dose.fit(train, experiment.site, experiment.network.template_mm)
    predictor = Predictor(experiment, weights)
    return weights, mean_metrics([volume_metrics(case, predictor(case), experiment.site) for case in val])
