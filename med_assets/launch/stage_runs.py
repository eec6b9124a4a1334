"""Run a stage of the graph where the settings say: choose its launcher, submit or find it, follow it, and return its outcome.

A stage has an id made of what is asked (`stage_request`), so that whoever asks for the same finds it while it runs. A stage that was
killed is asked for again: all stages reuse what is there. The result of a submission counts for those who asked while it ran and
knew of the same version of what it reads; who asks later gets a new one, since people decide things in between that no id has.

dagster-k8s's Pipes client (dagster-k8s, Apache-2.0) was read again and not taken, nor dagster-slurm (1.22). Both need a Dagster run at one end for as
long as the stage takes: their messages are read by the run that started it, so that a run which died leaves a job that
nobody can follow, and the command line has none. Here both sides keep what they know, in a folder or in the bucket of the home.
"""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from med_assets.errors import ConfigurationError, LaunchFailed, TrainingStopped
from med_assets.experiments import policies
from med_assets.launch.configuration import IN_PROCESS, StageLaunch, configured, running
from med_assets.launch.exchange import SILENT_S, Asker, read_request
from med_assets.launch.follow import Event, Finished, LogLine, Submitted, Unfinished, follow
from med_assets.launch.launcher import Handle, Launcher, Phase
from med_assets.launch.stage_request import Asked, Basis, Request
from med_assets.settings import without_secrets
from med_assets.storage.files import HASH_CHARS

if TYPE_CHECKING:
    from med_assets.settings import Settings
    from med_assets.storage.result import StageOutcome

Listen = Callable[[Event], None]
"""What is called with each event of a stage; what it raises ends the following, and the stage goes on."""

Interrupted = Callable[[Launcher, Handle], None]
"""What is called when the following is ended by an exception, such as Ctrl-C: it may cancel the stage."""


def section_of(request: Request) -> StageLaunch:
    """What `_program.yaml` says about where a stage runs. Raises ConfigurationError."""
    found = policies.of(request.program).stages.get(request.stage)
    return found.launch if found else StageLaunch()


def launcher_name(ws: "Settings", request: Request, asked: str | None = None) -> str:
    """Name of the launcher of a stage: the one that was asked for, that of `_program.yaml`, or that of the settings; or `in_process`."""
    return asked or section_of(request).launcher or ws.stage_launcher_of(request.program)


def launcher_of(ws: "Settings", request: Request, asked: str | None = None) -> Launcher | None:
    """The launcher of a stage, None where it runs in this process. Raises ConfigurationError."""
    name = launcher_name(ws, request, asked)
    if name == IN_PROCESS:
        return None
    launcher = configured(name, section_of(request))
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
    fresh = Asked(request, run_id, "", basis, inputs or "", not launcher.shares_folder)
    folder = ws.runs / run_id
    while True:
        before = read_request(ws, run_id)
        there = None
        if before is not None:
            there = running(folder, section_of(request)) if folder.is_dir() else None
            if there is None and before.through_bucket and not launcher.shares_folder:
                folder.mkdir(parents=True, exist_ok=True)
                there = launcher if launcher.find(folder) is not None else None
        if there is None:
            asked = replace(fresh, token=secrets.token_hex(HASH_CHARS // 2))
            asker, chosen = Asker(ws, asked), launcher
            asker.begin()
        else:
            assert before is not None
            asked, chosen = before, there
            asker = Asker(ws, asked)
            asker.adopt()
        ended = _follow(ws, asker, chosen, listen, poll_s, interrupted)
        if there is None or (inputs is not None and asked.inputs == inputs):
            return _outcome(asker, ended)
        # What ran was asked for by somebody else, about other inputs: now it is our turn.


def _follow(
    ws: "Settings", asker: Asker, launcher: Launcher, listen: Listen, poll_s: float, interrupted: Interrupted
) -> Finished | Unfinished:
    words, env = command(asker.asked, launcher), environment(ws, asker.asked, launcher)
    handle: Handle | None = None
    last: Event | None = None
    silent = False

    def refresh(final: bool) -> None:
        nonlocal silent
        asker.refresh(final)
        if (asker.silent_s > SILENT_S) != silent:
            silent = not silent
            heard = f"no heartbeat came for {SILENT_S:g} s" if silent else "its heartbeat is heard again"
            listen(LogLine(f"{asker.asked.request.title}: {heard}"))

    with closing(follow(launcher, asker.folder, words, env, poll_s, refresh=refresh)) as events:
        try:
            for last in events:
                if isinstance(last, Submitted):
                    handle = last.handle
                if not isinstance(last, Unfinished):
                    listen(last)
        except BaseException:
            if handle is not None:
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
