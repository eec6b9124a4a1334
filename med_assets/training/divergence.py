"""A training ends at the first loss that is no number, and names the batch that gave it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from med_assets.errors import TrainingDiverged
from med_assets.training.ranks import rank_and_size

SKIPPED_IN_A_ROW = 20
"""Batches in a row whose loss may be no number in 16-bit floating point: its scaler leaves their steps out, and weights stay whole."""

SHOWN = 16
"""Cases of a batch that a message names."""


class TrainingData(Protocol):
    """What a program's training data says of itself: its cases, each with a `case_id`, and which of them each position of an epoch takes."""

    cases: Sequence[Any]

    def order(self, epoch: int) -> Any:
        """Return the numbers of the cases that the positions of an epoch take."""


def cases_of(data: TrainingData, epoch: int, batch: int, size: int, length: int) -> list[str]:
    """Return the ids of the cases in a batch of this process, counted from 0 within an epoch of `length` batch items of this process."""
    first, step = rank_and_size()
    order = data.order(epoch)
    numbers = range(batch * size, min((batch + 1) * size, length))
    return [str(data.cases[int(order[first + step * number])].case_id) for number in numbers]


class StopAtNan(Callback):
    """Raises TrainingDiverged after a batch whose loss is NaN or infinite, before anything of it is saved or validated.

    The weights of the step before may be the cause, so the message names the batch of that step too. With a gradient scaler, which leaves out the steps
    of such batches, SKIPPED_IN_A_ROW of them are needed.
    """

    def __init__(self, train: Any) -> None:
        self.train, self.skipped = train, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        # Over all processes: one that alone went on would wait for the others for ever.
        if loss is None or bool(torch.isfinite(trainer.strategy.reduce(loss.detach()))):
            self.skipped = 0
            return
        self.skipped += 1
        if getattr(trainer.precision_plugin, "scaler", None) is not None and self.skipped < SKIPPED_IN_A_ROW:
            return
        mine = None if bool(torch.isfinite(loss)) else self._cases(trainer.current_epoch, batch_idx)
        before = self._cases(trainer.current_epoch, batch_idx - 1) if batch_idx else None
        wrong = _names_of(batch, lambda tensor: tensor.is_floating_point() and not bool(tensor.isfinite().all()))
        gave, earlier = _of_all(mine), _of_all(before)
        inputs = f"; not finite in it: {', '.join(wrong)}" if wrong else ""
        raise TrainingDiverged(
            f"the loss is no number at step {trainer.global_step} (epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}), of the cases "
            f"{_shown(gave)}{inputs}; the batch before it had the cases {_shown(earlier) or 'of the epoch before'}. Look at these cases, "
            "or lower optimiser.lr, ten times at first; nothing was published"
        )

    def _cases(self, epoch: int, batch_idx: int) -> list[str]:
        sampler = self.train.sampler
        return cases_of(self.train.dataset, epoch, batch_idx, self.train.batch_size, len(sampler))


def _names_of(batch: Any, wanted: Any) -> list[str]:
    return sorted(name for name, tensor in batch.items() if wanted(tensor)) if isinstance(batch, dict) else []


def _of_all(mine: list[str] | None) -> list[str]:
    """The cases of all processes, of those that have any."""
    if rank_and_size()[1] == 1:
        return mine or []
    parts: list[list[str] | None] = [None] * rank_and_size()[1]
    dist.all_gather_object(parts, mine)
    return [case for part in parts for case in part or []]


def _shown(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
    return ", ".join(sorted(cases)[:SHOWN]) + more
