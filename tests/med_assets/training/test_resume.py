"""The law that resuming equals never having stopped, for the trainer of each program, and what resuming refuses."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from med_assets import program
from med_assets.errors import ArtifactCorrupt, CheckpointMismatch, ConfigurationError, DiskFull, TrainingStopped
from med_assets.training.checkpoints import Checkpoints
from med_assets.training.events import events
from med_assets.training.job import run
from tests import fresh
from tests.conftest import REPOSITORY
from tests.med_assets.programs.jobs import builders_of
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

torch.set_num_threads(1)

KILLS = 12
"""Deaths of the training of each program."""
SEED = 20261121

# Imports torch once, then trains in forked children. Each child dies by SIGKILL, with no warning, at one of the points
# that all trainers pass: before and after a step, within a validation, and at each flush of a file to disk, so in the
# middle of writing a checkpoint, its description, the best weights and the history. Prints how many died.
KILLING = """
import importlib, os, pkgutil, random, signal, sys
from pathlib import Path
import monai.inferers.utils, torch._dynamo, torch.utils.tensorboard  # imported late otherwise, so by each child again
from med_assets.storage import files
from med_assets.training import callbacks
from med_assets.training.job import run

whole, broken, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
package = importlib.import_module(f"med_assets.programs.{(whole / 'program').read_text().strip()}")
for one in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package.__name__}.{one.name}")

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


def assert_same(whole: Path, broken: Path) -> None:
    """The history, the published weights and the newest checkpoint of two jobs are the same to the bit."""
    assert (whole / "history.csv").read_bytes() == (broken / "history.csv").read_bytes()
    for file in ("weights.pt", "newest"):
        first, second = (
            torch.load(newest(job) if file == "newest" else job / file, weights_only=True) for job in (whole, broken)
        )
        # Lightning's own counters of what was begun, as against done, remember a restart; nothing of ours does.
        first.pop("loops", None)
        second.pop("loops", None)
        assert_equal(first, second, file)


@pytest.mark.drill
@pytest.mark.parametrize("name", program.registered())
def test_killed_at_random_points_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    builders = builders_of(name)
    # Validation in the second and fourth epoch of five only, so that an epoch without one is resumed too; patience so
    # short that early stopping has a state worth keeping.
    overrides = (
        *builders.TINY, "schedule.epochs=5", "schedule.val_every=2", "schedule.patience=2", "++optimiser.ema=0.9",
        "++runtime.save_every_s=0",
    )  # fmt: skip
    whole, broken = (builders.write_job(tmp_path / job, overrides=overrides) for job in ("whole", "broken"))
    done = fresh.run(REPOSITORY, KILLING, str(whole), str(broken), str(KILLS), str(SEED))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == KILLS
    assert_same(whole, broken)
    results = [json.loads((job / "result.json").read_text()) for job in (whole, broken)]
    assert [result["resumed"] for result in results] == [False, True]
    assert results[0]["best_metrics"] == results[1]["best_metrics"]


def stop_at(monkeypatch: pytest.MonkeyPatch, hook: str, step: int) -> None:
    """SIGTERM reaches the training process in a hook of the trainer, as from Slurm or from a person."""
    from med_assets.programs.rt_dose.lit import DoseModule

    original = getattr(DoseModule, hook)

    def recording(self: Any, *arguments: Any) -> Any:
        if self._trainer is not None and self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(DoseModule, hook, recording)


def test_a_training_told_to_stop_saves_at_the_end_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    job = write_job(tmp_path / "job", overrides=TINY)
    stop_at(monkeypatch, "training_step", 4)
    with pytest.raises(TrainingStopped, match="after step 5"):
        run(job)
    assert newest(job).name == "step-00000005.ckpt"
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    assert run(job, "must")["epochs_run"] == 3
    assert [event["step"] for event in events(job) if event["event"] == "start"] == [None, 5]


def test_a_training_told_to_stop_while_validating_stops_before_the_next_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    stop_at(monkeypatch, "validation_step", 6)
    with pytest.raises(TrainingStopped, match="after step 6"):
        run(job)
    # The end of the first epoch; no checkpoint lies within a validation.
    assert newest(job).name == "step-00000003.ckpt"


def test_must_without_a_checkpoint_names_the_folder(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    with pytest.raises(ConfigurationError, match=f"resume=must, but there is no checkpoint in {job / 'checkpoints'}"):
        run(job, "must")


def test_never_starts_in_a_clean_folder_and_keeps_what_was_there(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "schedule.epochs=1"))
    first = run(job)
    assert run(job) == first
    again = run(job, "never")
    assert (again["resumed"], again["weights_sha256"]) == (False, first["weights_sha256"])
    discarded = job / "discarded"
    assert json.loads((discarded / "result.json").read_text()) == first
    assert list((discarded / "checkpoints").glob("*.ckpt"))


def checkpoints_of(job: Path, steps: int, keep: int = 2) -> Checkpoints:
    """Checkpoints of a few bytes; the weights of the first epoch are the best."""
    checkpoints = Checkpoints(job, "key", keep)
    checkpoints.folder.mkdir(parents=True)
    for step in range(1, steps + 1):
        checkpoints.best_path(step).write_bytes(b"weights")
        best = checkpoints.best_path(1)
        checkpoints.write(lambda path, step=step: path.write_bytes(b"state" * step), step, step, 0, best)
    return checkpoints


def test_the_last_checkpoints_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "best-00001.pt", "step-00000003.ckpt", "step-00000003.json", "step-00000004.ckpt", "step-00000004.json",
    ]  # fmt: skip
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.epoch, found.batches) == (4, 4, 0)


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "description"])
def test_a_corrupt_checkpoint_is_passed_over_with_a_warning_that_is_recorded(tmp_path: Path, damage: str) -> None:
    checkpoints = checkpoints_of(tmp_path, 4)
    last = checkpoints.folder / "step-00000004.ckpt"
    if damage == "flipped":
        last.write_bytes(last.read_bytes()[:-1] + b"?")
    elif damage == "cut":
        last.write_bytes(last.read_bytes()[:3])
    elif damage == "missing":
        last.unlink()
    else:
        last.with_suffix(".json").write_text("{")
    with pytest.warns(RuntimeWarning, match=r"step-00000004\.ckpt is passed over"):
        found = checkpoints.newest()
    assert found is not None
    assert found.step == 3
    (event,) = events(tmp_path)
    assert (event["event"], event["checkpoint"]) == ("checkpoint_corrupt", "step-00000004")


def test_a_checkpoint_whose_writing_was_cut_off_does_not_count(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 2)
    (checkpoints.folder / "step-00000003.ckpt").write_bytes(b"whole, but not yet described")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    assert not events(tmp_path)


def test_when_no_checkpoint_is_whole_nothing_starts_over_by_itself(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 2)
    checkpoints.best_path(1).write_bytes(b"other weights")
    with (
        pytest.warns(RuntimeWarning, match="passed over"),
        pytest.raises(ArtifactCorrupt, match=r"none of the 2 checkpoints .* use --resume never"),
    ):
        checkpoints.newest()
    assert len(checkpoints.written()) == 2


def test_a_checkpoint_of_another_job_is_not_resumed(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    checkpoints_of(job, 1)
    with pytest.raises(CheckpointMismatch, match="--resume never"):
        run(job)


def test_a_full_disk_leaves_the_checkpoints_before_whole(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 2)

    def full(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match="free some space and start the same command again"):
        checkpoints.write(full, 3, 3, 0, None)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    assert not list(checkpoints.folder.glob("*.tmp")) + list(checkpoints.folder.glob(".*.tmp"))
