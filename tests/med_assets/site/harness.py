"""Machines of a site as process trees that are killed, a bucket with faults between them, and people who drop cases."""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from med_assets.launch.local import running
from med_assets.programs.breast_us.phantom import write_case
from med_assets.storage.conf import CONF_VARIABLE, conf_folder
from med_assets.storage.s3 import bucket, local
from tests import postgres
from tests.conftest import settings_of
from tests.med_assets.site import machine, runs
from tests.med_assets.site.plan import EXPERIMENTS, Drop, P, Plan
from tests.med_assets.stages import processes

processes.CONTEXT.set_forkserver_preload(
    [processes.__name__, machine.__name__]
)  # a machine that was killed starts at once

SHAPES = ((96, 120), (96, 132))
"""Rows and columns of a phantom that is sent for the first time, and again."""

LONGEST_DELAY_S = 3.0
"""A machine is killed so long after a step ended at most, s."""

HOMES_LOST = 0.4
"""Share of the kills after which the machine starts with an empty disk."""

EXPERIMENT = """
defaults:
  - _base
  - _self_
  - profiles: full
  - nets/tinyusfm: ${profiles}

title: Fast
description: One epoch of a tiny network.
seed: 1
"""


def configuration(folder: Path) -> Path:
    """A copy of conf/ with experiments that train in a second, and more patients for validation; returns its folder."""
    root = folder / "conf"
    shutil.copytree(conf_folder(P).parent, root)
    (root / P / f"{EXPERIMENTS[1]}.yaml").write_text(EXPERIMENT)
    for name, old, new in (
        ("_program.yaml", "val_fraction: 0.15", "val_fraction: 0.4"),
        ("profiles/demo.yaml", "epochs: 12", "epochs: 1"),
        ("profiles/demo.yaml", "input_px: 64", "input_px: 32"),
    ):
        path = root / P / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return root


