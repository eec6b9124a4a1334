"""The resources of assets and sensors: the workspace and the launcher of trainings."""

from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource

__all__ = ["LauncherResource", "WorkspaceResource", "build"]


def build() -> dict[str, object]:
    """Resources by the name under which assets and sensors ask for them."""
    return {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
