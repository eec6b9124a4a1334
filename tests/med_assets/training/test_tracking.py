"""Epochs that are sent to MLflow and W&B by their own clients: to a database, a server and files of this machine, and to ports where nothing answers."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.experiments.parts import Tracking
from med_assets.storage import preloaded
from med_assets.storage.files import read_yaml
from med_assets.training import track
from med_assets.training.callbacks import History
from med_assets.training.job import run
from med_assets.training.tracking import RUNS, tracked
from tests.med_assets.programs.rt_dose.builders import TINY, write_job
from tests.med_assets.training.clients import PRELOADED
from tests.peers import wait_for

torch.set_num_threads(1)

MODULE = "tests.med_assets.training.clients"


@dataclass(frozen=True)
class Ended:
    """What a process wrote."""

    stdout: str
    stderr: str


@pytest.fixture(scope="module", autouse=True)
def parent() -> Iterator[None]:
    """The processes of this module are forked from one that has imported the clients."""
    with pytest.MonkeyPatch.context() as patch, preloaded.parents({MODULE: PRELOADED}, environment()) as found:
        for name, text in found.items():
            patch.setenv(name, text)
        yield


def environment() -> dict[str, str]:
    given = {name: text for name, text in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    # Those of `track` are read while wandb is imported, which the parent does.
    return given | track.ENVIRONMENT | {"MLFLOW_DISABLE_TELEMETRY": "true"}


def start(out: Path, *words: str) -> preloaded.Process:
    """Start a process of `clients`, which writes to a file and one beside it."""
    with out.open("w") as stdout, out.with_suffix(".err").open("w") as stderr:
        command = [sys.executable, "-P", "-m", MODULE, *words]
        process = preloaded.start(command, environment(), stdout.fileno(), stderr.fileno(), tied=True)
    assert isinstance(process, preloaded.Forked) or not preloaded.available()
    return process


def run_client(*words: str) -> Ended:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        code = start(out, *words).wait(300)
        ended = Ended(out.read_text(), out.with_suffix(".err").read_text())
    assert code == 0, ended.stderr
    return ended


def send(job: Path, given: str = "end\n", key: str = "") -> Ended:
    return run_client("track", str(job), given, key)


def runs_at(address: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run_client("read", address).stdout)
    return found


def in_folder(store: Path) -> tuple[str, list[tuple[int, float]]]:
    """Status of the one run of a folder of MLflow, and its losses by epoch."""
    (losses,) = store.glob("*/*/metrics/loss")
    status = read_yaml(losses.parents[1] / "meta.yaml")["status"]
    rows = [line.split() for line in losses.read_text().splitlines()]
    return RunStatus(status).name, [(int(step), float(value)) for _, value, step in rows]


class RunStatus(Enum):
    """Numbers of MLflow's file store."""

    FINISHED, FAILED, KILLED = 3, 4, 5


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: protocol buffers in the log format of LevelDB, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, part = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole, at = whole + content[at + 7 : at + 7 + size], at + 7 + size
        if part in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def written_job(folder: Path, losses: tuple[float, ...], *tracking: str) -> Path:
    """A job folder whose training wrote these losses, one for each epoch."""
    chosen = experiments.load("rt_dose", "baseline", [*(f"runtime.tracking.{each}" for each in tracking)], "demo")
    folder.mkdir(exist_ok=True)
    (folder / "program").write_text("rt_dose\n")
    (folder / "experiment.json").write_text(chosen.to_json())
    history = History(folder / "history.csv")
    for epoch, loss in enumerate(losses, 1):
        history.add({"epoch": epoch, "loss": loss})
    return folder


