"""Run a stage of the graph where the settings say: choose its launcher, submit or find it, follow it, and return its outcome.

A stage has an id made of what is asked (`stage_request`), so that whoever asks for the same finds it while it runs. A stage that was
killed is asked for again: all stages reuse what is there. The result of a submission counts for those who asked while it ran and
knew of the same version of what it reads; who asks later gets a new one, since people decide things in between that no id has.

dagster-slurm (1.22) and dagster-k8s's Pipes client (0.29, both Apache-2.0) were read again and not taken. dagster-slurm finds a job again now, by tags of Dagster's
runs; it still reaches a cluster over SSH, ships an environment, and reads messages from a folder that login and compute nodes share, which
is what a site may lack. The Pipes client starts a bare pod that is followed and deleted by the run that started it: after that died
nobody finds the pod. The command line can ask neither. Here both sides keep what they know in a folder, or in the bucket of the home.
"""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

from med_assets.errors import ConfigurationError, LaunchFailed, TrainingStopped
from med_assets.experiments import policies
from med_assets.launch.configuration import Launch, StageLaunch, configured, running, runs
from med_assets.launch.exchange import SILENT_S, Asker, asking, read_request, remove_old
from med_assets.launch.follow import Event, Finished, LogLine, Unfinished, follow
from med_assets.launch.launcher import Handle, Launcher, Phase
from med_assets.launch.names import IN_PROCESS
from med_assets.launch.stage_request import Asked, Basis, Request
from med_assets.launch.training import experiment
from med_assets.settings import without_secrets
from med_assets.storage.files import HASH_CHARS
from med_assets.storage.locks import alone

if TYPE_CHECKING:
    from med_assets.settings import Settings
    from med_assets.storage.result import StageOutcome

Listen = Callable[[Event], None]
"""What is called with each event of a stage; what it raises ends the following, and the stage goes on."""

Interrupted = Callable[[Launcher, Handle], None]
"""What is called when the following is ended by an exception, such as Ctrl-C: it may cancel the stage."""


def section_of(ws: "Settings", request: Request) -> StageLaunch:
    """Where a stage runs and what it asks for, by `_program.yaml`, and by the `launch` section of the experiment that it is of.

    What the experiment asks for comes first: it knows what its network needs. The launcher that it names is that of its trainings and
    predictions; where jobs of that launcher are whole stages, it is that of the stage. Raises ConfigurationError.
    """
    found = policies.of(request.program).stages.get(request.stage)
    section = found.launch if found else StageLaunch()
    if request.experiment is None:
        return section
    own = experiment(ws, request.program, request.experiment, request.overrides).launch
    unasked = Launch.model_validate({}).model_dump()
    given = {name: value for name, value in own.model_dump().items() if value != unasked.get(name)}
    named = given.pop("launcher", None)
    if section.launcher is None and named is not None and not configured(named, own).shares_folder:
        given["launcher"] = named
    return StageLaunch.model_validate({**section.model_dump(), **given}) if given else section


def launcher_name(ws: "Settings", request: Request, asked: str | None = None) -> str:
    """Name of the launcher of a stage: the one that was asked for, that of its section, or that of the settings; or `in_process`."""
    return asked or section_of(ws, request).launcher or ws.stage_launcher_of(request.program)


def launcher_of(ws: "Settings", request: Request, asked: str | None = None) -> Launcher | None:
    """The launcher of a stage, None where it runs in this process. Raises ConfigurationError."""
    name = launcher_name(ws, request, asked)
    if name == IN_PROCESS:
        return None
    launcher = configured(name, section_of(ws, request))
    if not launcher.shares_folder and ws.store_location is None:
        raise ConfigurationError(
            f"expected MED_ASSETS_STORE=s3://bucket/prefix for stages of the launcher {name}, whose jobs see no folder of this machine, got "
            "none; see docs/stages-as-jobs.md"
        )
    return launcher


def command(asked: Asked, launcher: Launcher) -> list[str]:
    """The command of a submission; where its process sees no folder of this machine, its trainings run in its own."""
    program = [sys.executable, "-m", "med_assets.cli"] if launcher.shares_folder else ["med-assets"]
    return [*program, "run", *asked.request.words(), "--to", asked.name]


