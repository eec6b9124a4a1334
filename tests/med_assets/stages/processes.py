"""Processes that work on one home at the same time, or die in the middle: real ones, forked from one that imported all."""

import os

os.environ["GX_ANALYTICS_ENABLED"] = "false"

import multiprocessing
import signal
from multiprocessing.context import ForkServerProcess
from typing import Any

import great_expectations  # noqa: F401 - stages import it late, so each child would again
import highdicom  # noqa: F401 - likewise
import scipy.ndimage  # noqa: F401 - likewise

from med_assets import program
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.intake import division
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
program.get(P)


def _work(
    environ: dict[str, str], ws: Workspace, batch: str, names: tuple[str, ...], barrier: Any, results: Any
) -> None:
    os.environ.update(environ)
    if barrier:
        barrier.wait()
    for name in names:
        if name == "train":
            found = stages.train(ws, P, "mean_dose")
            results.put((found.data_version, found.counts["new"], found.summary["checkpoint"]))
        else:
            getattr(stages, name)(ws, P, batch)


def start(ws: Workspace, batch: str, *names: str, barrier: Any = None, results: Any = None) -> ForkServerProcess:
    """Start a process that runs stages (intake, prepare, train) of a batch, once all who wait at the barrier are there."""
    made = CONTEXT.Process(target=_work, args=(dict(os.environ), ws, batch, names, barrier, results))
    made.start()
    return made


def _ingest(environ: dict[str, str], name: str, help_s: float) -> None:
    os.environ.update(environ)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    division.HELP_S = help_s
    raise SystemExit(main(["ingest", name, "--now"]))


def ingesting(name: str, help_s: float = division.HELP_S) -> ForkServerProcess:
    """Start a process that takes in what is in a program's landing zone, as the command does; processes help each other with work of `help_s`."""
    made = CONTEXT.Process(target=_ingest, args=(dict(os.environ), name, help_s))
    made.start()
    return made


def at_once(ws: Workspace, *runs: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Let processes (a batch and stages each) work at the same time; returns what their trainings came to."""
    barrier, results = CONTEXT.Barrier(len(runs)), CONTEXT.Queue()
    running = [start(ws, batch, *names, barrier=barrier, results=results) for batch, *names in runs]
    found = [results.get(timeout=120) for _, *names in runs if "train" in names]
    for each in running:
        each.join(120)
    assert [each.exitcode for each in running] == [0] * len(runs)
    return found
