"""How fast a training is, and what its steps are made of: written to the result, so that a machine's idle share shows."""

import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from med_assets.storage.files import write_text

PROFILE = "profile.txt"
"""File of a job with the profile of some of its steps."""

WARM_UP = 10
"""First steps of a start that are not timed: they allocate, choose convolutions and compile."""

ROWS = 30
"""Operations in a profile, those that take longest."""

BACKWARD = 2.0
"""Work of the backward pass as a multiple of the forward's: gradients of the input and of the weights of each layer."""

PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bf16 peak of a card by a part of its name, 10^12 floating-point operations per second, from NVIDIA's data sheets."""


def peak_tflops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of a device; None for a CPU and for a card that is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    # Whole words: an L40 is no L4, and an A10G no A10.
    return next((peak for part, peak in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name)), None)


class Speed(Callback):
    """Times the training steps, validation left out, and writes a profile of some of them if asked to.

    `flops` are those of the forward pass of one patch or case, `batch` how many of them all processes take at a time.
    Of a training in pieces it is the last piece that is timed: nothing of a clock may be in a checkpoint, which is to be the
    same to the bit however often it was stopped.
    """

    def __init__(self, flops: float, batch: int, profile_steps: int, profile: Path) -> None:
        self.flops = (1 + BACKWARD) * flops * batch
        self.batch, self.profile_steps, self.profile = batch, profile_steps, profile
        self.steps, self.seconds = 0, 0.0
        self._seen, self._began, self._device = 0, 0.0, torch.device("cpu")
        self._profiler: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._device = pl_module.device

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.profile_steps and self._seen == WARM_UP and self._profiler is None:
            self._profiler = torch.profiler.profile(record_shapes=False)
            self._profiler.__enter__()
        self._began = self._began or time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._seen += 1
        if self._profiler is not None and self._seen == WARM_UP + self.profile_steps:
            self._finish_profile()
            self._began = 0.0
        elif self._profiler is None and self._seen > WARM_UP:
            # Loading of the next batch is in the time of this one: the clock runs on from step to step.
            now = time.monotonic()
            self.steps, self.seconds = self.steps + 1, self.seconds + now - self._began
            self._began = now
        else:
            self._began = 0.0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._began = 0.0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = 0.0

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._profiler is not None:
            self._finish_profile()

    def measured(self) -> dict[str, Any]:
        """Return steps and patches (or cases) per second, and the share of the device's bf16 peak; None where not known."""
        if not self.steps:
            return {"timed_steps": 0, "steps_per_s": None, "items_per_s": None, "tflops": None, "bf16_share": None}
        rate, peak = self.steps / self.seconds, peak_tflops(self._device)
        tflops = rate * self.flops / 1e12
        return {
            "timed_steps": self.steps,
            "steps_per_s": round(rate, 4),
            "items_per_s": round(rate * self.batch, 4),
            "tflops": round(tflops, 4),
            "bf16_share": round(tflops / peak, 4) if peak else None,
        }

    def _finish_profile(self) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        by = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        write_text(self.profile, f"{self.profile_steps} training steps on {self._device.type}\n{table}\n")
