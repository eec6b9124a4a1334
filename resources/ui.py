"""`python -m resources.ui`: Dagster with web page and daemon, once for each DAGSTER_HOME.

Two daemons on one instance each warn about the other all the time and request the same work twice. So whoever starts Dagster
here holds a lock for as long as it runs; a second start says so in one line and ends.
"""

import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

LOCK = "ui.lock"
"""File of DAGSTER_HOME that the running Dagster holds; it has the process's id."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Become `dagster dev` for the workspace of this folder, or end with status 1 where one runs already."""
    home = os.environ.get("DAGSTER_HOME", "")
    if not home:
        sys.exit("ui: expected DAGSTER_HOME to name the folder of the Dagster instance; `make ui` sets it")
    folder = Path(home)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        sys.exit(
            f"ui: Dagster works on this instance already (process {holder}); open its page, or stop it first: two daemons on one "
            "instance are in each other's way"
        )
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.set_inheritable(lock, True)  # held by what this process becomes; what it starts in turn does not inherit it
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    os.execvp("dagster", ["dagster", "dev", "-w", "workspace.yaml", *chosen])


if __name__ == "__main__":
    main()
