"""The home of data and models, as a Dagster resource.

Everything is read from MED_ASSETS_* variables when a run or tick opens it, never when definitions load: a code location
loads, and `dagster definitions validate` passes, without the pseudonym key. The key is deliberately no configuration
field, since configuration is stored in the event log.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from med_assets.settings import Workspace
from resources import alive


class WorkspaceResource(dg.ConfigurableResource):
    """Landing zone, artifact store and lake of one home."""

    def open(self) -> Workspace:
        """The workspace that the environment describes; raises ConfigurationError that says which variable and why."""
        return Workspace.from_env()

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["WorkspaceResource"]:
        """What Dagster does around a run, or around a tick, which is none: a run gives signs of life."""
        if context.run is None or context.instance is None:
            yield self
            return
        with alive.beating(context.instance, context.run.run_id):
            yield self
