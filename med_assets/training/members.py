"""The checkpoint of an ensemble: a folder with `members.json` in place of weights, which names checkpoints of the same store."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from med_assets.storage.files import read_json, write_json

MEMBERS = "members.json"
"""File of a checkpoint that is an ensemble: its members."""


@dataclass(frozen=True)
class Member:
    """A checkpoint whose outputs are averaged with those of others."""

    experiment: str
    checkpoint: str
    weights_sha256: str


def members_of(checkpoint: Path) -> list[Member]:
    """The members of the ensemble in a folder; none of a checkpoint with weights of its own."""
    path = checkpoint / MEMBERS
    return [Member(**row) for row in read_json(path)] if path.is_file() else []


def write_members(checkpoint: Path, members: Sequence[Member]) -> None:
    """Write them into the folder of an ensemble."""
    write_json(checkpoint / MEMBERS, [asdict(member) for member in members])
