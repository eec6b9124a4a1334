"""CPU that `make ui` uses with nothing to do, by process, as percent of one core.

`python -m bench.idle [SECONDS]`. Two cases of one program are taken in first, and all programs of the graph are watched.
"""

import sys
import time
from pathlib import Path

import psutil

from bench.common import show
from bench.latency import PROGRAM, running
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from sensors import runs

QUIET_S = 60.0
"""Seconds without a run before the measurement begins."""


def name_of(process: psutil.Process) -> str:
    """What a process of `dagster dev` is: web page, daemon, code server, or the program and module that it was started with, without folders."""
    words = process.cmdline()
    for word, name in (
        ("webserver", "web page"),
        ("_daemon", "daemon"),
        ("grpc", "code server"),
        ("dev", "dagster dev"),
    ):
        if any(word in part for part in words[1:]):
            return name
    return " ".join(Path(word).name for word in words[:4])[:60]


def cpu_s(server: psutil.Process) -> dict[int, tuple[str, float]]:
    """CPU seconds of a server and all processes below it, by pid."""
    found = {}
    for process in (server, *server.children(recursive=True)):
        try:
            times = process.cpu_times()
            found[process.pid] = name_of(process), times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return found


def main() -> None:
    """A row per process."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    with running() as (ws, instance, server):
        landing = batches.landing_folder(ws, PROGRAM)
        for seed in (1, 2):
            write_case(landing / f"case-{seed}", seed)
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET_S or not instance.get_runs_count():
            if runs.unfinished(instance):
                quiet_since = time.monotonic()
            time.sleep(1)
        started, before = time.monotonic(), cpu_s(psutil.Process(server))
        time.sleep(seconds)
        after, wall = cpu_s(psutil.Process(server)), time.monotonic() - started
        n_runs = instance.get_runs_count()
        rows = [
            (name, pid, 100 * (spent - before.get(pid, ("", 0.0))[1]) / wall) for pid, (name, spent) in after.items()
        ]
        show(
            f"Idle `make ui` over {wall:.0f} s, after {n_runs} runs",
            ("process", "pid", "% of a core"),
            [*rows, ("all", "", sum(row[2] for row in rows))],
        )


if __name__ == "__main__":
    main()
