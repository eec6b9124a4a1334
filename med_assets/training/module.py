"""What the Lightning modules of all programs that train on patches and validate on whole cases have in common."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from med_assets.experiments.configuration import Experiment
from med_assets.training.ranks import EpochSampler, ValidationSampler, gathered


def mean_metrics(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over the cases that have it, in sorted order."""
    names = sorted({name for metrics in cases for name in metrics})
    return {
        name: math.fsum(case[name] for case in cases if name in case) / sum(name in c for c in cases) for name in names
    }


class PatchModule(lightning.LightningModule):
    """Trains `network` on patches and validates on whole cases; `epoch_metrics` holds what the history records.

    A program says what the loss of a batch is (`losses`) and what is measured of a whole case (`measured`).
    """

    def __init__(self, experiment: Experiment, network: nn.Module, n_val: int) -> None:
        super().__init__()
        self.settings = experiment
        self.network = network
        self.n_val = n_val
        self._lr = 0.0
        self._validated: dict[str, float] = {}
        self._batches = 0
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, float] = {}
        self._cases: list[dict[str, float]] = []

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch of patches, and its terms by name, each before its weight."""
        raise NotImplementedError

    def measured(self, case: Any) -> dict[str, float]:
        """Return the validation metrics of one whole case; those that it does not have are left out."""
        raise NotImplementedError

    def compiled(self) -> list[nn.Module]:
        """Return the modules that `runtime.compile` compiles: those whose forward the training calls."""
        return [self.network]

    def on_fit_start(self) -> None:
        """Compile on an accelerator, where asked for; in place, so that no name of a tensor changes."""
        if self.settings.runtime.compile and self.device.type == "cuda":
            for part in self.compiled():
                part.compile()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of AdamW; what a group does not say is the experiment's. The network's alone unless given."""
        return [{"params": [parameter for parameter in self.network.parameters() if parameter.requires_grad]}]

    @property
    def epoch_metrics(self) -> dict[str, float]:
        """Learning rate, mean loss and terms over the batches, and the validation metrics if the epoch has any."""
        return {"lr": self._lr, **self._means, **self._validated}

    def configure_optimizers(self) -> Any:
        """AdamW, and a cosine over epochs, stepped per batch so that no checkpoint lies between the two."""
        optimiser, epochs = self.settings.optimiser, max(1, self.settings.schedule.epochs)
        floor = optimiser.min_lr / optimiser.lr
        steps = max(1, int(self.trainer.estimated_stepping_batches) // epochs)

        def cosine(step: int) -> float:
            return floor + (1 - floor) * (1 + math.cos(math.pi * min(step // steps, epochs) / epochs)) / 2

        adam = torch.optim.AdamW(self.parameter_groups(), lr=optimiser.lr, weight_decay=optimiser.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, cosine)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Forget the epoch before."""
        self._batches, self._sums, self._means, self._validated = 0, {}, {}, {}
        self._lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of one batch of patches."""
        loss, terms = self.losses(batch)
        self._batches += 1
        for name, value in {"loss": loss, **terms}.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        self.log("step_loss", loss.detach(), on_step=True, on_epoch=False)
        return loss

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
        """Start a new list of cases."""
        self._cases = []

    def validation_step(self, case: Any, index: int) -> None:
        """Predict and measure one whole case."""
        self._cases.append(self.measured(case))

    def on_validation_epoch_end(self) -> None:
        """Average over the cases, those that other processes predicted included."""
        self._validated = mean_metrics(gathered(self._cases, self.n_val))
        self.log_dict(self._validated, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss and terms of the epoch."""
        self.log_dict({name: value for name, value in self.epoch_metrics.items() if name.startswith("train_")})

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave whole cases on the host: they are memory maps, read when predicted. Patches are dicts of tensors."""
        if not isinstance(batch, dict):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def patch_loader(dataset: Dataset[Any], length: int, experiment: Experiment) -> DataLoader[Any]:
    """Return a loader over the `length` patches of an epoch, in an order that a resumed training goes on with."""
    workers = experiment.runtime.workers
    return DataLoader(
        dataset,
        batch_size=experiment.schedule.batch,
        sampler=EpochSampler(length),
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=experiment.runtime.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Workers are seeded from it, so that a new iterator does not draw from torch's global random state.
        generator=torch.Generator(),
    )


def case_loader(cases: Any) -> DataLoader[Any]:
    """Return a loader over whole validation cases, one at a time and as they are."""
    return DataLoader(cases, batch_size=None, sampler=ValidationSampler(len(cases)), collate_fn=_same)


def _same(item: Any) -> Any:
    return item
