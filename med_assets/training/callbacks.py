"""Small Lightning callbacks: heartbeat and hang dump, pauses, seeds, averaging, peak memory, history, the best epoch.

What a resumed training needs of them is in their `state_dict`, and so in the same file as weights and optimiser.

The moving average is our own. Lightning 2.6's EMAWeightAveraging starts from the weights after the first step, so that tiny trainings end
elsewhere (rt_dose by 0.010, lumbar_mr by 0.26), and restores the weights before the best epoch is saved, whose file then differs from what
was validated (rt_dose by 0.009); with both mended it still averages counters, and misses buffers that a module fills after `setup`.
"""

import csv
import hashlib
import io
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim.swa_utils import get_ema_multi_avg_fn

from med_assets.errors import BelowReference
from med_assets.storage.files import replacing, write_text
from med_assets.training.heartbeat import BEAT_EVERY_S, Beats
from med_assets.training.peak_memory import measured_peak, reset_peak
from med_assets.training.ranks import rank, rank_and_size
from med_assets.training.task import Task
from med_assets.training.temperature import Thermometer


class Heartbeat(Beats, Callback):
    """The heartbeat of a training: it beats at the end of each batch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.beat("train", (epoch_of(trainer), trainer.global_step))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.beat("train", (epoch_of(trainer), trainer.global_step), always=False)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.beat("validate", (epoch_of(trainer), trainer.global_step), always=False)


class ThermalPause(Callback):
    """Rests, so that a machine with weak cooling stays within its limits.

    It rests for `pause_s` after each `every_s` of work, and, with `above_c`, while the hottest GPU in use is at least that hot.
    """

    def __init__(
        self,
        every_s: float | None,
        pause_s: float,
        heartbeat: Heartbeat,
        above_c: float | None = None,
        thermometer: Thermometer | None = None,
    ) -> None:
        self.every_s, self.pause_s, self.heartbeat = every_s, pause_s, heartbeat
        self.above_c = above_c
        self.thermometer = (thermometer or Thermometer()) if above_c is not None else None
        self.pauses = 0
        self._since = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._since = time.monotonic()
        if self.thermometer is not None:
            self.thermometer.start()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.thermometer is not None:
            self.thermometer.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        due = self.every_s is not None and time.monotonic() - self._since >= self.every_s
        while due or self._hot():
            self._pause()
            due = False

    def _hot(self) -> bool:
        read = None if self.thermometer is None else self.thermometer.hottest_c
        return self.above_c is not None and read is not None and read >= self.above_c

    def _pause(self) -> None:
        until = time.monotonic() + self.pause_s
        while (left := until - time.monotonic()) > 0:
            # Beating all the while, or a long pause would look like a hang.
            self.heartbeat.beat("paused")
            time.sleep(min(left, BEAT_EVERY_S))
        self.pauses += 1
        self._since = time.monotonic()


class StepSeeds(Callback):
    """Seeds Python, NumPy and torch anew before each training step and each validation.

    A seed is a function of the experiment's seed, epoch, batch and process, so dropout and augmentation on the device
    draw the same numbers in a resumed training, with no random state to keep in a checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._seed("train", trainer.current_epoch, batch_idx)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._seed("validate", trainer.current_epoch, 0)

    def _seed(self, *what: str | int) -> None:
        text = json.dumps([self.seed, rank_and_size()[0], *what]).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from the global state are whom this is for
        torch.manual_seed(seed)


