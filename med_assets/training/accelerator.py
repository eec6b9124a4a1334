"""Which devices a training gets, and which memory plan: chosen from free memory before it starts.

A memory plan is the whole batch at once, or one of `schedule.fallbacks`. Its need is estimated by

    need = states + SPARE * saved * (items of the plan / items of the probe) + fixed

`states` are weights, gradients, the two moments of AdamW and the moving average, if there is one, in 32 bit. `saved` is
what one training step keeps for its backward pass: the bytes of all tensors that autograd saves, weights left out,
counted in a dry run of one step, on the CPU, at the experiment's `probe`: a batch of one and a small patch. It grows in
proportion to batch x voxels in every convolutional net. `fixed` is the device's context and libraries, or, on a CPU,
the processes that read data.

The first plan whose need is within FILL of what is free is taken; when none is, the run does not start. A resumed
training keeps its plan (`memory_plan.json` in the job), so that resuming equals not having stopped.

The plan taken is no part of a checkpoint's key, while the fallbacks are. The key must be known before any machine is
measured: the graph, the launcher and the store ask for it. A plan without a patch only cuts the same batch into pieces
whose gradients are added up, so the result is the same up to rounding, as it is between devices. A plan with another
patch is another training; an experiment that has one in its fallbacks accepts either, and the result records which it
was.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from med_assets.errors import ConfigurationError, OutOfMemory
from med_assets.experiments.configuration import Experiment, MemoryPlan
from med_assets.storage.files import read_json, write_json
from med_assets.storage.memory import free_host
from med_assets.training.task import Task

MEMORY_PLAN, FORMER_MEMORY_PLAN = "memory_plan.json", "rung.json"
"""The plan of a job, in its folder, and the name of that file in jobs that an earlier version started: they are resumed."""

SPARE, SPARE_ON_CPU = 1.5, 3.0
"""Working memory, as a multiple of what autograd saves: gradients of activations on the way back, and the buffers of
the convolutions, which unfold their input on a CPU. Measured on a CPU with the U-Net of rt_dose, patches of 32 and 64
voxels a side and 8 and 16 base channels: 1.2 to 2.9 times."""

HALF = 0.6
"""Share of the saved bytes under 16-bit precision: activations are half, casts of weights and some norms are not."""

CUDA_FIXED = 800 * 2**20
"""Bytes of a CUDA context with cuDNN and cuBLAS, beside what torch allocates."""

WORKER = 350 * 2**20
"""Bytes of one process that reads data: torch imported, and a few batches on their way."""

FILL = 0.9
"""Share of the free memory that a run may be expected to take."""

MIB = 2**20


INFERENCE_MB = 8192
"""Free memory of a GPU below which scoring stays on the CPU, MiB: enough for a window of 128 voxels a side in the largest
network here, beside a training that needs the rest."""


@dataclass(frozen=True)
class Device:
    """A device, or the host, and its free bytes."""

    name: str
    index: int
    free: int


@dataclass(frozen=True)
class Plan:
    """What was decided for a run: devices, the memory plan by its number, and why it fits. Memory in MiB, of the fullest device."""

    accelerator: str
    devices: int | list[int]
    processes: int
    memory_plan: int
    batch: int
    patch: list[int] | None
    accumulate: int
    needed_mb: float
    free_mb: float
    flops_per_item: float = 0.0

    def named(self) -> dict[str, Any]:
        """The memory plan as a message and the result name it."""
        return {
            "patch": self.patch,
            "batch": self.batch,
            "accumulate": self.accumulate,
            "memory_plan": self.memory_plan,
        }


@dataclass(frozen=True)
class Probe:
    """What one training step at `items` voxels (or cases) takes: bytes of the weights, and bytes saved for backward.

    `flops` are the floating-point operations of its forward pass, as torch counts them.
    """

    parameters: int
    saved: int
    items: int
    flops: int = 0


def measure(task: Task, experiment: Experiment) -> Probe:
    """Run one step of `task`, which was built for `experiment.probe()`, on the CPU, and count what it keeps.

    The module's `training_step` is called with no trainer attached. No memory of a device is used.
    """
    # Buffers too: those that no checkpoint keeps, such as a frozen network of a loss, do not grow with the batch either.
    constant = [*task.module.state_dict().values(), *task.module.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in constant}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    dataset = task.train.dataset
    batch = task.train.collate_fn([dataset[next(iter(task.train.sampler))]])
    # What was saved must stay alive until it is counted, or a freed address would be counted once for two tensors.
    counted = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), counted:
        loss = task.module.training_step(batch, 0)
    assert loss.requires_grad
    parameters = sum(parameter.numel() * 4 for parameter in task.module.parameters())
    return Probe(parameters, sum(seen.values()), experiment.probe().items(), counted.get_total_flops())


def needed(probe: Probe, at: Experiment, accelerator: str, *, averaged: bool, workers: int) -> int:
    """Return the estimated need in bytes of a memory plan, given as the experiment with that plan; see the module's formula."""
    states = probe.parameters * (4 + averaged)
    half = HALF if accelerator != "cpu" and not at.precision.startswith("32") else 1.0
    spare = SPARE_ON_CPU if accelerator == "cpu" else SPARE
    saved = spare * half * probe.saved * at.items() / probe.items
    return int(states + saved + (workers * WORKER if accelerator == "cpu" else CUDA_FIXED))


