"""The tables of a home of one machine, copied to a bucket that has none: all objects first, then one commit that names them."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.storage import names
from med_assets.storage.lake import SUFFIX
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.log import side_by_side
from med_assets.storage.s3.table_state import Part
from med_assets.storage.s3.waiting import Planned


@dataclass(frozen=True)
class Copied:
    """What is copied, or would be: partitions, their bytes, and how many of them the bucket had already."""

    n: int
    bytes: int
    n_there: int


def share_tables(tables: S3Lake, root: Path, *, dry_run: bool) -> Copied:
    """Copy the tables in a folder to a bucket; nobody sees any of them before all are there.

    Objects that an earlier try left are not written again. Nothing is done where the bucket has these tables already. Raises
    ConfigurationError where it has others.
    """
    found = {(table, partition): path for table, partition, path in _partitions(root)}
    parts = {which: _part(path) for which, path in found.items()}
    state = tables.newest()
    if state.number:
        if any(not _is(state.part(*which), part) for which, part in parts.items()):
            raise ConfigurationError(
                f"expected no tables at {tables.location}, got those of {state.number} commits, which are others; nothing is mixed: take "
                "another prefix, or go on with the tables that are there and leave those of this home"
            )
        return Copied(len(parts), 0, len(parts))
    there = side_by_side(lambda which: tables.has_object(*which, parts[which]), parts)
    fresh = [which for which, is_there in zip(parts, there, strict=True) if not is_there]
    copied = Copied(len(parts), sum(parts[which].bytes for which in fresh), len(parts) - len(fresh))
    if dry_run or not parts:
        return copied
    side_by_side(lambda which: tables.write_object(*which, parts[which], found[which].read_bytes()), fresh)
    tables.adopt([Planned(*which, part, (None,)) for which, part in parts.items()])
    return copied


def _partitions(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Table, partition and file of all that a folder of tables holds, whether or not a program is in use."""
    for folder, _, files in sorted(os.walk(root)):
        for name in sorted(files):
            table, _, partition = (Path(folder).relative_to(root) / name).as_posix().partition("/")
            if (
                name.endswith(SUFFIX)
                and names.TABLE.fits(table)
                and names.PARTITION.fits(partition.removesuffix(SUFFIX))
            ):
                yield table, partition.removesuffix(SUFFIX), Path(folder) / name


def _part(path: Path) -> Part:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return Part(sha256, sha256[-8:], len(content), ())  # the same name at every try, so that it goes on


def _is(there: Part | None, part: Part) -> bool:
    return there is not None and there.sha256 == part.sha256
