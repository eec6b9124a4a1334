"""Weights that others released: files that a person puts in place once, known by their content.

`conf/<program>/_program.yaml` names them under `released:`, each with the file's place under `MED_ASSETS_HOME/weights` and
where to get it. They are never downloaded here, and never replaced by random ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments import policies
from med_assets.storage.files import file_sha256

if TYPE_CHECKING:
    from med_assets.settings import Settings

FOLDER = "weights"


@dataclass(frozen=True)
class Released:
    """A released file that is in place: `key` is part of what a checkpoint is made of."""

    path: Path
    key: str


def released(ws: "Settings", program_name: str, name: str) -> Released:
    """Released weights by name. Raises ConfigurationError, saying where to get them and where to put them,
    CheckpointMismatch for a folder of that name."""
    known = policies.of(program_name).released
    if name not in known:
        raise ConfigurationError(
            f"expected released weights of {program_name} among {sorted(known)}, got {name!r}; "
            f"add it to conf/{program_name}/_program.yaml"
        )
    path = ws.home / FOLDER / known[name].file
    if path.is_dir():
        raise CheckpointMismatch(
            f"expected the released weights {name!r} of {program_name} at {path}, got a folder of that name; put the file itself there"
        )
    if not path.is_file():
        raise ConfigurationError(
            f"expected the released weights {name!r} of {program_name} at {path}, found nothing there. Get them from "
            f"{known[name].source}, and put the file there; without them choose an experiment that needs none, as one with "
            "initial=random does"
        )
    found = file_sha256(path)
    if known[name].sha256 not in (None, found):
        raise ConfigurationError(
            f"expected {path} to be the release {name!r} with SHA-256 {known[name].sha256}, got {found}; get it again from "
            f"{known[name].source}"
        )
    return Released(path, f"released/{name}-{found[:16]}")
