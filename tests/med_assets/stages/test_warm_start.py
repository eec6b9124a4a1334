"""Warm start from the champion: whose weights a job gets, and what its checkpoint is called."""

from pathlib import Path

import pytest

from med_assets.cli import stages
from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.launch import training
from med_assets.settings import Workspace
from med_assets.storage.files import read_json, write_json
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, constant, model


def make_baseline(ws: Workspace) -> None:
    """Cases, and the baseline of 5 Gy."""
    cases(ws, {"train": TRAIN, "val": VAL})
    for row in ws.lake.rows("dataset", P):
        with ws.store.create(row["artifact"]) as folder:
            (folder / "ct.npy").write_bytes(b"not read by this test")
    model(ws, "mean_dose", constant(5.0))


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_baseline)


def train(ws: Workspace, *overrides: str) -> tuple[str, bytes | None]:
    """Train with a process that learns nothing; the checkpoint's key, and the initial weights of the job."""
    began: list[bytes | None] = [None]

    def launch(job: Path) -> None:
        path = job / "initial.pt"
        began[0] = path.read_bytes() if path.is_file() else None
        (job / "weights.pt").write_bytes(b"trained " + job.name.encode())
        (job / "history.csv").write_text("epoch,step,val_mae_gy\n0,1,2.0\n")
        write_json(job / "result.json", {"status": "completed"})

    key = str(stages.train(ws, P, "baseline", overrides, launch).summary["checkpoint"])
    return key, began[0]


def test_the_champions_weights_are_the_initial_weights_and_part_of_the_key(ws: Workspace) -> None:
    cold, began = train(ws)
    assert began is None
    assert train(ws, "initial=champion")[0] == cold, "without a champion there are no initial weights"
    first = model(ws, "grad_loss", constant(4.0))
    stages.champion(ws, P)
    warm, began = train(ws, "initial=champion")
    assert began == (ws.store.fetch(first) / "weights.pt").read_bytes()
    assert warm != cold
    assert read_json(ws.store.fetch(warm) / "provenance.json")["initial"] == first
    assert train(ws, "initial=champion") == (warm, None), "the same inputs are not trained again"
    assert train(ws)[0] == cold
    model(ws, "dvh_aware", constant(3.0))
    stages.champion(ws, P)
    assert train(ws, "initial=champion")[0] not in (cold, warm)


def test_another_experiments_weights_are_the_initial_weights(ws: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="rt_dose/grad_loss has no checkpoint yet"):
        train(ws, "initial=grad_loss")
    first = model(ws, "grad_loss", constant(4.0))
    key, began = train(ws, "initial=grad_loss")
    assert began == (ws.store.fetch(first) / "weights.pt").read_bytes()
    assert read_json(ws.store.fetch(key) / "provenance.json")["initial"] == first
    second = model(ws, "grad_loss", constant(3.0))
    assert first != second
    assert train(ws, "initial=grad_loss")[0] != key, "another teacher makes another checkpoint"


def test_a_better_teacher_makes_another_checkpoint(ws: Workspace) -> None:
    teachers = []

    def launch(job: Path) -> None:
        teachers.append(read_json(job / "teacher.json"))
        (job / "weights.pt").write_bytes(b"trained " + job.name.encode())
        (job / "history.csv").write_text("epoch,step,val_mae_gy\n0,1,2.0\n")
        write_json(job / "result.json", {"status": "completed"})

    def taught() -> str:
        return str(stages.train(ws, P, "baseline", ["+teacher=grad_loss"], launch).summary["checkpoint"])

    with pytest.raises(ConfigurationError, match="rt_dose/grad_loss has no checkpoint yet"):
        taught()
    first = model(ws, "grad_loss", constant(4.0))
    key = taught()
    assert teachers[0]["key"] == first
    assert teachers[0]["folder"] == str(ws.store.fetch(first))
    assert read_json(ws.store.fetch(key) / "provenance.json")["teacher"] == first
    assert taught() == key
    assert len(teachers) == 1, "the same teacher does not teach twice"
    model(ws, "grad_loss", constant(3.0))
    assert taught() != key
    assert train(ws)[0] != key


def test_initial_weights_must_exist(ws: Workspace) -> None:
    with pytest.raises(ConfigurationError, match=r"expected initial to be random, champion, released/NAME or another"):
        train(ws, "initial=nothing_like_it")
    with pytest.raises(ConfigurationError, match=r"expected released weights of rt_dose among \['vgg16'\], got 'net'"):
        train(ws, "initial=released/net")


def test_experiments_are_trained_after_those_of_their_initial_weights(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"a": ("c",), "b": (), "c": ("b",), "x": ("y",), "y": ("x",)}

    class Stands:
        def __init__(self, name: str) -> None:
            self.needs = lambda: wanted[name]

    monkeypatch.setattr(training, "experiment", lambda ws, program, name: Stands(name))
    assert training.in_order(ws, P, ["a", "b"]) == ["b", "c", "a"]
    with pytest.raises(ConfigurationError, match="experiments need each other: x needs y needs x"):
        training.in_order(ws, P, ["x"])


def test_weights_of_another_function_are_no_initial_weights(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from med_assets.programs.rt_dose.experiment import EXPERIMENT

    model(ws, "grad_loss", constant(4.0))
    objections = {"grad_loss": "its inputs had another scale"}
    monkeypatch.setattr(EXPERIMENT, "objection_to", lambda self, before: objections.get(before.name))
    with pytest.raises(
        CheckpointMismatch, match="can't start from the weights of grad_loss: its inputs had another scale"
    ):
        train(ws, "initial=grad_loss")
    objections.clear()
    assert train(ws, "initial=grad_loss")[1] is not None
