"""Phantoms of the programs, written once for all processes of the tests: a chest takes longer to draw than to take in."""

import os
import shutil
from pathlib import Path
from uuid import uuid4

from med_assets import program

SHARED = "PYTEST_SHARED"
"""Environment variable with the folder that the processes of the tests share while they run."""


OF_ONE_SEED = frozenset({"breast_us", "lumbar_mr", "lung_ct", "rt_dose"})
"""Programs whose phantoms of several seeds are those of each, so that each is written once."""


def write_phantoms(name: str, folder: Path, n: int, seed: int) -> None:
    """Write phantoms of a program, as its `write_phantoms` does; the files are the caller's own."""
    if (shared := os.environ.get(SHARED)) is None:
        program.get(name).write_phantoms(folder, n, seed)
    elif name in OF_ONE_SEED:
        for number in range(seed, seed + n):
            _copy(name, Path(shared) / f"{name}-{number}", folder, 1, number)
    else:
        _copy(name, Path(shared) / f"{name}-{n}-{seed}", folder, n, seed)


def _copy(name: str, made: Path, folder: Path, n: int, seed: int) -> None:
    """Copy phantoms into a folder, from where they are once they were written."""
    if not made.exists():
        mine = made.with_name(f"{made.name}-{uuid4().hex}")
        program.get(name).write_phantoms(mine, n, seed)
        try:
            mine.rename(made)
        except OSError:  # another process was quicker; its files are the same
            shutil.rmtree(mine)
    shutil.copytree(made, folder, dirs_exist_ok=True)
