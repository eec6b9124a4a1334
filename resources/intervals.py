"""`python -m resources.intervals MODULE ...`: a process of `dagster dev` that asks less often whether the definitions are others.

Dagster has constants for it and no settings. Its web server and its daemon ask the code server each second for its id, by a new connection
through a third process; and the daemon reads all definitions again each minute although that id tells it when to, which takes
0.5 s of CPU in three processes for the jobs of five programs.
"""

import runpy
import sys
from types import ModuleType

from dagster._daemon import controller
from dagster._grpc import server_watcher

from resources import sqlite

WEBSERVER, DAEMON = "dagster_webserver", "dagster._daemon"
"""Modules of the processes that this is for."""

ASK_S = 5.0
"""Seconds between two questions for the id of the code server: after so many a daemon knows that definitions were reloaded."""

RELOAD_S = 3600.0
"""Seconds after which the daemon reads the definitions in any case."""


def _lengthen(module: ModuleType, name: str, seconds: float) -> float:
    """Make a constant of Dagster so many seconds; returns by how many more."""
    more: float = seconds - getattr(module, name)
    setattr(module, name, seconds)
    return more


def lengthen(process: str) -> None:
    """Lengthen the intervals of a process whose module this is."""
    _lengthen(server_watcher, "WATCH_INTERVAL", ASK_S)
    if process == DAEMON:
        more_s = _lengthen(controller, "RELOAD_WORKSPACE_INTERVAL", RELOAD_S)
        # How old definitions may be that can't be read again: as much older.
        tolerance_s = controller.DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE + more_s
        _lengthen(controller, "DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE", tolerance_s)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    lengthen(sys.argv[0])
    sqlite.keep_engines()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
