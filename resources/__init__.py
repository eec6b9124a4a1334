"""What the assets and sensors reach the world with: the workspace and the launcher of trainings."""

from resources.launcher import Launcher, LocalLauncher
from resources.slurm import ChosenLauncher, SlurmLauncher
from resources.workspace import WorkspaceResource

__all__ = ["ChosenLauncher", "Launcher", "LocalLauncher", "SlurmLauncher", "WorkspaceResource", "build"]


def build() -> dict[str, object]:
    """Resources by the name under which assets and sensors ask for them."""
    return {"workspace": WorkspaceResource(), "launcher": ChosenLauncher()}
