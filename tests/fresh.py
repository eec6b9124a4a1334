"""Run Python on a copy of the source, in a process that has imported libraries and nothing of this package.

`python -m tests.fresh FOLDER CODE WORD...` is `python -c CODE WORD...` in that folder. Forked from a parent that has imported `LIBRARIES`
(`med_assets.storage.preloaded`), it costs no import but those of the copy.
"""

import os
import sys
from pathlib import Path

LIBRARIES = (
    "numpy", "scipy.ndimage", "pandas", "pyarrow.parquet", "duckdb", "pydantic", "yaml", "click", "hydra", "omegaconf",
    "pydicom", "highdicom", "skimage", "matplotlib.figure", "jinja2", "great_expectations", "dagster",
)  # fmt: skip
"""What the code of most copies imports."""

OURS = frozenset({"med_assets", "assets", "resources", "sensors", "definitions", "tests"})


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
