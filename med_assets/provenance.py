"""Which code and which libraries made a result."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "monai", "lightning", "numpy", "pydicom", "pymedphys", "dagster")


@cache
def git_state() -> str:
    """Commit of the working tree, with `+dirty` when tracked files differ; `unknown` outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+dirty" if dirty.strip() else "")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result can depend on, read without importing them."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Code and library versions as one JSON-able value."""
    return {"git_commit": git_state(), "versions": versions()}
