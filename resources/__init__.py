"""The resources of assets and sensors: the workspace and the launcher of trainings.

Dagster is not imported with this package, so that `python -m resources.ui`, which only starts it, holds none of its own.
"""


def build() -> dict[str, object]:
    """Resources by the name under which assets and sensors ask for them."""
    from resources.launcher import LauncherResource
    from resources.workspace import WorkspaceResource

    return {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
