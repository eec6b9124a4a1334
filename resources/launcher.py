"""Run a job, which trains, predicts, or is a whole stage, to its end from a Dagster run: follow it, and show its events in the run.

A job survives the death of the run, the daemon, the code server and the web server, and the next run of the asset follows it
again; one that died itself goes on from what it saved last. See `med_assets.launch`.
"""

import os
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import dagster as dg
from pydantic import Field

from med_assets.cli.stage_work import perform
from med_assets.errors import LaunchFailed, TrainingStopped
from med_assets.launch import jobs, stage_runs
from med_assets.launch.configuration import choose
from med_assets.launch.follow import (
    EpochEnded,
    Event,
    Finished,
    LogLine,
    StateChanged,
    Submitted,
    Unfinished,
    follow,
)
from med_assets.launch.launcher import Handle, Launcher, Phase
from med_assets.launch.stage_request import Request
from med_assets.settings import Settings, Workspace, without_secrets
from med_assets.storage import progress
from med_assets.storage.files import digest
from med_assets.storage.result import StageOutcome
from resources.json_log import QUOTED

MAX_RETRIES = 2
"""How often a job that was killed is started again, from what it saved last, before a person must act."""
TRAINING_TAG = "med_assets/training"
"""Tag of a run that says what it follows: a process or a Slurm job."""
STAGE_JOB_TAG = "med_assets/stage_job"
"""The same of a stage that runs as a job."""


class LauncherResource(dg.ConfigurableResource):
    """Runs jobs with the launcher that the experiment of each names, else with that of MED_ASSETS_LAUNCHER."""

    launcher: str | None = Field(default=None, description="launcher of all jobs, whatever experiments name")
    poll_s: float = Field(default=1.0, gt=0, description="seconds between two polls of a running job")

    def command(self, job: Path) -> list[str]:
        """The command that a person would type for the same job."""
        return jobs.command(job)

    def of(self, job: Path) -> Launcher:
        """The launcher of a job."""
        return choose(job, default=Settings.from_env().launcher, asked=self.launcher)

    def run(self, context: dg.AssetExecutionContext, job: Path) -> None:
        """Run a job to its end and show its progress.

        Raises dagster.RetryRequested when the job was killed, dagster.Failure when it ended without a result.
        """
        handle: Handle | None = None
        try:
            launcher = self.of(job)
            env = without_secrets(os.environ)
            with closing(follow(launcher, job, self.command(job), env, self.poll_s)) as events:
                try:
                    for event in events:
                        if isinstance(event, Submitted):
                            handle = event.handle
                        self.show(context, event)
                except BaseException:
                    if handle is not None:
                        _cancel_if_cancelled(context, launcher, handle)
                    raise
        except LaunchFailed as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    def stage(
        self, context: dg.AssetExecutionContext, ws: Workspace, request: Request, read: Mapping[str, str] | None = None
    ) -> StageOutcome:
        """Run a stage where the settings say, by default in this process, and return its outcome.

        `read` is what the asset knows of the version of what it reads. Raises what the stage raises, dagster.RetryRequested when its job
        was killed, dagster.Failure when that ended without a result.
        """
        launcher = stage_runs.launcher_of(ws, request)
        if launcher is None:
            with progress.followed_by(progress.lines(context.log.info, progress.LINE_EVERY_S)):
                return perform(ws, request, partial(self.run, context))
        try:
            return stage_runs.run_stage(
                ws,
                request,
                launcher,
                partial(self.show, context, tag=STAGE_JOB_TAG),
                inputs=_inputs(context, read or {}),
                poll_s=self.poll_s,
                interrupted=partial(_cancel_if_cancelled, context),
            )
        except TrainingStopped as error:
            context.log.warning(str(error))
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=self.poll_s) from error
        except LaunchFailed as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    def show(self, context: dg.AssetExecutionContext, event: Event, tag: str = TRAINING_TAG) -> None:
        """Show one event in the run. Raises what `run` does for a job that ended without a result."""
        match event:
            case Submitted():
                context.log.info(event.message)
                context.instance.add_run_tags(context.run.run_id, {tag: event.handle.title})
            case StateChanged():
                context.log.info(event.state.message)
            case LogLine():
                context.log.info(event.text, extra={QUOTED: True})
            case EpochEnded():
                numbers = event.numbers
                text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if name != "epoch")
                context.log.info(f"epoch {numbers['epoch']:.0f}: {text}")
                metadata = {f"training/{name}": value for name, value in numbers.items()}
                context.log_event(dg.AssetObservation(context.asset_key, metadata=metadata))
            case Finished(state=None):
                context.log.info("this job was finished earlier; its result is taken over")
            case Unfinished() if event.state.phase is Phase.RESUMABLE:
                context.log.warning(f"{event.state.message}; it goes on from what it saved last")
                raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=self.poll_s)
            case Unfinished():
                raise dg.Failure(f"{event.state.message}; the end of its log:\n{event.log}", allow_retries=False)


def _cancel_if_cancelled(context: dg.AssetExecutionContext, launcher: Launcher, handle: Handle) -> None:
    """Cancel the job when a person cancelled the run; when the run merely dies, the job goes on."""
    record = context.instance.get_run_by_id(context.run.run_id)
    if record is not None and record.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
        try:
            launcher.cancel(handle)
        except LaunchFailed as error:
            context.log.error(f"{handle.title} goes on: {error}")


def _inputs(context: dg.AssetExecutionContext, read: Mapping[str, str]) -> str:
    """Version of what an asset reads, as Dagster knows it: which materialization of each upstream asset is the last."""
    upstream = sorted(dep.asset_key for dep in context.assets_def.get_asset_spec().deps)
    last = {key.to_user_string(): context.instance.get_latest_materialization_event(key) for key in upstream}
    runs = {name: [event.run_id, event.timestamp] if event else None for name, event in last.items()}
    return digest(runs, dict(read))