def free_devices(accelerator: str, count: int, ids: Sequence[int] = ()) -> list[Device]:
    """Return the `count` devices with the most free memory, or those of the given numbers; on a CPU, the host that many times.

    `accelerator` is auto, cpu, gpu, cuda or mps. Torch counts the devices that CUDA_VISIBLE_DEVICES leaves visible, from 0. The
    fullest comes last. Raises ConfigurationError when it asks for what is not there.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"runtime.accelerator={accelerator}, but torch finds no GPU it can use; `med-assets doctor` says why, or use auto"
        )
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        there = torch.cuda.device_count()
        if count > there:
            raise ConfigurationError(f"runtime.devices={count}, but there are {there}; ask for at most that many")
        if strangers := sorted(set(ids) - set(range(there))):
            raise ConfigurationError(
                f"expected numbers of GPUs from 0 to {there - 1} in runtime.devices, got {strangers}; they count what "
                "CUDA_VISIBLE_DEVICES leaves visible"
            )
        chosen = ids or range(there)
        found = [Device(f"cuda:{index}", index, torch.cuda.mem_get_info(index)[0]) for index in chosen]
        return sorted(found, key=lambda device: (-device.free, device.index))[:count]
    if ids:
        raise ConfigurationError(
            f"runtime.devices={list(ids)} names GPUs, and this training would run without one; give a count instead"
        )
    name = "mps" if accelerator == "mps" else "cpu"
    return [Device(name, 0, free_host())] * count


def inference_device() -> str:
    """Where models are scored: the CUDA device with most free memory if that is INFERENCE_MB or more, else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    free, index = max((torch.cuda.mem_get_info(index)[0], index) for index in range(torch.cuda.device_count()))
    return f"cuda:{index}" if free >= INFERENCE_MB * 2**20 else "cpu"


