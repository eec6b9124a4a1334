"""A thing that a home holds, and why it is kept."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

DAY_S = 86400.0

REMOVABLE = ("analysis", "checkpoint", "prediction", "prepared", "score", "thresholds")
"""Kinds of artifacts that are removed where nothing current refers to them. All but a checkpoint can be made again."""

KEY = re.compile(r"[a-z]+/[A-Za-z0-9][A-Za-z0-9_-]*")
"""What may be the key of an artifact within a text."""


@dataclass(frozen=True)
class Stored:
    """An artifact, a job, a folder of the home or objects of a bucket: size, age, and why it is kept; empty for what nothing refers to."""

    kind: str
    owner: str
    """Program and experiment, as far as they are known."""
    name: str
    bytes: int
    age_days: float
    kept: str
    folder: Path | None = None
    """Where it lies, if that is a folder of this machine."""

    def kept_since(self, why: str) -> Self:
        """The same, kept for a reason."""
        return replace(self, kept=why)


def why_kept(key: str, kept: Collection[str], age_days: float, older_than_days: float) -> str:
    """Why an artifact is kept; empty for one that may go."""
    if key.split("/")[0] not in REMOVABLE:
        return "never removed"
    if key in kept:
        return "in use"
    return "too new" if age_days < older_than_days else ""
