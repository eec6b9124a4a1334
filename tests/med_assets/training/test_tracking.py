"""Epochs that are sent to MLflow and W&B by their own clients: to a database, a server and files of this machine, and to ports where nothing answers."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.experiments.parts import Tracking
from med_assets.storage.files import read_yaml
from med_assets.training import track
from med_assets.training.callbacks import History
from med_assets.training.job import run
from med_assets.training.tracking import RUNS, tracked
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

torch.set_num_threads(1)

SERVER = """
import os, sys
os.environ["_MLFLOW_SERVER_FILE_STORE"] = sys.argv[1]
os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app)
print(server.port, flush=True)
server.serve_forever()
"""
"""MLflow's tracking server, without the helpers of `mlflow server` for jobs that nothing here uses."""

READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
runs = []
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        losses = [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, "loss")]
        runs.append({"project": experiment.name, "status": run.info.status, "user": run.info.user_id, "losses": losses,
                     "params": run.data.params, "tags": run.data.tags, "metrics": run.data.metrics})
print(json.dumps(runs))
"""


def python(*words: str, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", **variables}
    return subprocess.run(
        [sys.executable, *words], input=given, capture_output=True, text=True, check=False, env=environment, timeout=300
    )


def send(job: Path, given: str = "end\n", **variables: str) -> subprocess.CompletedProcess[str]:
    done = python("-P", "-m", "med_assets.training.track", str(job), given=given, **variables)
    assert done.returncode == 0, done.stderr
    return done


def runs_at(address: str) -> list[dict[str, Any]]:
    done = python("-c", READ, address)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
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
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, database], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            here = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            written_job(job, (3.0, 2.0), f"mlflow={here}")
            assert "lacks" not in send(job).stderr
            assert [(each["project"], each["losses"]) for each in runs_at(here)] == [
                ("med-assets-rt_dose", [[1, 3.0], [2, 2.0]])
            ]
        finally:
            server.kill()


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
    done = send(job, WANDB_API_KEY="0" * 40)
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
