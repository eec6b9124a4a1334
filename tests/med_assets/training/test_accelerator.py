"""Devices and memory plans are chosen from free memory before a run, and a run that can't fit does not start."""

import json
from pathlib import Path

import pytest
import torch

from med_assets.errors import ConfigurationError, OutOfMemory
from med_assets.experiments import configuration as experiments
from med_assets.experiments.configuration import Experiment
from med_assets.training import accelerator
from med_assets.training.accelerator import MIB, Device, Probe, free_devices, measure, memory_plans, plan
from med_assets.training.failures import is_accelerator_failure, is_out_of_memory
from med_assets.training.job import read_job, run
from med_assets.training.task import Task, build
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

torch.set_num_threads(1)

PROBE = Probe(parameters=10 * MIB, saved=10 * MIB, items=16**3)


def experiment(*overrides: str) -> Experiment:
    fallbacks = "schedule.fallbacks=[{batch: 2}, {batch: 1}, {batch: 1, patch: [16, 16, 16]}]"
    base = ("patches.size=[32,32,32]", "schedule.batch=4", "runtime.accelerator=cpu", "runtime.workers=0", fallbacks)
    return experiments.load("rt_dose", "baseline", [*base, *overrides])


def free(monkeypatch: pytest.MonkeyPatch, mib: float) -> None:
    monkeypatch.setattr(
        accelerator, "free_devices", lambda kind, count, ids: [Device("cpu", 0, int(mib * MIB))] * count
    )


@pytest.mark.parametrize(
    ("free_mib", "memory_plan", "batch", "patch", "accumulate"),
    [(1200, 0, 4, 32, 1), (700, 1, 2, 32, 2), (400, 2, 1, 32, 4), (100, 3, 1, 16, 4)],
)
def test_the_first_memory_plan_that_fits_is_taken_and_the_batch_of_a_step_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    memory_plan: int,
    batch: int,
    patch: int,
    accumulate: int,
) -> None:
    free(monkeypatch, free_mib)
    chosen = plan(tmp_path, experiment(), PROBE, began=False)
    assert (chosen.memory_plan, chosen.batch, chosen.patch, chosen.accumulate) == (
        memory_plan,
        batch,
        [patch] * 3,
        accumulate,
    )
    assert json.loads((tmp_path / "memory_plan.json").read_text())["memory_plan"] == memory_plan


def test_a_run_that_fits_with_no_memory_plan_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 50)
    with pytest.raises(
        OutOfMemory, match=r"not started: .* needs about 70 MiB .* 50 MiB are free .* runtime\.memory_plan"
    ):
        plan(tmp_path, experiment(), PROBE, began=False)
    assert plan(tmp_path, experiment("runtime.memory_plan=0"), PROBE, began=False).memory_plan == 0


def test_a_training_resumes_with_the_memory_plan_it_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 700)
    began = plan(tmp_path, experiment(), PROBE, began=False)
    free(monkeypatch, 5000)
    assert plan(tmp_path, experiment(), PROBE, began=True).memory_plan == began.memory_plan == 1
    for override in ("runtime.memory_plan=0", "runtime.devices=2"):
        with pytest.raises(ConfigurationError, match="resumes with that only"):
            plan(tmp_path, experiment(override), PROBE, began=True)
    assert plan(tmp_path, experiment(), PROBE, began=False).memory_plan == 0


def test_a_job_of_an_earlier_version_resumes_with_its_memory_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 700)
    plan(tmp_path, experiment(), PROBE, began=False)
    former = json.loads((tmp_path / "memory_plan.json").read_text())
    former["rung"] = former.pop("memory_plan")
    (tmp_path / "memory_plan.json").unlink()
    (tmp_path / "rung.json").write_text(json.dumps(former))
    free(monkeypatch, 5000)
    with pytest.raises(ConfigurationError, match=r"runtime\.memory_plan=1"):
        plan(tmp_path, experiment("runtime.rung=0"), PROBE, began=True)
    assert plan(tmp_path, experiment(), PROBE, began=True).memory_plan == 1
    assert json.loads((tmp_path / "memory_plan.json").read_text())["memory_plan"] == 1


def test_former_names_of_fields_are_read_and_keep_the_hash() -> None:
    present = experiment("runtime.memory_plan=1")
    content = json.loads(present.to_json())
    content["schedule"]["ladder"] = content["schedule"].pop("fallbacks")
    content["runtime"]["rung"] = content["runtime"].pop("memory_plan")
    former = experiments.from_json("rt_dose", json.dumps(content))
    assert former == present == experiment("runtime.rung=1")
    assert former.hash() == present.hash()
    assert experiments.result_fields(present)["schedule"]["ladder"][0] == {"batch": 2, "patch": None}
    with pytest.raises(ConfigurationError, match="rename ladder to fallbacks"):
        experiments.from_json("rt_dose", json.dumps({**content, "schedule": {**content["schedule"], "fallbacks": []}}))


