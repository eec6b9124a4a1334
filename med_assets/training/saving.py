"""When a training saves itself: after each epoch, every so often within one, and when it is asked to stop."""

import time
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint

from med_assets.errors import TrainingStopped
from med_assets.training.callbacks import BestEpoch, Heartbeat
from med_assets.training.checkpoints import Checkpoints
from med_assets.training.ranks import rank
from med_assets.training.stopping import StopRequest

BEFORE_VALIDATION = 0.1
"""Share of `runtime.save_every_s` after which a checkpoint is due just before a validation, which may take long and
can't be resumed in its middle."""

NOTHING, SAVE, STOP = 0, 1, 2


class SaveCheckpoints(Checkpoint):
    """Writes the job's checkpoints, and ends the training at a step's end when it was asked to stop.

    Within an epoch a checkpoint is written when `every_s` passed since the last, where an optimiser step ended that is
    not the epoch's last; also before a validation when a tenth of that passed. Raises TrainingStopped when asked to
    stop: after saving, or, within a validation, at once, since the checkpoint before it is as good.
    """

    def __init__(
        self, checkpoints: Checkpoints, best: BestEpoch, heartbeat: Heartbeat, every_s: float, stop: StopRequest
    ) -> None:
        self.checkpoints, self.best, self.heartbeat = checkpoints, best, heartbeat
        self.every_s, self.stop = every_s, stop
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.stop.listen()
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done, every = batch_idx + 1, trainer.accumulate_grad_batches
        if done >= trainer.num_training_batches or done % every:
            return
        passed = time.monotonic() - self._saved_at
        before_validation = (
            done + every >= trainer.num_training_batches
            and (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        )
        due = passed >= self.every_s * (BEFORE_VALIDATION if before_validation else 1.0)
        decision = _agreed(trainer, STOP if self.stop.due else SAVE if due else NOTHING)
        if decision != NOTHING:
            self._save(trainer, trainer.current_epoch, done)
        if decision == STOP:
            self._end(trainer)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        if _agreed(trainer, STOP if self.stop.asked else NOTHING) == STOP:
            self._end(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, trainer.current_epoch + 1, 0)
        if _agreed(trainer, STOP if self.stop.due else NOTHING) == STOP:
            self._end(trainer)

    def _save(self, trainer: Any, epoch: int, batches: int) -> None:
        self.heartbeat.beat("save")
        if rank():
            # All processes take part in collecting the state; Lightning lets only the first write it.
            trainer.save_checkpoint(self.checkpoints.folder / "unused")
        else:
            self.checkpoints.write(trainer.save_checkpoint, trainer.global_step, epoch, batches, self.best.path)
        self._saved_at = time.monotonic()

    @staticmethod
    def _end(trainer: Any) -> None:
        raise TrainingStopped(
            f"training was asked to stop and did after step {trainer.global_step}; "
            "start the same command again and it goes on from its last checkpoint"
        )


def _agreed(trainer: Any, own: int) -> int:
    """The strongest decision of all processes: they save and stop together or not at all."""
    if trainer.world_size == 1:
        return own
    decision = torch.tensor(own, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(decision, reduce_op="max"))
