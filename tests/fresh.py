"""Run Python on a copy of the source, in a process that has imported libraries and has nothing of this package.

`python -m tests.fresh FOLDER CODE WORD...` is `python -c CODE WORD...` in that folder. Forked from a parent that has imported `LIBRARIES`
(`med_assets.storage.preloaded`), it costs no import but those of the copy.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import IO

from med_assets.launch.jobs import PRELOADED
from med_assets.storage import preloaded

LIBRARIES = (
    "numpy", "scipy.ndimage", "pandas", "pyarrow.parquet", "duckdb", "pydantic", "yaml", "click", "hydra", "omegaconf",
    "pydicom", "highdicom", "skimage", "matplotlib.figure", "jinja2", "great_expectations", "dagster", "alembic.command",
    *PRELOADED["med_assets.training"],
)  # fmt: skip
"""What the code of most copies imports, and their trainings, and the processes of pytest-xdist (`tests.worker`); modules of this package bring libraries, and are forgotten."""

OURS = frozenset({"med_assets", "assets", "resources", "sensors", "definitions", "tests"})


def start(
    folder: Path,
    code: str,
    *words: str,
    stdout: int = 1,
    stderr: int = 2,
    keep: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> preloaded.Process:
    """Start Python code in a copy of the source, or in the repository, with what the tests were started with and a test sets for Dagster and us."""
    from tests.conftest import GIVEN

    own = {
        name: text
        for name, text in os.environ.items()
        if name in GIVEN or name.startswith(preloaded.NOT_READ_BY_IMPORTS)
    }
    command = [sys.executable, "-m", "tests.fresh", str(folder), code, *words]
    return preloaded.start(command, own | dict(environment), stdout, stderr, keep, tied=True)


def run(folder: Path, code: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end, with more variables; `args` are the code and the words."""
    with TemporaryFile() as out, TemporaryFile() as err:
        process = start(folder, code, *words, stdout=out.fileno(), stderr=err.fileno(), environment=more)
        return subprocess.CompletedProcess([code, *words], process.wait(), *(_written(file) for file in (out, err)))


def _written(file: IO[bytes]) -> str:
    """What a process has written to a file that it was given."""
    file.seek(0)
    return file.read().decode()


def main(folder: str, code: str, *words: str) -> None:
    """Forget what was imported from the repository, and run the code as a new process of Python in that folder would."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    repository = Path(__file__).resolve().parents[1]
    sys.path[:] = [folder, *(path for path in sys.path if Path(path).resolve() not in (repository, Path(folder)))]
    sys.path_importer_cache.clear()
    os.environ["PYTHONPATH"] = folder
    os.chdir(folder)
    sys.argv = ["-c", *words]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(*sys.argv[1:])