def memory_plans(experiment: Experiment) -> list[MemoryPlan]:
    """Return the memory plans that keep the batch of a step: of each, batch x devices divides `schedule.batch`.

    The first is the experiment as it stands. Raises ConfigurationError when the batch can't be shared by the devices.
    """
    whole, devices = experiment.schedule.batch, experiment.runtime.devices
    listed = [MemoryPlan(batch=max(1, whole // devices)), *experiment.schedule.fallbacks]
    fitting = [one for one in dict.fromkeys(listed) if whole % (one.batch * devices) == 0]
    if not fitting:
        raise ConfigurationError(
            f"schedule.batch={whole} can't be shared equally by runtime.devices={devices}; make it a multiple of {devices}"
        )
    return fitting


def plan(job: Path, experiment: Experiment, probe: Probe, *, began: bool) -> Plan:
    """Choose devices and memory plan for a run and write them to the job; `began` says that the run resumes from a checkpoint.

    Raises OutOfMemory when no plan fits, ConfigurationError when a training that started with one plan is to resume with
    another.
    """
    listed, runtime = memory_plans(experiment), experiment.runtime
    devices = free_devices(runtime.accelerator, runtime.devices, runtime.device_ids)
    accelerator = devices[0].name.partition(":")[0]
    # On a CPU all processes take from the same memory.
    free = devices[-1].free // (len(devices) if accelerator == "cpu" else 1)
    forced = runtime.memory_plan
    if forced is not None and forced >= len(listed):
        raise ConfigurationError(
            f"runtime.memory_plan={forced}, but schedule.fallbacks leaves the plans 0 to {len(listed) - 1}"
        )
    pinned = _written(job) if began else None
    plans = [
        Plan(
            accelerator=accelerator,
            devices=[device.index for device in devices] if accelerator == "cuda" else len(devices),
            processes=len(devices),
            memory_plan=index,
            batch=one.batch,
            patch=(one.patch and list(one.patch)) or experiment.patch(),
            accumulate=experiment.schedule.batch // (one.batch * len(devices)),
            needed_mb=round(_need(probe, experiment, one, accelerator) / MIB, 1),
            free_mb=round(free / MIB, 1),
            flops_per_item=probe.flops / probe.items,
        )
        for index, one in enumerate(listed)
    ]
    if pinned is not None:
        chosen = next((one for one in plans if _same(one, pinned)), None)
        if chosen is None or (forced is not None and chosen.memory_plan != forced):
            raise ConfigurationError(
                f"this training started with {pinned} and resumes with that only; set runtime.devices={pinned['processes']} "
                f"and runtime.memory_plan={pinned['memory_plan']}, or use --resume never to start with another"
            )
        _first_fitting([chosen])
    elif forced is not None:
        chosen = plans[forced]
    else:
        chosen = _first_fitting(plans)
    write_json(job / MEMORY_PLAN, asdict(chosen))
    return chosen


def planned(job: Path) -> Plan:
    """Return the plan that the first process of this training wrote."""
    return Plan(**read_json(job / MEMORY_PLAN))


def _written(job: Path) -> dict[str, Any] | None:
    """The plan that a job started with, None where it has none."""
    if (job / MEMORY_PLAN).is_file():
        present: dict[str, Any] = read_json(job / MEMORY_PLAN)
        return present
    if not (job / FORMER_MEMORY_PLAN).is_file():
        return None
    former = read_json(job / FORMER_MEMORY_PLAN)
    return {**former, "memory_plan": former["rung"]}


def change(plan: Plan, experiment: Experiment) -> str:
    """Say what to do when memory ran out with a plan: the next one if there is one."""
    listed, number = memory_plans(experiment), plan.memory_plan + 1
    if number < len(listed):
        at = experiment.at(listed[number])
        sizes = f"batch {listed[number].batch}" + (f", patch {at.patch()}" if at.patch() else "")
        return f"Next: runtime.memory_plan={number} ({sizes}) with --resume never; or a device with more memory"
    return "This is the smallest plan: add a smaller one to schedule.fallbacks, or use a device with more memory"


def free_text(plan: Plan) -> str:
    """What was free and what was expected, for a message."""
    return f"{plan.free_mb:.0f} MiB were free on {plan.accelerator} and {plan.needed_mb:.0f} MiB expected"


def _need(probe: Probe, experiment: Experiment, one: MemoryPlan, accelerator: str) -> int:
    return needed(
        probe,
        experiment.at(one),
        accelerator,
        averaged=bool(experiment.optimiser.ema),
        workers=experiment.runtime.workers,
    )


def _first_fitting(plans: Sequence[Plan]) -> Plan:
    for one in plans:
        if one.needed_mb <= FILL * one.free_mb:
            return one
    lowest = plans[-1]
    raise OutOfMemory(
        f"not started: the smallest memory plan (batch {lowest.batch}, patch {lowest.patch}) needs about {lowest.needed_mb:.0f} MiB "
        f"on each of {lowest.processes} x {lowest.accelerator}, {lowest.free_mb:.0f} MiB are free and at most "
        f"{FILL:.0%} of that is taken; wait for the device, add a smaller one to schedule.fallbacks, or set "
        "runtime.memory_plan to try one against this estimate"
    )


def _same(one: Plan, pinned: dict[str, Any]) -> bool:
    return all(getattr(one, name) == pinned[name] for name in ("batch", "patch", "accumulate", "processes"))
