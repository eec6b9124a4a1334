"""The small callbacks, each on its own."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from med_assets.errors import TrainingDiverged
from med_assets.experiments.parts import Thermal
from med_assets.training.callbacks import (
    BestEpoch,
    Heartbeat,
    History,
    MovingAverage,
    StepSeeds,
    ThermalPause,
    save_tensors,
)
from med_assets.training.divergence import SKIPPED_IN_A_ROW, StopAtNan
from med_assets.training.task import Task
from med_assets.training.temperature import Thermometer, hottest


@pytest.fixture
def best(tmp_path: Path) -> BestEpoch:
    task = Task(None, None, None, "loss", lambda: {"w": torch.ones(1)})
    return BestEpoch(lambda epoch: tmp_path / f"best-{epoch}.pt", task, patience=2)


def validated(best: BestEpoch, values: list[float]) -> SimpleNamespace:
    trainer = SimpleNamespace(current_epoch=0, should_stop=False, sanity_checking=False)
    for trainer.current_epoch, value in enumerate(values):
        best.on_validation_end(trainer, SimpleNamespace(epoch_metrics={"loss": value}))
    return trainer


def test_the_lowest_value_is_the_best_epoch(best: BestEpoch) -> None:
    trainer = validated(best, [3.0, 1.0, 2.0])
    assert (best.best, best.epoch, trainer.should_stop) == (1.0, 2, False)
    assert best.path is not None
    assert best.path.is_file()


def test_training_stops_when_patience_ends(best: BestEpoch) -> None:
    assert validated(best, [1.0, 2.0, 1.0]).should_stop


def test_only_a_gain_above_min_delta_is_waited_for_and_the_lowest_value_is_the_best(best: BestEpoch) -> None:
    best.min_delta = 0.1
    trainer = validated(best, [1.0, 0.95, 0.85, 0.8, 0.79])
    assert (best.best, best.epoch, best.waited, trainer.should_stop) == (0.79, 5, 2, True)
    again = BestEpoch(best.path_of, best.task, 2, 0.1)
    again.load_state_dict(best.state_dict())
    assert (again.gained, again.waited) == (0.85, 2)
    former = {name: value for name, value in best.state_dict().items() if name != "gained"}
    again.load_state_dict(former)
    assert again.gained == 0.79


def test_a_training_that_had_stopped_stays_stopped_when_resumed(best: BestEpoch) -> None:
    best.load_state_dict({"best": 1.0, "epoch": 0, "waited": 2})
    trainer = SimpleNamespace(should_stop=False)
    best.on_train_start(trainer, None)
    assert trainer.should_stop


def test_a_nan_is_never_the_best(best: BestEpoch) -> None:
    validated(best, [float("nan"), 2.0])
    assert (best.best, best.epoch) == (2.0, 2)


def test_a_metric_that_an_epoch_does_not_have_is_left_empty(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history.add({"epoch": 0, "loss": 0.1})
    history.add({"epoch": 1, "loss": 0.05, "mae": 2.0})
    assert history.path.read_text() == "epoch,loss,mae\n0,0.1,\n1,0.05,2.0\n"


def test_a_heartbeat_says_phase_epoch_and_step_to_the_end(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", hang_after_s=60)
    heartbeat.beat("train", (2, 40))
    heartbeat.stop("end")
    heartbeat_now = json.loads(heartbeat.path.read_text())
    assert (heartbeat_now["phase"], heartbeat_now["epoch"], heartbeat_now["step"]) == ("end", 2, 40)


def test_a_hang_is_reported_with_the_stacks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", hang_after_s=0.2)
    heartbeat.beat("train")
    time.sleep(0.6)
    heartbeat.stop("end")
    assert "test_a_hang_is_reported_with_the_stacks" in capfd.readouterr().err


def test_saved_tensors_load_without_pickled_code(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.pt", {"w": torch.arange(3)})
    assert torch.load(tmp_path / "w.pt", weights_only=True)["w"].tolist() == [0, 1, 2]


def test_a_thermal_pause_is_no_hang(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", hang_after_s=1.5)
    pause = ThermalPause(0.1, 2.5, heartbeat)
    pause.on_train_start(None, None)
    pause.on_train_batch_end(None)
    assert pause.pauses == 0
    time.sleep(0.11)
    started = time.monotonic()
    pause.on_train_batch_end(None)
    assert time.monotonic() - started >= 2.5
    assert json.loads(heartbeat.path.read_text())["phase"] == "paused"
    pause.on_train_batch_end(None)
    heartbeat.stop("end")
    assert pause.pauses == 1
    assert not capfd.readouterr().err


def test_a_training_rests_while_a_gpu_is_hot(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    temperature = tmp_path / "temperature"
    temperature.write_text("70")
    smi.write_text(f'#!/bin/sh\nread t < "{temperature}"\necho "GPU-1, 40"\necho "GPU-2, $t"\n')
    smi.chmod(0o700)
    thermometer = Thermometer(str(smi), every_s=0.02)
    pause = ThermalPause(None, 0.05, Heartbeat(tmp_path / "heartbeat.json", hang_after_s=60), 83.0, thermometer)

    def read(value: float) -> None:
        temperature.with_suffix(".new").write_text(f"{value:g}\n")
        temperature.with_suffix(".new").replace(temperature)
        while thermometer.hottest_c != value:
            time.sleep(0.01)

    pause.on_train_start(None, None)
    read(82)
    pause.on_train_batch_end(None)
    assert pause.pauses == 0
    read(83)
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(pause.on_train_batch_end, None)
        while pause.pauses < 2:
            assert not step.done()
            time.sleep(0.01)
        read(60)
        step.result()
    pause.on_train_end(None, None)
    pause.heartbeat.stop("end")


def test_the_hottest_gpu_is_one_that_the_training_may_use() -> None:
    lines = ["GPU-a, 50", "GPU-b, 90", "GPU-c, [N/A]"]
    assert hottest(lines, frozenset({"GPU-a", "GPU-c"})) == 50
    assert hottest(lines, frozenset()) == 90
    with pytest.raises(ValueError, match="temperature"):
        hottest(["GPU-c, [N/A]"], frozenset())


def test_a_temperature_that_is_not_known_is_said_once_and_makes_no_pause(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    thermometer = Thermometer(str(tmp_path / "none"), every_s=0.01)
    pause = ThermalPause(None, 5.0, Heartbeat(tmp_path / "heartbeat.json", hang_after_s=60), 10.0, thermometer)
    pause.on_train_start(None, None)
    time.sleep(0.1)
    pause.on_train_batch_end(None)
    pause.on_exception(None, None, RuntimeError())
    pause.heartbeat.stop("end")
    assert pause.pauses == 0
    assert capfd.readouterr().err.count("temperature of the GPU is not known: nvidia-smi does not start") == 1


def test_pauses_need_a_reason() -> None:
    with pytest.raises(ValidationError, match="every_s"):
        Thermal(pause_s=10)
    assert Thermal(pause_s=10, above_c=83).every_s is None


def test_random_numbers_of_a_step_depend_on_the_step_and_not_on_what_came_before() -> None:
    def drawn(seed: int, epoch: int, batch: int) -> list[float]:
        StepSeeds(seed).on_train_batch_start(SimpleNamespace(current_epoch=epoch), None, None, batch)
        return [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002 - the global state is meant

    first = drawn(1, 2, 3)
    assert drawn(1, 2, 4) != first
    assert drawn(1, 2, 3) == first
    assert len({tuple(drawn(*where)) for where in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4


def test_the_moving_average_is_validated_and_the_weights_are_trained() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    average, trainer = MovingAverage(0.75), SimpleNamespace(global_step=0)
    average.on_train_start(trainer, module)
    for trainer.global_step, weight in enumerate([3.0, 5.0], start=1):
        torch.nn.init.constant_(module.weight, weight)
        average.on_train_batch_end(trainer, module)
        average.on_train_batch_end(trainer, module)  # a piece of a batch, without a step
    expected = 0.75 * (0.75 * 1 + 0.25 * 3) + 0.25 * 5
    average.on_validation_start(trainer, module)
    assert module.weight.item() == pytest.approx(expected)
    average.on_validation_end(trainer, module)
    assert module.weight.item() == 5.0
    again = MovingAverage(0.75)
    again.load_state_dict(average.state_dict())
    again.on_train_start(trainer, module)
    assert again.average["weight"].item() == pytest.approx(expected)


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_tensors(tmp_path / name, {"w": torch.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


class Ids:
    """Training data of three cases, which an epoch takes in the order of its number."""

    cases = tuple(SimpleNamespace(case_id=f"c{number}") for number in range(3))

    def order(self, epoch: int) -> list[int]:
        return [(epoch + place) % 3 for place in range(3)]


def ends(stop: StopAtNan, losses: list[float], scaler: object = None) -> None:
    strategy = SimpleNamespace(reduce=lambda value: value)
    trainer = SimpleNamespace(
        strategy=strategy, precision_plugin=SimpleNamespace(scaler=scaler), current_epoch=1, global_step=4
    )
    for number, loss in enumerate(losses):
        stop.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, {"x": torch.tensor([loss])}, number % 2)


def test_a_loss_that_is_no_number_names_step_and_cases_of_its_batch_and_of_the_one_before() -> None:
    train = SimpleNamespace(dataset=Ids(), sampler=range(3), batch_size=2)
    ends(StopAtNan(train), [1.0, 2.0])
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(
            TrainingDiverged, match=r"step 4 \(epoch 2, batch 2\), of the cases c0; not finite in it: x; .* c1, c2"
        ):
            ends(StopAtNan(train), [1.0, wrong])


def test_a_scaler_leaves_such_steps_out_until_there_are_many_in_a_row() -> None:
    train = SimpleNamespace(dataset=Ids(), sampler=range(3), batch_size=2)
    few = [float("nan")] * (SKIPPED_IN_A_ROW - 1)
    ends(StopAtNan(train), [*few, 1.0, *few], scaler=object())
    with pytest.raises(TrainingDiverged):
        ends(StopAtNan(train), [*few, float("nan")], scaler=object())
