"""Make the home of a released version: `python PATH/make.py VERSION.zip`, in a checkout of the commit that released it.

Two phantoms are taken in, a model is trained, evaluated and offered for promotion, by the code of that checkout. Landing zone,
scratch, pictures and `catalog.duckdb` are left out.
"""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

LEFT_OUT = ("tmp/", "landing/", "store/tmp/")
SEEDS = (2, 8)
"""Phantoms whose patients are in training and in validation under the key of the tests."""


def make(home: Path) -> None:
    """Run the stages over the phantoms."""
    from tests.conftest import settings_of

    os.environ.update(settings_of(home))
    from med_assets.cli import stages
    from med_assets.settings import Workspace
    from tests.med_assets.stages.builders import P, drop, ingest

    ws = Workspace.from_env()
    for seed in SEEDS:
        drop(ws, seed)
    ingest(ws)
    stages.train(ws, P, "mean_dose")
    stages.evaluate(ws, P, "mean_dose")
    stages.leaderboard(ws, P)
    stages.champion(ws, P)


def pack(home: Path, archive: Path) -> None:
    """Write the files of a home, with the same time each."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(home.rglob("*")):
            name = path.relative_to(home).as_posix()
            if path.is_file() and not name.startswith(LEFT_OUT) and path.suffix not in (".duckdb", ".png"):
                entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
                entry.external_attr = 0o600 << 16
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_LZMA)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch) / "home")
        pack(Path(scratch) / "home", Path(sys.argv[1]))
