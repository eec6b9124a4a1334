"""The law that resuming equals never having stopped, for the trainer of each program, and what resuming refuses."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from med_assets import program
from med_assets.errors import ArtifactCorrupt, CheckpointMismatch, ConfigurationError, DiskFull, TrainingStopped
from med_assets.training.checkpoints import Checkpoints
from med_assets.training.events import events
from med_assets.training.job import run
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

torch.set_num_threads(1)

KILLS = 22
SEED = 20261121

# Imports torch once, then trains in forked children. Each child dies by SIGKILL, with no warning, at one of the points
# that all trainers pass: before and after a step, within a validation, and at each flush of a file to disk, so in the
# middle of writing a checkpoint, its description, the best weights and the history. Prints how many died.
KILLING = """
import importlib, os, random, signal, sys
from pathlib import Path
import monai.inferers.utils, torch._dynamo, torch.utils.tensorboard  # imported late otherwise, so by each child again
from med_assets import files
from med_assets.training import callbacks
from med_assets.training.job import run

whole, broken, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
importlib.import_module(f"med_assets.programs.{(whole / 'program').read_text().strip()}.lit")

def child(job, dies_at=None):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    passed = 0

    def dying(original):
        def wrapped(*arguments):
            nonlocal passed
            passed += 1
            if passed == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)
        return wrapped

    for owner, name in [
        (callbacks.StepSeeds, "on_train_batch_start"),
        (callbacks.Heartbeat, "on_train_batch_end"),
        (callbacks.Heartbeat, "on_validation_batch_end"),
        (files, "sync"),
    ]:
        setattr(owner, name, dying(getattr(owner, name)))
    try:
        run(job)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    os._exit(1)

assert child(whole) == 0
rng, died = random.Random(seed), 0
while died < kills and not (broken / "result.json").exists():
    # From the few first events to about two steps and their checkpoints.
    ended = child(broken, rng.randint(1, 12))
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL or ended == 0, ended
    died += bool(ended)
assert child(broken) == 0
print(died)
"""


def newest(job: Path) -> Path:
    return sorted((job / "checkpoints").glob("step-*.ckpt"))[-1]


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    """Equal to the bit, however deep."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for name in first:
            assert_equal(first[name], second[name], f"{where}/{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}/{index}")
    else:
        assert first == second, where


@pytest.mark.slow
@pytest.mark.parametrize("name", program.registered())
def test_killed_at_random_points_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    builders = importlib.import_module(f"tests.med_assets.programs.{name}.builders")
    # Validation in the second and fourth epoch of five only, so that an epoch without one is resumed too; patience so
    # short that early stopping has a state worth keeping.
    overrides = (
        *builders.TINY, "schedule.epochs=5", "schedule.val_every=2", "schedule.patience=2", "optimiser.ema=0.9",
        "runtime.save_every_s=0",
    )  # fmt: skip
    whole, broken = (builders.write_job(tmp_path / job, overrides=overrides) for job in ("whole", "broken"))
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(whole), str(broken), str(KILLS), str(SEED)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == KILLS
    assert (whole / "history.csv").read_bytes() == (broken / "history.csv").read_bytes()
    for file in ("weights.pt", "newest"):
        first, second = (
            torch.load(newest(job) if file == "newest" else job / file, weights_only=True) for job in (whole, broken)
        )
        # Lightning's own counters of what was begun, as against done, remember a restart; nothing of ours does.
        first.pop("loops", None)
        second.pop("loops", None)
        assert_equal(first, second, file)
    results = [json.loads((job / "result.json").read_text()) for job in (whole, broken)]
    assert [result["resumed"] for result in results] == [False, True]
    assert results[0]["best_metrics"] == results[1]["best_metrics"]
