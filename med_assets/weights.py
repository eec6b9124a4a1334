"""Weights that others released: files that a person puts in place once, known by their content.

`conf/<program>/_program.yaml` names them under `released:`, each with the file's place under `MED_ASSETS_HOME/weights` and
where to get it. They are never downloaded here, and never replaced by random ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, TypeAdapter, ValidationError

from med_assets import program
from med_assets.errors import ConfigurationError
from med_assets.experiments import Settings
from med_assets.files import file_sha256

if TYPE_CHECKING:
    from med_assets.settings import Workspace

FOLDER = "weights"


class Release(Settings):
    """One released file."""

    file: str = Field(description="path under MED_ASSETS_HOME/weights")
    source: str = Field(description="where a person gets it, and under which licence")
    sha256: str | None = Field(default=None, description="64 hex digits of the file, where its publisher tells them")


@dataclass(frozen=True)
class Released:
    """A released file that is in place: `key` is part of what a checkpoint is made of."""

    path: Path
    key: str


def releases(program_name: str) -> dict[str, Release]:
    """All released weights of a program by name. Raises ConfigurationError for an entry that can't be used."""
    try:
        return TypeAdapter(dict[str, Release]).validate_python(program.config(program_name).get("released") or {})
    except ValidationError as error:
        raise ConfigurationError(f"conf/{program_name}/_program.yaml, released: {error}") from error


def released(ws: "Workspace", program_name: str, name: str) -> Released:
    """Released weights by name. Raises ConfigurationError, saying where to get them and where to put them."""
    known = releases(program_name)
    if name not in known:
        raise ConfigurationError(
            f"expected released weights of {program_name} among {sorted(known)}, got {name!r}; "
            f"add it to conf/{program_name}/_program.yaml"
        )
    path = ws.home / FOLDER / known[name].file
    if not path.is_file():
        raise ConfigurationError(
            f"expected the released weights {name!r} of {program_name} at {path}, found nothing there. Get them from "
            f"{known[name].source}, and put the file there; without them choose an experiment with initial=random"
        )
    found = file_sha256(path)
    if known[name].sha256 not in (None, found):
        raise ConfigurationError(
            f"expected {path} to be the release {name!r} with SHA-256 {known[name].sha256}, got {found}; get it again from "
            f"{known[name].source}"
        )
    return Released(path, f"released/{name}-{found[:16]}")
