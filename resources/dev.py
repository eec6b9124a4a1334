"""`python -m resources.dev`: `dagster dev`, whose web server and daemon are started by `resources.intervals`. It takes the options of `dagster dev`."""

import sys
from collections.abc import Sequence
from subprocess import Popen
from typing import Any

from dagster._cli import dev
from dagster_shared.ipc import open_ipc_subprocess

from resources.intervals import DAEMON, WEBSERVER


def start(command: Sequence[str], **named: Any) -> "Popen[bytes]":
    """Start a process of `dagster dev`, which has no setting for the program of either."""
    python, *words = command
    if words[0] == "-m" and words[1] in (WEBSERVER, DAEMON):
        words.insert(1, "resources.intervals")
    return open_ipc_subprocess([python, *words], **named)


if __name__ == "__main__":
    vars(dev)["open_ipc_subprocess"] = start
    sys.exit(dev.dev_command(auto_envvar_prefix="DAGSTER_CLI_DEV"))