@pytest.mark.slow
def test_a_training_sends_its_epochs_its_configuration_and_hashes_to_both_and_no_case(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    asked = ("schedule.epochs=2", f"runtime.tracking.mlflow={address}", "runtime.tracking.wandb=offline")
    job = write_job(tmp_path / "job", overrides=(*TINY, *asked, "runtime.tracking.wait_s=120"))
    result = run(job)
    assert result["status"] == "completed"
    history = [float(line.split(",")[3]) for line in (job / "history.csv").read_text().splitlines()[1:]]
    (sent,) = runs_at(address)
    assert (sent["project"], sent["status"]) == ("med-assets-rt_dose", "FINISHED")
    assert sent["metrics"]["train_loss"] == pytest.approx(history[-1])
    assert (sent["params"]["optimiser/lr"], sent["params"]["experiment_hash"]) == ("0.003", result["experiment_hash"])
    assert sent["tags"]["weights_sha256"] == result["weights_sha256"]
    assert not {"mlflow.user", "mlflow.source.git.repoURL"} & set(sent["tags"])
    (file,) = (job / "wandb").glob("offline-run-*/*.wandb")
    records = list(wandb_records(file))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["train_loss"]) for row in rows] == list(enumerate(history, 1))
    (begun,) = {(each.run.project, each.run.host, each.run.display_name) for each in records if each.HasField("run")}
    assert begun == ("med-assets-rt_dose", "", "baseline")
    everything = json.dumps(sent).encode() + file.read_bytes()
    # The job is in a folder of this name, and its cases are case0 to case2 of p0 to p2.
    assert not [name for name in ("case0", "case2", '"p0"') if name.encode() in everything]
    # A short name of a machine occurs in a random run id too, so it is looked for as a value.
    assert socket.gethostname() not in {*sent["tags"].values(), *sent["params"].values()}


def test_a_training_that_goes_on_goes_on_in_its_run_and_sends_no_epoch_twice(tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'runs'}"
    job = written_job(tmp_path / "job", (3.0,), f"mlflow={address}")
    send(job, given="")  # killed
    assert in_folder(tmp_path / "runs") == ("KILLED", [(1, 3.0)])
    written_job(job, (3.0, 2.0, float("nan")), f"mlflow={address}")
    (job / "result.json").write_text(json.dumps({"status": "completed", "best_epoch": 2}))
    send(job)
    assert in_folder(tmp_path / "runs") == ("FINISHED", [(1, 3.0), (2, 2.0)])


@pytest.mark.slow
def test_a_server_that_was_away_gets_all_epochs_when_it_answers(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
    job = written_job(tmp_path / "job", (3.0, 2.0), f"mlflow={away}")
    done = send(job)
    assert done.stderr.count("tracking: mlflow failed, and the training goes on") == 1
    assert "mlflow lacks 2 of 2 epochs" in done.stderr
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    server = start(tmp_path / "port", "serve", database)
    try:
        wait_for(lambda: (tmp_path / "port").read_text().endswith("\n"))
        here = f"http://127.0.0.1:{(tmp_path / 'port').read_text().strip()}"
        written_job(job, (3.0, 2.0), f"mlflow={here}")
        assert "lacks" not in send(job).stderr
        assert [(each["project"], each["losses"]) for each in runs_at(here)] == [
            ("med-assets-rt_dose", [[1, 3.0], [2, 2.0]])
        ]
    finally:
        server.kill()
        server.wait()


def test_a_server_that_never_answers_holds_the_end_of_a_training_no_longer_than_allowed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        job = written_job(tmp_path / "job", (3.0,), f"mlflow={address}")
        with tracked(job, Tracking(mlflow=address, wait_s=0.5)):
            ended = time.monotonic()
        assert time.monotonic() - ended < 10
    assert not (job / RUNS).exists()


def test_wandb_online_without_a_key_asks_nobody_and_says_so(tmp_path: Path) -> None:
    done = send(written_job(tmp_path / "job", (3.0,), "wandb=online"))
    assert done.stderr.count("expected WANDB_API_KEY in the environment") == 1
    assert not (tmp_path / "job" / "wandb").exists()


@pytest.mark.slow
def test_a_wandb_server_that_is_away_ends_nothing(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
    job = written_job(tmp_path / "job", (3.0,), "wandb=online", f"wandb_server={server}", "wait_s=60")
    done = send(job, key="0" * 40)
    assert done.stderr.count("tracking: wandb failed, and the training goes on") == 1


def test_a_client_that_is_not_installed_is_named_with_its_extra() -> None:
    message = track.reason("mlflow", ModuleNotFoundError("no", name="mlflow"))
    assert "pip install 'med-assets[mlflow]'" in message


def test_where_epochs_are_sent_changes_no_hash() -> None:
    plain = experiments.load("rt_dose", "baseline")
    sent = experiments.load("rt_dose", "baseline", ["runtime.tracking.wandb=offline", "runtime.tracking.project=p"])
    assert sent.hash() == plain.hash()


@pytest.mark.parametrize("address", ["https://user:word@example.org", "mlflow.db", "sqlite:///relative.db"])
def test_an_address_with_a_password_or_of_no_known_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        experiments.load("rt_dose", "baseline", [f"runtime.tracking.mlflow='{address}'"])
