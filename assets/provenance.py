"""Where a number comes from: the state of the code that made it."""

import platform
import subprocess
from functools import cache
from pathlib import Path

import med_assets

ROOT = Path(__file__).resolve().parent.parent


@cache
def git_state() -> str:
    """Commit of the running code, with `+changes` when files differ from it, or `unknown` outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def provenance(code_version: str, data_version: str) -> dict[str, str]:
    """What every materialization says of its origin."""
    return {
        "provenance/code_version": code_version,
        "provenance/data_version": data_version,
        "provenance/git": git_state(),
        "provenance/med_assets": med_assets.__version__,
        "provenance/python": platform.python_version(),
    }
