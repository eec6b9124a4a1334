"""The dose-prediction training task: network, loss, patches, and validation on whole volumes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from med_assets.errors import ConfigurationError
from med_assets.experiments import Experiment
from med_assets.programs.rt_dose import mean_dose
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.losses import DoseLoss
from med_assets.programs.rt_dose.patches import PatchDataset
from med_assets.programs.rt_dose.predict import Predictor, build_network, predict_volume
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site
from med_assets.training.ranks import EpochSampler, ValidationSampler, gathered
from med_assets.training.task import ClosedForm, Task, TrainingCase

MONITOR = "val_mae_gy"
"""The metric that picks the best epoch: mean over cases of the mean absolute error in the body, Gy; lower is better."""


def volume_metrics(case: PreparedCase, predicted_gy: np.ndarray, site: Site) -> dict[str, float]:
    """Return of one whole case the MAE in the body, Gy, and per target it has, predicted minus true D95, Gy."""
    true_gy, body = np.asarray(case.dose), np.asarray(case.body)
    metrics: dict[str, float] = {}
    if body.any():
        metrics[MONITOR] = float(np.abs(predicted_gy - true_gy)[body].mean(dtype=np.float64))
    for name in site.targets:
        mask = case.mask(name)
        if mask.any():
            low = [float(np.percentile(dose[mask], 5, method="lower")) for dose in (predicted_gy, true_gy)]
            metrics[f"val_d95_gap_{name}_gy"] = low[0] - low[1]
    return metrics


def mean_metrics(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over the cases that have it, in sorted order."""
    names = sorted({name for metrics in cases for name in metrics})
    return {
        name: math.fsum(case[name] for case in cases if name in case) / sum(name in c for c in cases) for name in names
    }


class DoseModule(lightning.LightningModule):
    """Trains on patches and validates on whole volumes; `epoch_metrics` holds what the history records."""

    def __init__(self, experiment: DoseExperiment, n_val: int) -> None:
        super().__init__()
        self.experiment = experiment
        self.network = build_network(experiment)
        self.loss = DoseLoss(experiment.losses, experiment.site)
        self.n_val = n_val
        self._lr = 0.0
        self._validated: dict[str, float] = {}
        self._batches = 0
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, float] = {}
        self._volumes: list[dict[str, float]] = []

    @property
    def epoch_metrics(self) -> dict[str, float]:
        """Learning rate, mean loss and terms over the batches, and the validation metrics if the epoch has any."""
        return {"lr": self._lr, **self._means, **self._validated}

    def configure_optimizers(self) -> Any:
        """AdamW, and a cosine over epochs, stepped per batch so that no checkpoint lies between the two."""
        optimiser, epochs = self.experiment.optimiser, self.experiment.schedule.epochs
        floor = optimiser.min_lr / optimiser.lr
        steps = max(int(self.trainer.estimated_stepping_batches) // max(epochs, 1), 1)

        def cosine(step: int) -> float:
            return floor + (1 - floor) * (1 + math.cos(math.pi * min(step // steps, epochs) / max(epochs, 1))) / 2

        adam = torch.optim.AdamW(self.network.parameters(), lr=optimiser.lr, weight_decay=optimiser.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, cosine)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Forget the epoch before."""
        self._batches, self._sums, self._means, self._validated = 0, {}, {}, {}
        self._lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of one batch of patches."""
        predicted = self.network(batch["input"], batch["constraints"])
        loss, terms = self.loss(predicted, batch)
        self._batches += 1
        for name, value in {"loss": loss, **terms}.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        total: Tensor = loss
        self.log("step_loss", total.detach(), on_step=True, on_epoch=False)
        return total

    def on_train_batch_end(self, *_: Any) -> None:
        """After the last batch of the epoch, average over its batches, those of the other processes included."""
        if self.trainer.is_last_batch:
            means = {name: self.trainer.strategy.reduce(total / self._batches) for name, total in self._sums.items()}
            self._means = {f"train_{name}": float(mean) for name, mean in means.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of an epoch that is not over, which a resumed training goes on with."""
        checkpoint["epoch_so_far"] = {"lr": self._lr, "batches": self._batches, "sums": self._sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of the epoch."""
        kept = checkpoint["epoch_so_far"]
        self._lr, self._batches = kept["lr"], kept["batches"]
        self._sums = {name: value.to(self.device) for name, value in kept["sums"].items()}

    def on_validation_epoch_start(self) -> None:
        """Start a new list of volumes."""
        self._volumes = []

    def validation_step(self, case: PreparedCase, index: int) -> None:
        """Predict one whole case and measure it in Gy."""
        predicted = predict_volume(self.network, case, self.experiment.inference) * np.float32(case.prescription_gy)
        self._volumes.append(volume_metrics(case, predicted, self.experiment.site))

    def on_validation_epoch_end(self) -> None:
        """Average over the cases, those that other processes predicted included."""
        self._validated = mean_metrics(gathered(self._volumes, self.n_val))
        self.log_dict(self._validated, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss and terms of the epoch."""
        self.log_dict({name: value for name, value in self.epoch_metrics.items() if name.startswith("train_")})

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave whole cases on the host: they are memory maps, read when predicted."""
        if isinstance(batch, PreparedCase):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def task(experiment: Experiment, cases: Sequence[TrainingCase]) -> Task | ClosedForm:
    """Return what the training process runs for an experiment of this program.

    Raises ConfigurationError when a case is of another site than the experiment.
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
        return ClosedForm(MONITOR, lambda: _mean_dose(experiment, folders["train"], opened["val"]))
    dataset = PatchDataset(opened["train"], experiment.site, experiment.patches, experiment.seed)
    workers = experiment.runtime.workers
    train = DataLoader(
        dataset,
        batch_size=experiment.schedule.batch,
        sampler=EpochSampler(len(dataset)),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Workers are seeded from it, so that a new iterator does not draw from torch's global random state.
        generator=torch.Generator(),
    )
    whole: Any = opened["val"]
    val: DataLoader[Any] = DataLoader(whole, batch_size=None, sampler=ValidationSampler(len(whole)), collate_fn=_same)
    # The patches depend on no global random state, so the weights are the only thing this seed decides.
    torch.manual_seed(experiment.seed)
    module = DoseModule(experiment, len(whole))
    return Task(module, train, val, MONITOR, lambda: dict(module.network.state_dict()))


def _mean_dose(
    experiment: DoseExperiment, train: Sequence[Path], val: Sequence[PreparedCase]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    weights = mean_dose.fit(train, experiment.site, experiment.network.template_mm)
    predictor = Predictor(experiment, weights)
    return weights, mean_metrics([volume_metrics(case, predictor(case), experiment.site) for case in val])


def _same(item: Any) -> Any:
    return item