class MovingAverage(Callback):
    """Exponential moving average of the weights: `average = decay * average + (1 - decay) * weights` after each step.

    Validation sees the average, and it is what the best epoch saves; training goes on with the weights themselves.
    It must come after BestEpoch in the list of callbacks. Integer buffers are copied, not averaged.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self._update = get_ema_multi_avg_fn(decay)
        self._step = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        now = pl_module.state_dict()
        start = self.average or now
        self.average = {name: start[name].detach().to(now[name].device, copy=True) for name in now}
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        now = pl_module.state_dict()
        floating = [name for name, tensor in now.items() if tensor.is_floating_point()]
        self._update([self.average[name] for name in floating], [now[name] for name in floating], 0)
        for name in now.keys() - set(floating):
            self.average[name].copy_(now[name])

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._swap(pl_module)

    def _swap(self, pl_module: Any) -> None:
        if not self.average:  # epoch 0: nothing was averaged yet
            return
        with torch.no_grad():
            for name, tensor in pl_module.state_dict().items():
                kept = tensor.clone()
                tensor.copy_(self.average[name])
                self.average[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = dict(state_dict["average"])


class PeakMemory(Callback):
    """Measures the most memory used in training and in validation: of the accelerator where there is one, and of the process.

    The host's peak is the process's highest resident size up to the end of that phase, since the system does not say
    it per phase. A phase of a resumed training is measured since the resume.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, float]] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        reset_peak()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._take("train")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._take("validate")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._take("train")

    def _take(self, phase: str) -> None:
        now = measured_peak()
        known = self.peaks.get(phase, {})
        self.peaks[phase] = {name: max(value, known.get(name, 0.0)) for name, value in now.items()}
        reset_peak()


def epoch_of(trainer: Any) -> int:
    """Number of the epoch that is being trained or validated, from 1; 0 is the initial weights."""
    return 0 if trainer.sanity_checking else int(trainer.current_epoch) + 1


class History(Callback):
    """Keeps one row per epoch, rewrites `history.csv` whole after each, and prints the row.

    Raises BelowReference when a metric of epoch 0 is below its `reference`.
    """

    def __init__(self, path: Path, reference: Mapping[str, float] | None = None) -> None:
        self.path, self.reference = path, reference or {}
        self.rows: list[dict[str, float]] = []

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        found = dict(pl_module.epoch_metrics)
        self.add({"epoch": 0, "step": 0, **found})
        for name, least in self.reference.items():
            if (value := found.get(name)) is None or not value >= least:
                raise BelowReference(
                    f"expected {name} of at least {least:g} from the initial weights of this training, got "
                    f"{'none' if value is None else format(value, '.4g')}; nothing was trained: check weights, labels and "
                    "preprocessing, or lower schedule.reference if these data are another task"
                )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.add({"epoch": epoch_of(trainer), "step": trainer.global_step, **pl_module.epoch_metrics})

    def add(self, row: dict[str, float]) -> None:
        """Add a row and write the file; a metric that an epoch does not have is left empty, never 0."""
        self.rows.append(row)
        if rank():
            return
        self.write()
        print(" ".join(f"{name}={value:.6g}" for name, value in row.items()), flush=True)

    def write(self) -> None:
        """Write all rows atomically, with the columns of all of them."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: repr(value) for name, value in row.items()} for row in self.rows])
        write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class BestEpoch(Callback):
    """Saves the weights of the epoch with the lowest monitored value; stops after `patience` validations without a gain.

    A gain is a value more than `min_delta` below that of the gain before it. The lowest value is the best epoch, whether it was a
    gain or not.
    """

    def __init__(self, path_of: Callable[[int], Path], task: Task, patience: int, min_delta: float = 0.0) -> None:
        self.path_of, self.task, self.patience, self.min_delta = path_of, task, patience, min_delta
        self.best: float | None = None
        self.gained: float | None = None
        self.epoch: int | None = None
        self.waited = 0

    @property
    def path(self) -> Path | None:
        """File with the weights of the best epoch; None before there is one."""
        return None if self.epoch is None else self.path_of(self.epoch)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        value = pl_module.epoch_metrics.get(self.task.monitor)
        finite = value is not None and math.isfinite(value)
        if finite and (self.best is None or value < self.best):
            self.best, self.epoch = value, epoch_of(trainer)
            if rank() == 0:
                save_tensors(self.path_of(self.epoch), self.task.weights())
        if finite and (self.gained is None or value < self.gained - self.min_delta):
            self.gained, self.waited = value, 0
        else:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited, "gained": self.gained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch, self.waited = state_dict["best"], state_dict["epoch"], state_dict["waited"]
        self.gained = state_dict.get("gained", self.best)  # every best was a gain before min_delta was there


def save_tensors(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Save a plain state dict atomically, on the CPU, loadable with `weights_only=True`; equal weights give equal bytes."""
    # Through a stream, since torch writes the name of a path, here a random one, into the file.
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, stream)
