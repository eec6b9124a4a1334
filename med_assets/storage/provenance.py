"""Which code and which libraries made a result."""

import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from med_assets.storage.artifacts import ArtifactStore
from med_assets.storage.files import read_json

DIRTY = "+dirty"
"""What a git state ends with when the working tree differed from the commit."""

GIT_STATE = "git_state"
"""File beside the package that holds the git state in an image, which has no checkout."""

CODE_FOLDERS = ("med_assets/", "conf/")
"""Folders in which a file that git does not know changes results as one that differs does."""

LIBRARIES = ("torch", "monai", "lightning", "numpy", "pydicom", "pymedphys", "dagster")


@cache
def git_state() -> str:
    """Commit of the working tree, with `+dirty` when it is not all that results come from; outside a git checkout what the
    image was built from, and `unknown` where nothing says that.

    It is dirty when tracked files differ, and when code or configuration lies there that was never added.
    """
    return state_of(Path(__file__).resolve().parents[2])


def state_of(root: Path) -> str:
    """The git state of a checkout, as of now."""
    try:
        commit, status = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=normal"))
        )
    except (OSError, subprocess.CalledProcessError):
        stated = root / GIT_STATE
        return stated.read_text(encoding="utf-8").strip() if stated.is_file() else "unknown"
    changed = [line for line in status.splitlines() if not line.startswith("??") or line[3:].startswith(CODE_FOLDERS)]
    return commit.strip() + (DIRTY if changed else "")


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


@cache
def packages() -> dict[str, str]:
    """Versions of all installed packages by name, sorted; names are lower case."""
    found = [_header(one) for one in metadata.distributions()]
    return dict(sorted((each["Name"].lower(), each["Version"]) for each in found if each.keys() >= {"Name", "Version"}))


def _header(distribution: metadata.Distribution) -> dict[str, str]:
    """Name and version of a distribution, without parsing its description: of hundreds that takes longer than the start of a small job."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    lines = [line.partition(": ") for line in text.partition("\n\n")[0].splitlines()]
    return {field: value.strip() for field, _, value in lines if field in ("Name", "Version")}


def provenance() -> dict[str, Any]:
    """Code and library versions as one JSON-able value."""
    return {"git_commit": git_state(), "versions": versions()}


@dataclass(frozen=True)
class UsedCase:
    """A case that a checkpoint learned from or was selected on, with its split at that time."""

    case_id: str
    patient_id: str
    split: str


def cases_used_by(store: ArtifactStore, checkpoint: str) -> list[UsedCase]:
    """The cases of a stored checkpoint that it learned from or was selected on. Raises ArtifactMissing.

    Cases that its experiment leaves out are in its record too, so that they count as known when training is scheduled. In a record
    without that mark all were used.
    """
    record = read_json(store.fetch(checkpoint) / "provenance.json")
    return [
        UsedCase(case["case_id"], case["patient_id"], case["split"])
        for case in record["cases"]
        if case.get("used", True)
    ]
