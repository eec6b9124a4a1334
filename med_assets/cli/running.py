"""`med-assets run`: one stage of the graph in this process, or as a job; it is also what launchers start."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import TextIOBase
from typing import TYPE_CHECKING, TextIO

import click

from med_assets.cli.commands import Section, Value, launch, program, show, show_tables, table, workspace
from med_assets.cli.results import show_champion
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.launch.names import IN_PROCESS, LAUNCHERS
from med_assets.launch.stages import Stage
from med_assets.storage import progress
from med_assets.storage.locks import alone
from med_assets.storage.phi_safe import outline, silence
from med_assets.training.status import REQUEUE

if TYPE_CHECKING:
    from med_assets.launch.exchange import Reporter
    from med_assets.launch.follow import Event
    from med_assets.launch.launcher import Handle, Launcher
    from med_assets.launch.stage_request import Request
    from med_assets.settings import Workspace
    from med_assets.storage.result import StageOutcome

SECTION = Section("Stages of the graph")

TABLES = (Stage.LEARNING_CURVE, Stage.LEADERBOARD, Stage.MONITORING, Stage.ANALYSE)
"""Stages whose commands print all of their tables."""

TITLES = {
    Stage.INTAKE: "taken in",
    Stage.PREPARE: "prepared",
    Stage.TRAIN: "trained {}",
    Stage.EVALUATE: "evaluated {}",
    Stage.LEARNING_CURVE: "learning curve of {}",
    Stage.MONITORING: "monitored",
    Stage.SCREENING: "screened",
    Stage.ANALYSE: "analysed {}",
}
"""How the commands of stages call them, with PROGRAM/NAME; others have their own name."""


def _launchers() -> tuple[str, ...]:
    return (IN_PROCESS, *LAUNCHERS)


@SECTION.command("run")
@click.argument("stage", type=Value("STAGE", known=lambda: tuple(Stage)), help=f"one of {', '.join(Stage)}")
@program
@click.argument(
    "words",
    type=Value("NAME|KEY=VALUE"),
    nargs=-1,
    help="batches of intake, prepare, monitoring and predictions; the experiment of train, evaluate and learning_curve, with changed fields; "
    "the analysis of analyse",
)
@click.option(
    "--launcher",
    type=Value("LAUNCHER", known=_launchers),
    default="in_process",
    help="where it runs: in this process, or as a job that this command follows, such as local or slurm",
)
@click.option(
    "--to",
    type=Value("ID/TOKEN"),
    help="for launchers: leave log and result to whoever asked for this submission, instead of printing the result",
)
def run(stage: str, program: str, words: tuple[str, ...], launcher: str, to: str | None) -> int:
    """Run one stage of the graph with the checks of its asset, as Dagster does; it reuses what is up to date.

    A stage that another process runs by a launcher is followed, and then asked for again.
    """
    from med_assets.launch.stage_request import parse

    request = parse(stage, program, words)
    if to is not None:
        return _run_for(request, to)
    outcome = _elsewhere(workspace(), request, launcher) if launcher != "in_process" else _here(request)
    _show(request, outcome)
    return 0


def _here(request: "Request") -> "StageOutcome":
    from med_assets.cli.stage_work import perform

    return perform(workspace(), request)


def _elsewhere(ws: "Workspace", request: "Request", name: str) -> "StageOutcome":
    """Run a stage by a launcher, with its progress on stderr. Raises what `stage_runs.run_stage` raises."""
    from med_assets.launch import stage_runs

    launcher = stage_runs.launcher_of(ws, request, name)
    assert launcher is not None
    return stage_runs.run_stage(ws, request, launcher, _print_event, interrupted=_on_ctrl_c)


def _print_event(event: "Event") -> None:
    from med_assets.launch.follow import LogLine, StateChanged, Submitted

    match event:
        case Submitted():
            print(event.message, file=sys.stderr)
        case StateChanged():
            print(event.state.message, file=sys.stderr)
        case LogLine():
            print(event.text, file=sys.stderr)


def _on_ctrl_c(launcher: "Launcher", handle: "Handle") -> None:
    from med_assets.launch.follow import end_interrupted

    end_interrupted(launcher, handle)


def _show(request: "Request", outcome: "StageOutcome") -> None:
    """Print what the command of the stage prints, and the checks that did not pass."""
    result = outcome.result
    named = "/".join([request.program, *request.names[:1]])
    match request.stage:
        case Stage.LEADERBOARD:
            show_tables(result.tables)
        case Stage.CHAMPION:
            show_champion(result)
        case _:
            show(TITLES.get(request.stage, request.stage.value).format(named), result)
            if request.stage in TABLES:
                show_tables(result.tables, titled=request.stage is not Stage.LEARNING_CURVE)
            elif len(rows := result.tables.get(request.stage.value, ())) and request.stage is Stage.PREDICTIONS:
                print(table(rows))
    for name, check in outcome.checks.items():
        if not check.passed:
            print(f"{'warning' if check.severity == 'warn' else 'check not passed'}: {name}: {check.reason}")


def _run_for(request: "Request", to: str) -> int:
    """Run a stage for whoever asked; returns the exit code. An error is left as its result, and the log has it too."""
    from med_assets.launch.exchange import Reporter, read_submission
    from med_assets.launch.stage_request import split_name
    from med_assets.settings import Settings

    # Without the key: where it is missing, whoever asked should read so.
    settings = Settings.from_env()
    asked = read_submission(settings, *split_name(to))
    reporter = Reporter(settings, asked)
    try:
        with reporter.reporting(), _sent(reporter):
            try:
                _perform_for(request, reporter)
            except MedAssetsError as error:
                print(f"{request.title}: {error}", file=sys.stderr)
                reporter.fail(error)
                return 1
            except Exception as error:
                print(f"{request.title}: {outline(error)}", file=sys.stderr)
                reporter.fail(error)
                return 1
    except KeyboardInterrupt:
        print(f"{request.title}: stopped; asked for again, it goes on", file=sys.stderr)
        return REQUEUE
    return 0


def _perform_for(request: "Request", reporter: "Reporter") -> None:
    from med_assets.cli.stage_work import perform
    from med_assets.launch.stage_request import Basis

    asked, ws = reporter.asked, workspace()
    if asked.request != request:
        raise ConfigurationError(f"expected the stage that was asked for, {asked.request.title}, got {request.title}")
    asked.basis.demand(Basis.of(ws, request.program))
    # Of two processes of one submission, such as one on a node that was taken for dead, one at a time.
    with alone(ws, f"run-{asked.id}"), silence(), _shown_progress(reporter):
        if not reporter.done():
            # A process elsewhere has no launcher but its own machine.
            own = launch(ws, "local" if asked.through_bucket else None)
            tell = {"epoch": reporter.epoch} if request.stage is Stage.TRAIN else {}
            reporter.succeed(perform(ws, request, partial(own, **tell)))


@contextmanager
def _shown_progress(reporter: "Reporter") -> Iterator[None]:
    """Progress as a line of the log every so many seconds, and with each heartbeat."""
    every_s = progress.LINE_EVERY_S
    line = progress.lines(lambda text: print(text, file=sys.stderr, flush=True), every_s)

    def follow(found: progress.Progress) -> None:
        reporter.progress(f"{found.doing}: {found}")
        line(found)

    with progress.followed_by(follow):
        yield


class _Copied(TextIOBase):
    """A stream whose text goes to a reporter too."""

    def __init__(self, stream: TextIO, reporter: "Reporter") -> None:
        self._stream, self._reporter = stream, reporter

    def write(self, text: str) -> int:
        self._reporter.log(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def _sent(reporter: "Reporter") -> Iterator[None]:
    """What is printed and logged in the block is sent to whoever asked."""
    if not reporter.asked.through_bucket:
        yield
        return
    err = _Copied(sys.stderr, reporter)
    handler = logging.StreamHandler(err)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    before = root.handlers[:]
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(err))
        stack.enter_context(redirect_stdout(_Copied(sys.stdout, reporter)))
        root.handlers[:] = [handler]
        try:
            yield
        finally:
            root.handlers[:] = before
