"""`python -m med_assets.training.track JOB`: send the epochs of a training to the services that its experiment names.

A training starts it and writes a line to its input when it has ended. By hand, with `< /dev/null`, it sends what a service has not had yet.
What is sent: the fields of the experiment that results depend on, hashes, the code's commit, and the rows of `history.csv`, which are
means over cases. No case, patient, path, host or user, nothing of the log, and nothing to the makers of the clients.
"""

import argparse
import csv
import fcntl
import math
import os
import signal
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from med_assets.experiments.configuration import Experiment, from_json, result_fields
from med_assets.experiments.parts import Tracking
from med_assets.launch.jobs import RESULT
from med_assets.storage.files import keep_private, read_json, write_json
from med_assets.training.events import events
from med_assets.training.tracking import END, RUNS

POLL_S = 1.0
"""Time between two looks at the history, s."""

HTTP_TIMEOUT_S, HTTP_RETRIES = 10, 1
"""What MLflow's client may take for one request, where its own variables say nothing: what fails is sent again with the next epoch."""

PARAMS_AT_ONCE, PARAM_CHARS = 100, 500
"""Limits of MLflow for one request, and for one parameter, which is cut there."""

MESSAGE_CHARS = 300
"""What a warning quotes of a client's message."""

ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # `file:` is refused without it since 3.17, in favour of sqlite
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(HTTP_TIMEOUT_S),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(HTTP_RETRIES),
    "WANDB_ERROR_REPORTING": "false",
}
"""Variables of the clients, each unless it is set."""


class Ending(Enum):
    """How the training ended; the values are those of MLflow."""

    FINISHED = "FINISHED"
    STOPPED = "KILLED"
    """It can go on, and then goes on in the same run."""
    FAILED = "FAILED"


@dataclass(frozen=True)
class Run:
    """What a service gets of a training at its start."""

    project: str
    experiment: Experiment
    job: Path

    @property
    def configuration(self) -> dict[str, Any]:
        """The fields that results depend on, hashes, and the commit of the code."""
        commits = [event["git_commit"] for event in events(self.job) if event.get("git_commit")]
        return {
            **result_fields(self.experiment),
            "profile": self.experiment.profile,
            "experiment_hash": self.experiment.hash(),
            "checkpoint": self.job.name,
            **({"git_commit": commits[-1]} if commits else {}),
        }


@dataclass
class Service(ABC):
    """A place that epochs are sent to. `run_id` is known once it has a run; `epoch` is the last that it took."""

    tracking: Tracking
    run: Run
    run_id: str | None = None
    epoch: int = -1
    opened: bool = field(default=False, init=False)

    @abstractmethod
    def open(self) -> None:
        """Begin the run, or go on with `run_id`; raises whatever the client raises."""

    @abstractmethod
    def send(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one epoch."""

    @abstractmethod
    def close(self, ending: Ending, summary: Mapping[str, Any]) -> None:
        """Send what is known at the end, and end the run."""


class MLflow(Service):
    """An MLflow server, database or folder."""

    def open(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(self.tracking.mlflow)
        if self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(self.run.project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self.run.project)
        # The high-level API would add the user and the path of the script as tags; this one adds nothing.
        begun = self._client.create_run(
            experiment_id, run_name=self.run.experiment.name, tags={"mlflow.source.name": "med-assets train"}
        )
        params = [Param(name, str(value)[:PARAM_CHARS]) for name, value in flat(self.run.configuration).items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(begun.info.run_id, params=params[first : first + PARAMS_AT_ONCE])
        self.run_id = begun.info.run_id

    def send(self, epoch: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._client.log_batch(
            self.run_id, metrics=[Metric(name, value, now, epoch) for name, value in metrics.items()]
        )

    def close(self, ending: Ending, summary: Mapping[str, Any]) -> None:
        for name, value in summary.items():
            self._client.set_tag(self.run_id, name, value)
        self._client.set_terminated(self.run_id, ending.value)


class WeightsAndBiases(Service):
    """W&B, whose own helper process sends in the background, or writes files for `wandb sync`."""

    def open(self) -> None:
        online = self.tracking.wandb == "online"
        if online and not os.environ.get("WANDB_API_KEY"):
            raise PermissionError("expected WANDB_API_KEY in the environment of the training, got none; or use offline")
        import wandb

        settings = wandb.Settings(
            mode="online" if online else "offline",
            **({"base_url": self.tracking.wandb_server} if self.tracking.wandb_server else {}),
            init_timeout=HTTP_TIMEOUT_S,
            host="",
            username="",
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        run_id = self.run_id or uuid.uuid4().hex[:16]
        self._wandb = wandb.init(
            entity=self.tracking.wandb_entity,
            project=self.run.project,
            id=run_id,
            name=self.run.experiment.name,
            config=self.run.configuration,
            dir=str(self.run.job),
            resume="allow",
            settings=settings,
        )
        self.run_id = run_id

    def send(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._wandb.log(dict(metrics), step=epoch, commit=True)

    def close(self, ending: Ending, summary: Mapping[str, Any]) -> None:
        self._wandb.summary.update(dict(summary))
        self._wandb.finish(exit_code=0 if ending is Ending.FINISHED else 1)


SERVICES: dict[str, type[Service]] = {"mlflow": MLflow, "wandb": WeightsAndBiases}
"""By the name of the extra that brings its client."""


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields with their path as name, such as `optimiser/lr`."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) and value else {prefix + name: value}
    return found


def rows_of(job: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the epochs of a job's history with the metrics that each has."""
    path = job / "history.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            (int(row["epoch"]), {name: float(text) for name, text in row.items() if name != "epoch" and text})
            for row in csv.DictReader(stream)
        ]


