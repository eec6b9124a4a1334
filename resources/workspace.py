"""The home of data and models, as a Dagster resource.

Everything is read from MED_ASSETS_* variables when a run or tick opens it, never when definitions load: a code location
loads, and `dagster definitions validate` passes, without the pseudonym key. The key is deliberately no configuration
field, since configuration is stored in the event log.
"""

import dagster as dg

from med_assets.settings import Workspace


class WorkspaceResource(dg.ConfigurableResource):
    """Landing zone, artifact store and lake of one home."""

    def open(self) -> Workspace:
        """The workspace that the environment describes; raises ConfigurationError that says which variable and why."""
        return Workspace.from_env()