def test_devices_share_the_batch_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 5000)
    chosen = plan(tmp_path, experiment("runtime.devices=2"), PROBE, began=False)
    assert (chosen.batch, chosen.accumulate, chosen.processes, chosen.free_mb) == (2, 1, 2, 2500.0)
    assert [one.batch for one in memory_plans(experiment("runtime.devices=2"))] == [2, 1, 1]
    with pytest.raises(ConfigurationError, match="make it a multiple of 3"):
        memory_plans(experiment("runtime.devices=3"))


def test_the_fallbacks_are_in_the_key_and_the_plan_taken_is_not() -> None:
    base = experiment().hash()
    assert experiment("runtime.memory_plan=1").hash() == experiment("runtime.devices=2").hash() == base
    assert experiment("schedule.fallbacks=[{batch: 1}]").hash() != base


def test_a_memory_plan_that_the_network_can_not_train_is_refused_when_the_experiment_is_read() -> None:
    with pytest.raises(ConfigurationError, match="multiples of 16"):
        experiment("schedule.fallbacks=[{batch: 1, patch: [20, 16, 16]}]")


def test_devices_are_taken_by_their_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((5, 70, 40)[index], 80))
    assert [device.name for device in free_devices("auto", 2)] == ["cuda:1", "cuda:2"]
    assert free_devices("cpu", 1)[0].name == "cpu"
    with pytest.raises(ConfigurationError, match=r"runtime\.devices=4, but there are 3"):
        free_devices("gpu", 4)


def test_gpus_are_chosen_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((MIB * 5000, MIB * 9000, MIB * 4000)[index], 80))
    chosen = experiment("runtime.devices=[0,2]", "runtime.accelerator=gpu")
    assert (chosen.runtime.devices, chosen.runtime.device_ids) == (2, (0, 2))
    assert experiments.from_json("rt_dose", chosen.to_json()) == chosen
    found = plan(tmp_path, chosen, PROBE, began=False)
    assert (found.devices, found.processes, found.free_mb) == ([0, 2], 2, 4000.0)
    with pytest.raises(ConfigurationError, match="CUDA_VISIBLE_DEVICES"):
        free_devices("gpu", 1, (3,))
    for listed in ("[0,0]", "[-1]", "[]"):
        with pytest.raises(ConfigurationError, match="devices"):
            experiment(f"runtime.devices={listed}")
    assert experiment("runtime.devices=[0,2]").hash() == experiment().hash()


def test_a_training_without_a_gpu_refuses_numbers_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="give a count"):
        free_devices("auto", 1, (0,))


def test_without_a_gpu_auto_is_the_cpu_and_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert free_devices("auto", 1)[0].name == "cpu"
    with pytest.raises(ConfigurationError, match="med-assets doctor"):
        free_devices("gpu", 1)


def test_what_a_step_keeps_grows_with_the_voxels(tmp_path: Path) -> None:
    program, small, cases = read_job(write_job(tmp_path / "job", overrides=TINY))
    per_item = []
    for side in (16, 32):
        at = small.at(experiments.MemoryPlan(batch=1, patch=(side,) * 3))
        task = build(program, at, cases)
        assert isinstance(task, Task)
        with pytest.warns(UserWarning, match="reference is not registered"):
            probe = measure(task, at)
        per_item.append(probe.saved / probe.items)
        assert probe.parameters == 4 * sum(weights.numel() for weights in task.weights().values())
    assert per_item[1] == pytest.approx(per_item[0], rel=0.3)


def test_gradients_of_pieces_add_up_to_those_of_the_batch_and_the_result_says_what_was_chosen(tmp_path: Path) -> None:
    rows = []
    for number in (0, 1):
        overrides = (*TINY, "schedule.epochs=2", "schedule.val_every=2", f"runtime.memory_plan={number}")
        result = run(write_job(tmp_path / f"job{number}", overrides=overrides))
        assert (result["memory_plan"], result["batch"], result["accumulate"]) == (number, 2 - number, 1 + number)
        assert set(result["peak_memory"]) == {"train", "validate"}
        assert result["memory"]["needed_mb"] < result["memory"]["free_mb"]
        rows.append(result["best_metrics"])
    assert rows[0] == pytest.approx(rows[1], rel=1e-2)
    assert rows[0]["step"] == 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 8.00 GiB for an array"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_each_allocator_that_has_nothing_left_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_accelerator_failure(error)


def test_a_real_allocation_that_is_too_large_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_failed_device_is_no_want_of_memory_and_a_wrong_shape_is_neither() -> None:
    lost = RuntimeError("CUDA error: unspecified launch failure")
    wrong = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert is_accelerator_failure(lost)
    assert not is_out_of_memory(lost)
    assert not is_accelerator_failure(wrong)
    assert not is_out_of_memory(wrong)