class Tracker:
    """Sends the epochs of one job to its services, and keeps in the job what each has."""

    def __init__(self, job: Path) -> None:
        program = (job / "program").read_text(encoding="utf-8").strip()
        experiment = from_json(program, (job / "experiment.json").read_text(encoding="utf-8"))
        tracking = experiment.runtime.tracking
        run = Run(tracking.project or f"med-assets-{program}", experiment, job)
        known = read_json(job / RUNS) if (job / RUNS).is_file() else {}
        self.job, self._warned, self._seen = job, set[str](), -1
        self.services = {name: SERVICES[name](tracking, run, **known.get(name, {})) for name in tracking.services()}

    def send(self, *, last: bool = False) -> None:
        """Send each service what it lacks, if there is a new epoch or this is the last time."""
        rows = rows_of(self.job)
        newest = max((epoch for epoch, _ in rows), default=-1)
        if newest == self._seen and not last:
            return
        self._seen = newest
        for name in self.services:
            self._attempt(name, self._send_to, rows)

    def close(self, *, killed: bool) -> None:
        """End the run of each service, and say how many epochs it lacks."""
        result = read_json(self.job / RESULT) if (self.job / RESULT).is_file() else {}
        stopped = killed or [event["event"] for event in events(self.job)][-1:] == ["stopped"]
        completed = result.get("status") == "completed"
        ending = Ending.FINISHED if completed else Ending.STOPPED if stopped else Ending.FAILED
        names = ("weights_sha256", "best_epoch", "best_value", "monitor", "torch") if completed else ()
        summary = {name: result[name] for name in names if result.get(name) is not None}
        rows = rows_of(self.job)
        for name, service in self.services.items():
            if service.opened:
                self._attempt(name, self._close, ending, summary)
            if lacking := sum(epoch > service.epoch for epoch, _ in rows):
                print(f"tracking: {name} lacks {lacking} of {len(rows)} epochs", file=sys.stderr)

    def _send_to(self, service: Service, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        lacking = [(epoch, metrics) for epoch, metrics in rows if epoch > service.epoch]
        if lacking and not service.opened:
            service.open()
            service.opened = True
            self._remember()
        for epoch, metrics in lacking:
            service.send(epoch, {name: value for name, value in metrics.items() if math.isfinite(value)})
            service.epoch = epoch
            self._remember()

    @staticmethod
    def _close(service: Service, ending: Ending, summary: Mapping[str, Any]) -> None:
        service.close(ending, summary)

    def _attempt(self, name: str, action: Any, *arguments: Any) -> None:
        """Do what a client may fail at, in any way: a warning once, and no end of anything."""
        try:
            action(self.services[name], *arguments)
        except Exception as error:  # the clients raise what they like, down to what their HTTP libraries do
            if name in self._warned:
                return
            self._warned.add(name)
            print(
                f"tracking: {name} failed, and the training goes on: {reason(name, error)}", file=sys.stderr, flush=True
            )

    def _remember(self) -> None:
        known = {name: each for name, each in self.services.items() if each.run_id is not None}
        write_json(
            self.job / RUNS, {name: {"run_id": each.run_id, "epoch": each.epoch} for name, each in known.items()}
        )


def reason(name: str, error: Exception) -> str:
    """Return what a warning says of an exception: what to install, or its class and the start of its message."""
    if isinstance(error, ModuleNotFoundError):
        return f"there is no {error.name}; pip install 'med-assets[{name}]' on the machine that trains"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MESSAGE_CHARS]}"


def run(job: Path, stream: Any) -> None:
    """Follow a job until a line comes from `stream`, or its end, and then send what is left within `wait_s`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with (job / f"{RUNS}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # that of a training which was killed may still send its last epoch
        tracker = Tracker(job)
        over, words = threading.Event(), list[bytes]()

        def listen() -> None:
            words.append(stream.readline())
            over.set()

        threading.Thread(target=listen, daemon=True).start()
        while not over.wait(POLL_S):
            tracker.send()
        wait_s = next(iter(tracker.services.values())).tracking.wait_s if tracker.services else 0
        watchdog = threading.Timer(wait_s, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
        tracker.send(last=True)
        tracker.close(killed=words != [END])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; what it can't do it says, and it fails no training."""
    parser = argparse.ArgumentParser(prog="python -m med_assets.training.track", description=__doc__)
    parser.add_argument("job", type=Path, help="folder of a job that trains or has trained")
    job = parser.parse_args(arguments).job
    keep_private()
    # The training is asked to stop by these, and says when it has.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    run(job, sys.stdin.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
