"""Small Lightning callbacks: heartbeat and hang dump, peak memory, history, the best epoch, and atomic checkpoints.

What a resumed training needs of them is in their `state_dict`, and so in the same file as weights and optimiser.
"""

import csv
import faulthandler
import io
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from med_assets.files import replacing, write_json, write_text
from med_assets.training.task import Task

BEAT_EVERY_S = 1.0
"""Least time between two heartbeats within an epoch, s."""


class Heartbeat(Callback):
    """Writes `heartbeat.json` as training goes on, and all stacks to stderr when no batch ended for `hang_after_s`."""

    def __init__(self, path: Path, hang_after_s: float) -> None:
        self.path, self.hang_after_s, self._last = path, hang_after_s, 0.0
        self._at = (0, 0)

    def beat(self, phase: str, at: tuple[int, int] | None = None, *, always: bool = True) -> None:
        """Write a beat now, or, unless `always`, only when the last is a second old; `at` is (epoch, step)."""
        self._at = at or self._at
        faulthandler.dump_traceback_later(self.hang_after_s, repeat=True)
        now = time.time()
        if always or now - self._last >= BEAT_EVERY_S:
            self._last = now
            write_json(
                self.path, {"time": now, "pid": os.getpid(), "phase": phase, "epoch": self._at[0], "step": self._at[1]}
            )

    def stop(self, phase: str) -> None:
        """Write the last beat and stop watching."""
        self.beat(phase)
        faulthandler.cancel_dump_traceback_later()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.beat("train", (trainer.current_epoch, trainer.global_step))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.beat("train", (trainer.current_epoch, trainer.global_step), always=False)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.beat("validate", (trainer.current_epoch, trainer.global_step), always=False)


class PeakMemory(Callback):
    """Measures the most memory used: of the accelerator where there is one, else of the process."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @staticmethod
    def measured() -> dict[str, float | None]:
        """Return `peak_host_mb` and `peak_accelerator_mb`, MiB; the latter None without CUDA."""
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
        return {"peak_host_mb": round(host, 1), "peak_accelerator_mb": gpu and round(gpu, 1)}


class History(Callback):
    """Keeps one row per epoch, rewrites `history.csv` whole after each, and prints the row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.add({"epoch": trainer.current_epoch, "step": trainer.global_step, **pl_module.epoch_metrics})

    def add(self, row: dict[str, float]) -> None:
        """Add a row and write the file; a metric that an epoch does not have is left empty, never 0."""
        self.rows.append(row)
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
    """Saves the weights of the epoch with the lowest monitored value; stops after `patience` validations without."""

    def __init__(self, path: Path, task: Task, patience: int) -> None:
        self.path, self.task, self.patience = path, task, patience
        self.best: float | None = None
        self.epoch: int | None = None
        self.waited = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        value = pl_module.epoch_metrics.get(self.task.monitor)
        if value is not None and math.isfinite(value) and (self.best is None or value < self.best):
            self.best, self.epoch, self.waited = value, trainer.current_epoch, 0
            save_tensors(self.path, self.task.weights())
        else:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch, self.waited = state_dict["best"], state_dict["epoch"], state_dict["waited"]


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after each epoch: temporary file, fsync, rename. `key` says which job it belongs to."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["job_key"] = self.key


def save_tensors(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Save a plain state dict atomically, on the CPU, loadable with `weights_only=True`."""
    with replacing(path) as temporary:
        torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, temporary)