def environment(
    ws: "Settings", asked: Asked, launcher: Launcher, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables that a submission is started with."""
    if launcher.passes_secrets:
        return dict(environ)
    if launcher.shares_folder:
        # Absolute: the process starts in a folder of its own.
        landing = {} if ws.landing_location else {"MED_ASSETS_LANDING": str(ws.landing)}
        return {**without_secrets(environ), "MED_ASSETS_HOME": str(ws.home), **landing}
    places = {"MED_ASSETS_STORE": str(ws.store_location)}
    landing = {
        name: text for name, text in ws.options.items() if name.endswith("_LANDING") and text.startswith("s3://")
    }
    return {**asked.basis.settings, **places, **landing}


def run_stage(
    ws: "Settings",
    request: Request,
    launcher: Launcher,
    listen: Listen,
    inputs: str | None = None,
    poll_s: float = 1.0,
    interrupted: Interrupted = lambda launcher, handle: None,
) -> "StageOutcome":
    """Run a stage by a launcher and return its outcome; `listen` gets its events.

    `interrupted` is called when the following ends before the stage. `inputs` is the version of what it reads, as far as known: a submission that runs already and had the same is
    followed, and its outcome is taken. Any other is waited for, and the stage then asked for anew. Raises the error of the stage,
    LaunchFailed when it could not be started or ended without a result, TrainingStopped when it was killed and goes on when it is
    asked for again, ConfigurationError, and what `listen` raises.
    """
    basis = Basis.of(ws, request.program)
    run_id = request.id(ws, basis)
    remove_old(ws, runs)
    fresh = Asked(request, run_id, "", basis, inputs or "", not launcher.shares_folder)
    while True:
        with ExitStack() as held:
            # Of several that ask at once, on any machine, one submits and the others find its job.
            with alone(ws, asking(request)):
                found = _find(ws, request, run_id, launcher)
                if found is None:
                    asked, chosen = replace(fresh, token=secrets.token_hex(HASH_CHARS // 2)), launcher
                    asker = held.enter_context(closing(Asker(ws, asked)))
                    asker.begin()
                    handle = chosen.submit(asker.folder, command(asked, chosen), environment(ws, asked, chosen))
                else:
                    asked, chosen, handle = found
                    asker = held.enter_context(closing(Asker(ws, asked)))
                    asker.adopt()
            ended = _follow(asker, chosen, handle, listen, poll_s, interrupted)
            if handle.started_here or (found is not None and inputs is not None and asked.inputs == inputs):
                return _outcome(asker, ended)
        # What ran was asked for by somebody else, about other inputs: now it is our turn.


def _find(ws: "Settings", request: Request, run_id: str, launcher: Launcher) -> tuple[Asked, Launcher, Handle] | None:
    """The submission of this id that runs, with its launcher and its job; None where there is none."""
    asked, folder = read_request(ws, run_id), ws.runs / run_id
    if asked is None:
        return None
    if folder.is_dir() and (there := running(folder, section_of(ws, request))) is not None:
        return asked, *there
    if asked.through_bucket and not launcher.shares_folder:
        folder.mkdir(parents=True, exist_ok=True)
        if (handle := launcher.find(folder)) is not None:
            return asked, launcher, handle
    return None


def _follow(
    asker: Asker, launcher: Launcher, handle: Handle, listen: Listen, poll_s: float, interrupted: Interrupted
) -> Finished | Unfinished:
    last: Event | None = None
    silent = False

    def refresh(final: bool) -> None:
        nonlocal silent
        asker.refresh(final)
        if (asker.silent_s > SILENT_S) != silent:
            silent = not silent
            heard = f"no heartbeat came for {SILENT_S:g} s" if silent else "its heartbeat is heard again"
            listen(LogLine(f"{asker.asked.request.title}: {heard}"))

    with closing(follow(launcher, asker.folder, (), {}, poll_s, refresh=refresh, submitted=handle)) as events:
        try:
            for last in events:
                if not isinstance(last, Unfinished):
                    listen(last)
        except BaseException:
            interrupted(launcher, handle)
            raise
    assert isinstance(last, Finished | Unfinished)
    return last


def _outcome(asker: Asker, ended: Finished | Unfinished) -> "StageOutcome":
    if isinstance(ended, Unfinished):
        text = f"{ended.state.message}; the end of its log:\n{ended.log}"
        if ended.state.phase is Phase.RESUMABLE:
            raise TrainingStopped(f"{text}\ngive the same command again: what it has done is reused")
        raise LaunchFailed(text)
    try:
        return asker.outcome()
    finally:
        asker.end()
