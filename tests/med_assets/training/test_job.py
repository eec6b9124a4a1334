"""The training process: its job folder, its outcomes, and the law that resuming equals never having stopped."""

import errno
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from med_assets.errors import ConfigurationError, DiskFull, OutOfMemory, TrainingDiverged
from med_assets.experiments.configuration import load
from med_assets.programs.rt_dose.predict import load_predictor
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.training import callbacks
from med_assets.training.job import run
from med_assets.training.module import patch_loader
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

torch.set_num_threads(1)


def start(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "med_assets.training"] if code is None else [sys.executable, "-c", code]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )


IN_A_PROCESS_OF_ITS_OWN = """
import sys
from pathlib import Path
from med_assets.training.job import run

def imported(*names):
    return [name for name in names if sys.modules.get(name)]

import med_assets.programs.lumbar_mr.lit
print(imported("pydicom", "dagster", "great_expectations", "sklearn"))
run(Path(sys.argv[1]))
print(imported("dagster", "great_expectations", "pymedphys", "mlflow", "wandb"))
"""
"""Reads what trains lumbar_mr, then trains a job of rt_dose; prints which libraries that are not for trainings were imported by then."""


@pytest.mark.slow
def test_a_run_leaves_weights_history_curves_and_a_result_and_needs_no_dagster(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    done = start(str(job), code=IN_A_PROCESS_OF_ITS_OWN)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("[]", "[]")
    result = json.loads((job / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["environment"]["packages"]["torch"] == metadata.version("torch")
    assert len(result["environment"]["packages"]) > 50
    assert "cuda" in result["environment"]
    assert (result["n_train"], result["n_val"], result["epochs_run"]) == (2, 1, 3)
    history = (job / "history.csv").read_text().splitlines()
    assert len(history) == 4
    assert history[0].startswith("epoch,step,lr,train_loss")
    assert json.loads((job / "heartbeat.json").read_text())["phase"] == "end"
    assert list((job / "tensorboard").glob("events*"))
    dose = load_predictor(job)(PreparedCase.open(job / "cases" / "case2"))
    assert dose.shape == (32, 32, 32)
    assert run(job) == result


def test_reading_in_processes_of_their_own_changes_nothing(tmp_path: Path) -> None:
    more = ("schedule.epochs=2", "runtime.prefetch=3")
    alone, apart = (
        write_job(tmp_path / f"{workers}", overrides=(*TINY, *more, f"runtime.workers={workers}")) for workers in (0, 1)
    )
    run(alone)
    run(apart)
    assert (alone / "history.csv").read_bytes() == (apart / "history.csv").read_bytes()
    assert (alone / "weights.pt").read_bytes() == (apart / "weights.pt").read_bytes()


def test_as_many_batches_are_read_ahead_as_the_machine_is_given() -> None:
    def loader(*overrides: str) -> DataLoader[Any]:
        return patch_loader(TensorDataset(torch.zeros(4, 1)), 4, load("rt_dose", "baseline", overrides))

    assert loader("runtime.workers=2", "runtime.prefetch=5").prefetch_factor == 5
    assert loader("runtime.workers=0").prefetch_factor is None
    assert load("rt_dose", "baseline", ["runtime.prefetch=5"]).hash() == load("rt_dose", "baseline").hash()


def test_mean_dose_goes_through_the_same_job(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "mean_dose")
    result = run(job)
    assert result["status"] == "completed"
    assert result["best_value"] == result["best_metrics"]["val_mae_gy"]
    case = PreparedCase.open(job / "cases" / "case2")
    assert abs(load_predictor(job)(case) - case.dose)[case.body].mean() == pytest.approx(result["best_value"], rel=1e-4)


def test_a_patient_in_both_splits_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    rows = json.loads((job / "cases.json").read_text())
    rows[-1]["patient_id"] = rows[0]["patient_id"]
    (job / "cases.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigurationError, match="1 patients are in train and in val"):
        run(job)


def test_a_test_case_has_no_place_in_a_training(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    rows = json.loads((job / "cases.json").read_text())
    rows[0]["split"] = "test"
    (job / "cases.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigurationError, match=r"found \['test'\]"):
        run(job)


def test_a_case_of_another_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="override site=prostate_sib"):
        run(write_job(tmp_path / "job", overrides=("site=head_neck",)))


def test_out_of_memory_is_a_named_outcome_with_batch_and_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from med_assets.programs.rt_dose.lit import DoseModule

    original = DoseModule.training_step

    def exhausted(self: DoseModule, *arguments: object) -> object:
        if self._trainer is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, *arguments)

    monkeypatch.setattr(DoseModule, "training_step", exhausted)
    job = write_job(tmp_path / "job", overrides=TINY)
    expected = r"patch \[16, 16, 16\], batch 2, .* MiB were free on cpu .* Next: runtime\.memory_plan=1 \(batch 1"
    with pytest.raises(OutOfMemory, match=expected):
        run(job)
    result = json.loads((job / "result.json").read_text())
    assert (result["status"], result["batch"], result["patch"]) == ("out_of_memory", 2, [16, 16, 16])


def test_the_first_loss_that_is_no_number_ends_a_training_and_names_the_cases_of_its_batch(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "schedule.batch=1", "patches.per_epoch=4"), cases=4)
    dose = np.load(job / "cases" / "case1" / "dose.npy")
    np.save(job / "cases" / "case1" / "dose.npy", np.full_like(dose, np.nan))
    with pytest.raises(
        TrainingDiverged, match=r"of the cases case1; not finite in it: target; the batch before it"
    ) as raised:
        run(job)
    at = re.search(r"at step (\d+) \(epoch 1, batch (\d+)\)", str(raised.value))
    assert at is not None
    assert 1 <= int(at[2]) <= 3, "each of three cases is among the first three patches"
    assert not (job / "result.json").exists()
    assert not (job / "weights.pt").exists()
    assert json.loads((job / "events.jsonl").read_text().splitlines()[-1])["event"] == "diverged"


def test_a_disk_that_fills_while_training_is_a_named_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job = write_job(tmp_path / "job", overrides=TINY)
    monkeypatch.setattr(callbacks, "write_text", full)
    with pytest.raises(DiskFull, match="free some space and start the same command again"):
        run(job)
    monkeypatch.undo()
    assert run(job)["status"] == "completed"


def test_a_job_that_lacks_a_file_says_which(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    (job / "cases.json").unlink()
    done = start(str(job))
    assert done.returncode == 1
    assert "cases.json is missing" in done.stderr
