"""A training on several devices: each process looks elsewhere, and together they are one training."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from med_assets.training import ranks, status
from med_assets.training.events import events
from med_assets.training.job import run
from med_assets.training.ranks import EpochSampler, ValidationSampler
from tests.med_assets.programs.rt_dose.builders import TINY, write_job


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The first of two processes; `as_rank` makes it the other."""
    as_rank(monkeypatch, 0)
    return monkeypatch


def as_rank(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(ranks, "rank_and_size", lambda: (number, 2))


def test_the_sampler_names_the_epoch_that_it_was_given() -> None:
    sampler = EpochSampler(2)
    sampler.set_epoch(7)
    assert list(sampler) == [(7, 0), (7, 1)]


def test_it_goes_on_within_the_epoch_that_was_interrupted_and_from_the_start_of_the_next() -> None:
    sampler = EpochSampler(4)
    sampler.start_at(3, 2)
    assert list(sampler) == [(3, 2), (3, 3)]
    assert len(sampler) == 4
    sampler.set_epoch(4)
    assert len(list(sampler)) == 4


def test_processes_take_disjoint_positions_and_equally_many(of_two: pytest.MonkeyPatch) -> None:
    seen = []
    for number in (0, 1):
        as_rank(of_two, number)
        seen.append([position for _, position in EpochSampler(9)])
    # A step of two processes with a batch of two has the items 0 to 3, as a step of one process with a batch of four.
    assert seen == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_every_validation_case_is_predicted_by_somebody(of_two: pytest.MonkeyPatch) -> None:
    seen = []
    for number in (0, 1):
        as_rank(of_two, number)
        seen.append(list(ValidationSampler(3)))
    assert seen == [[0, 2], [1, 0]]


def start(job: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "med_assets.training", str(job), *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


@pytest.mark.drill
def test_two_processes_stopped_and_resumed_make_one_result_and_it_is_that_of_one_process(tmp_path: Path) -> None:
    overrides = (*TINY, "patches.per_epoch=20", "schedule.epochs=2", "schedule.val_every=2", "runtime.save_every_s=0")
    jobs = []
    for devices in (1, 2):
        job = write_job(tmp_path / f"job{devices}", overrides=(*overrides, f"runtime.devices={devices}"), cases=4)
        # Two cases for validation, one for each process.
        cases = json.loads((job / "cases.json").read_text())
        cases[-2]["split"] = "val"
        (job / "cases.json").write_text(json.dumps(cases))
        jobs.append(job)
    one, two = jobs
    expected = run(one)
    first = start(two)
    while not list((two / "checkpoints").glob("step-*.json")):
        assert first.poll() is None
        time.sleep(0.02)
    first.terminate()
    assert first.wait() == status.REQUEUE
    assert start(two, "--resume", "must").wait() == status.DONE
    result = json.loads((two / "result.json").read_text())
    assert (expected["batch"], expected["memory"]["processes"]) == (2, 1)
    assert (result["batch"], result["memory"]["processes"]) == (1, 2)
    # Each once, though two processes trained.
    assert [event["event"] for event in events(two)] == ["start", "stopped", "start"]
    assert len((two / "history.csv").read_text().splitlines()) == 3
    assert result["best_metrics"] == pytest.approx(expected["best_metrics"], rel=1e-2)
    assert (
        torch.load(two / "weights.pt", weights_only=True).keys()
        == torch.load(one / "weights.pt", weights_only=True).keys()
    )
