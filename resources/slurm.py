"""Trainings on a Slurm cluster, and the choice between it and this machine.

dagster-slurm (1.22, Apache-2.0, marked alpha) was read first and not taken. It reaches the cluster over SSH and ships an
environment there, which a shared file system makes needless; it finds a job again by tags of earlier runs, not by what goes
into the training, so the command line or a later run would submit a second one; and it does not requeue before the limit.
"""

from pathlib import Path

from pydantic import Field

from med_assets import slurm
from med_assets.jobs import launch_of
from med_assets.settings import Workspace
from resources.launcher import Launcher, LocalLauncher, Training, running


class SlurmLauncher(Launcher):
    """Runs the same command as a Slurm job, with what the experiment's `launch` section asks for."""

    ask_s: float = Field(default=10.0, ge=0, description="least seconds between two questions to Slurm about one job")

    def submit(self, job: Path, env: dict[str, str]) -> Training:
        """Submit the job unless Slurm has it already. Raises LaunchFailed when Slurm does not take it."""
        return slurm.submit(job, self.command(job), env, self.ask_s)


class ChosenLauncher(Launcher):
    """Leaves a training where it runs already; else its experiment chooses, else MED_ASSETS_LAUNCHER."""

    def submit(self, job: Path, env: dict[str, str]) -> Training:
        """Start or find the job where it belongs."""
        return self.of(job).submit(job, env)

    def of(self, job: Path) -> Launcher:
        """The launcher of a job."""
        if running(job) is not None:
            return LocalLauncher()
        if slurm.recorded(job) and slurm.find(job) is not None:
            return SlurmLauncher()
        name = launch_of(job).launcher or Workspace.configuration().launcher
        return SlurmLauncher() if name == "slurm" else LocalLauncher()
