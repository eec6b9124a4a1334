"""`python -m resources.daemon run`: Dagster's daemon, which reads the definitions again when they are others, instead of every minute too.

It asks the code server each second whether that was reloaded, as the web server does, and then reads them at once. To read all jobs of
five programs again each minute takes 0.5 s of CPU in three processes, which was more than all ticks of the sensors.
"""

from dagster._daemon import controller
from dagster._daemon.cli import main

RELOAD_S = 3600.0
"""Seconds after which the definitions are read again in any case."""


def read_when_changed() -> None:
    """Make the daemon of this process read the definitions each RELOAD_S. Dagster has constants for it and no setting."""
    longer = RELOAD_S - controller.RELOAD_WORKSPACE_INTERVAL
    values = vars(controller)
    values["RELOAD_WORKSPACE_INTERVAL"] = RELOAD_S
    # How old they may be when to read them fails: as much later.
    values["DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE"] = controller.DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE + longer


if __name__ == "__main__":
    read_when_changed()
    main()