@dataclass
class Server:
    """A bucket behind faults, in a process of its own."""

    good: str
    bad: str
    bucket: str
    process: "subprocess.Popen[str]"

    @property
    def client(self) -> Any:
        """A client that sees no faults."""
        return bucket.client({"S3_ENDPOINT_URL": self.good} | local.PUBLIC)

    def counts(self) -> dict[str, int]:
        """How often what happened to requests."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@contextmanager
def served(seed: int, **faults: float) -> Iterator[Server]:
    """A bucket behind faults, as `python -m tests.med_assets.s3.faults` serves it."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in faults.items()]
    command = [sys.executable, "-m", "tests.med_assets.s3.faults", f"--seed={seed}", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(**json.loads(process.stdout.readline()), process=process)
        finally:
            process.stdin.close()


@dataclass
class Site:
    """Machines, their bucket, and what happened to them. Without a server it is the home of one machine."""

    folder: Path
    plan: Plan
    seed: int
    conf: Path
    names: Sequence[str] = ("a", "b")
    settle_s: float = 4.0
    server: Server | None = None
    database: Mapping[str, str] | None = None
    """Variables of the PostgreSQL with Dagster's record; without it stages are called without Dagster."""
    back_off_s: float = 1.0
    """How long a machine waits, on average half of it, when the bucket asks for fewer requests for the first time; doubled each time."""
    counts: Counter[str] = field(default_factory=Counter)
    lives: Counter[str] = field(default_factory=Counter)
    machines: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.board = machine.Board(self.folder / "board", self.plan, self.names)

    def environ(self, name: str) -> dict[str, str]:
        """Variables of a machine."""
        found = settings_of(self.folder / name) | {CONF_VARIABLE: str(self.conf)}
        if self.database is not None:
            found |= {**self.database, "DAGSTER_HOME": str(postgres.settings(self.folder / f"dagster-{name}"))}
        if self.server is None:
            return found | {"MED_ASSETS_LANDING": str(self.folder / "landing")}
        return found | local.PUBLIC | {
            "S3_ENDPOINT_URL": self.server.bad,
            "MED_ASSETS_STORE": f"s3://{self.server.bucket}/site",
            "MED_ASSETS_LANDING": f"s3://{self.server.bucket}/landing",
            "MED_ASSETS_SETTLE_S": str(self.settle_s),
            machine.BACK_OFF: str(self.back_off_s),
        }  # fmt: skip

    def deliver(self, drop: Drop) -> None:
        """Let the cases of a drop arrive."""
        scratch = self.folder / f"scratch-{secrets.token_hex(4)}"
        known = {seed for drops in self.plan.drops for each in drops if each.name < drop.name for seed in each.seeds}
        for place, seed in enumerate(drop.seeds):
            write_case(scratch / P / f"{drop.name}-{place}", seed, shape=SHAPES[seed in known])
        if self.server is None:
            (self.folder / "landing" / P).mkdir(parents=True, exist_ok=True)
            for path in sorted((scratch / P).iterdir()):
                path.rename(self.folder / "landing" / P / path.name)
        else:
            local.upload(scratch, bucket.Location(self.server.bucket, "landing"), self.server.client)
        shutil.rmtree(scratch)

    def start(self, name: str) -> None:
        """Start a machine, for the first time or again."""
        self.lives[name] += 1
        arguments = (self.environ(name), name, self.lives[name], self.board, self.seed)
        self.machines[name] = processes.CONTEXT.Process(target=machine.run, args=arguments)
        self.machines[name].start()

    def kill(self, name: str, forget: bool) -> None:
        """Kill all processes of a machine at once, as when its power fails; `forget` also loses its disk."""
        process, home = self.machines[name], self.folder / name
        for _ in range(3):  # one that was just started may be in no list yet
            for each in tree(process.pid, home):
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        process.join()
        if forget:
            shutil.rmtree(home, ignore_errors=True)
        if self.database is not None:
            with dg.DagsterInstance.from_config(self.environ(name)["DAGSTER_HOME"]) as instance:
                self.counts["runs ended"] += runs.end_those_of(instance, name)
        self.counts["killed"] += 1
        self.counts["homes lost"] += forget
        self.board.rest(name)

    def work(self, kills: int = 0, timeout_s: float = 600.0) -> None:
        """Let the machines do the whole plan; `kills` are spread over it, each at a random moment of a random machine."""
        chance, deadline = random.Random(f"{self.seed} kills"), time.monotonic() + timeout_s
        delivered, ended, due_at = -1, set[str](), 0.0
        for name in self.names:
            self.start(name)
        try:
            while len(ended) < len(self.names):
                if (phase := self.board.phase()) > delivered and phase < len(self.plan.steps):
                    delivered = phase
                    for drop in self.plan.drops[phase]:
                        self.deliver(drop)
                time.sleep(0.05)
                for name in self.names:
                    process = self.machines[name]
                    if process.exitcode is not None and name not in ended:
                        if process.exitcode != 0:
                            raise AssertionError(f"machine {name} ended with {process.exitcode}: {self.broken()}")
                        ended.add(name)
                alive = [name for name in self.names if name not in ended]
                if not due_at and kills * self.board.share_done() > self.counts["killed"]:
                    due_at = time.monotonic() + chance.uniform(0.0, LONGEST_DELAY_S)
                if alive and self.counts["killed"] < kills and 0 < due_at < time.monotonic():
                    name, due_at = chance.choice(alive), 0.0
                    self.kill(name, forget=chance.random() < HOMES_LOST)
                    self.start(name)
                if time.monotonic() > deadline:
                    raise AssertionError(f"the work took longer than {timeout_s:g} s; last: {self.log()[-6:]}")
        finally:
            for name in self.names:
                if self.machines[name].exitcode is None:
                    self.kill(name, forget=False)

    def log(self) -> list[dict[str, Any]]:
        """What the machines did, in the order of time."""
        lines = []
        for name in self.names:
            path = self.folder / "board" / f"log-{name}.jsonl"
            for line in path.read_text().splitlines() if path.exists() else ():
                with suppress(ValueError):  # a line that was cut off by a kill
                    lines.append(json.loads(line) | {"machine": name})
        return sorted(lines, key=lambda line: float(line["at"]))

    def broken(self) -> list[dict[str, Any]]:
        """Errors that must not happen."""
        return [line for line in self.log() if line["event"] == "broken"]

    def summary(self) -> dict[str, Any]:
        """Numbers of steps, errors, kills and faults."""
        log = self.log()
        return {
            "steps": sum(line["event"] == "end" for line in log),
            "failed": dict(Counter(line["error"] for line in log if line["event"] == "failed")),
            **self.counts,
        }


def tree(pid: int, home: Path) -> list[psutil.Process]:
    """All processes of a machine: those that it started, and its jobs, which live in sessions of their own."""
    found = []
    with suppress(psutil.NoSuchProcess):
        found = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for job in (home / "tmp" / "jobs").glob("*") if home.exists() else ():
        with suppress(psutil.NoSuchProcess, ValueError):
            if job.is_dir() and (process := running(job)) is not None:
                found += [process, *process.children(recursive=True)]
    return [each for each in found if each.pid != os.getpid()]
