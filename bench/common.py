"""What the benchmarks share: a clock, a workspace of their own, a table, and the machine they ran on."""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from med_assets.settings import Workspace

KEY = "bench-key-for-synthetic-data-only"
"""Pseudonym key of all benchmarks."""


def workspace(home: Path) -> Workspace:
    """A demo workspace under `home`, for synthetic cases."""
    return Workspace.from_env(
        {
            "MED_ASSETS_HOME": str(home),
            "MED_ASSETS_PSEUDONYM_KEY": KEY,
            "MED_ASSETS_PURPOSE": "demo",
            "MED_ASSETS_PROFILE": "demo",
            "MED_ASSETS_SETTLE_S": "0",
        }
    )


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record under `name` how many seconds the block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table under a title that names the machine."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n## {title}\n\n{machine}\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
