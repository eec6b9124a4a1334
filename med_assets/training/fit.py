"""One Lightning fit of a job, from the checkpoint it goes on from to the best epoch's weights."""

import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.launch.jobs import ADAPTERS
from med_assets.training import callbacks
from med_assets.training.accelerator import Plan
from med_assets.training.checkpoints import Checkpoints, Found
from med_assets.training.divergence import StopAtNan
from med_assets.training.ranks import EpochSampler, rank
from med_assets.training.saving import SaveCheckpoints
from med_assets.training.speed import PROFILE, Speed
from med_assets.training.stopping import StopRequest
from med_assets.training.task import Task

NOT_ABOUT_THE_RESULT = (
    "does not have many workers",
    "is smaller than the logging interval",
    "`srun` command is available",  # we start our processes ourselves, also within a Slurm job
    "dataloader is not resumable",  # it is: the sampler goes on where the checkpoint stood
    "find_unused_parameters=True was specified in DDP constructor",  # it is, for the epochs in which a part is frozen
    "The .grad attribute of a Tensor that is not a leaf",  # torch.compile looks at all inputs, of a cascade's second network too
)
"""Advice of Lightning and torch, by a part of its words, that is not shown; so are deprecations inside it."""


def _strategy(plan: Plan, task: Task) -> str:
    """Lightning's name of how processes share a training: where parts are frozen for some epochs, they agree at each step on what has gradients."""
    if plan.processes == 1:
        return "auto"
    return "ddp_find_unused_parameters_true" if task.rests else "ddp"


def fit(
    job: Path,
    experiment: Experiment,
    task: Task,
    plan: Plan,
    checkpoints: Checkpoints,
    found: Found | None,
    heartbeat: callbacks.Heartbeat,
    stop: StopRequest,
) -> dict[str, Any]:
    """Train to the end, going on from `found` if there is one, save `weights.pt`, and return what the result says.

    Raises TrainingDiverged at the first loss that is no number, ConfigurationError when no epoch validates as a finite number or the sampler
    can't be resumed, TrainingStopped when asked to.
    Only the process of rank 0 writes files; the others return an empty dictionary.
    """
    runtime, sampler = experiment.runtime, task.train.sampler
    if not isinstance(sampler, EpochSampler):
        raise ConfigurationError(
            f"a trainer reads its training data through med_assets.training.ranks.EpochSampler, so that it can go on "
            f"within an epoch; this one uses {type(sampler).__name__}"
        )
    if found is not None:
        sampler.start_at(found.epoch, found.batches * task.train.batch_size)
    history = callbacks.History(job / "history.csv", experiment.schedule.reference)
    schedule = experiment.schedule
    best = callbacks.BestEpoch(checkpoints.best_path, task, schedule.patience, schedule.min_delta)
    memory = callbacks.PeakMemory()
    speed = Speed(
        plan.flops_per_item * math.prod(plan.patch or [1]),
        plan.batch * plan.processes,
        runtime.profile_steps,
        job / PROFILE,
    )
    precision: Any = "32-true" if plan.accelerator == "cpu" else experiment.precision
    used: list[Any] = [
        heartbeat,
        StopAtNan(task.train),
        memory,
        speed,
        callbacks.StepSeeds(experiment.seed),
        history,
        best,
    ]
    if experiment.optimiser.ema:
        used.append(callbacks.MovingAverage(experiment.optimiser.ema))
    if (thermal := runtime.thermal) is not None:
        used.append(callbacks.ThermalPause(thermal.every_s, thermal.pause_s, heartbeat, thermal.above_c))
    used.append(SaveCheckpoints(checkpoints, best, heartbeat, runtime.save_every_s, stop))
    # Tips of Lightning, one of them an advertisement; warnings and errors still pass.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for advice in NOT_ABOUT_THE_RESULT:
            warnings.filterwarnings("ignore", message=f".*{re.escape(advice)}.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning|torch")
        trainer = lightning.Trainer(
            accelerator=plan.accelerator,
            devices=plan.devices,
            strategy=_strategy(plan, task),
            accumulate_grad_batches=plan.accumulate,
            use_distributed_sampler=False,
            # Without it Lightning would take over under Slurm: start no processes, and requeue by signals of its own.
            plugins=[LightningEnvironment()],
            precision=precision,
            max_epochs=experiment.schedule.epochs,
            check_val_every_n_epoch=experiment.schedule.val_every,
            gradient_clip_val=experiment.optimiser.clip,
            # Lightning's check before training, over all cases, is the validation of the initial weights.
            num_sanity_val_steps=-1 if experiment.schedule.validate_first and found is None else 0,
            log_every_n_steps=1,
            default_root_dir=job,
            logger=TensorBoardLogger(save_dir=job, name="tensorboard", version=""),
            callbacks=used,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        going_on_from = None if found is None else found.path
        trainer.fit(task.module, task.train, task.val, ckpt_path=going_on_from, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if best.path is None:
        raise ConfigurationError(
            f"no epoch has a finite {task.monitor}: training diverged (lower optimiser.lr) or never validated "
            "(schedule.val_every is above schedule.epochs)"
        )
    if rank():
        return {}
    weights = torch.load(best.path, map_location="cpu", weights_only=True)
    callbacks.save_tensors(job / "weights.pt", weights)
    if task.adapters is not None:
        callbacks.save_tensors(job / ADAPTERS, task.adapters(weights))
    history.write()
    return {
        "best_epoch": best.epoch,
        "best_value": best.best,
        "best_metrics": next(row for row in history.rows if row["epoch"] == best.epoch),
        "epochs_run": len(history.rows),
        "steps": trainer.global_step,
        "stopped_early": best.waited >= best.patience,
        "resumed": found is not None,
        "device": str(trainer.strategy.root_device),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in task.module.parameters()),
        "peak_memory": memory.peaks,
        "speed": speed.measured(),
    }
