"""The parts of the work on an entry of the landing zone, of which several processes may take one at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance, Rejection

CASES, FILES, MEMBERS = "cases", "files", "members"
"""Kinds of parts of an entry: a case each, or files to read the headers of, which may be archives, or were in one."""

FILES_PER_PART = 100
"""Files whose headers are read as one part of an entry."""

HEADER_S, FILE_S, S_PER_BYTE = 1e-3, 3e-3, 2e-8
"""About what it takes to read the header of a file, and to read one as part of a case, where its bytes count too."""


@dataclass(frozen=True)
class Part:
    """A part of the work on an entry, which takes about `cost_s`: files to read the headers of, or a case.

    The key of a case is the same for the same files in each attempt. `place` is where its files lie among those of the entry: which
    process reads their headers goes by that, and it is to work on the case too.
    """

    key: str
    cost_s: float
    place: int = 0


Orders = Callable[[str, Sequence[Part]], Iterator[int]]
"""Numbers of parts of a kind that are to be worked on here; that it ends says that the others have been, by other processes."""


Header: TypeAlias = "Instance | Rejection | None"
"""What a file is by its header; None is an archive."""


def header_row(header: Header) -> dict[str, Any] | list[str] | None:
    """A header as JSON has it."""
    from med_assets.dicom.discover import Instance

    if isinstance(header, Instance):
        return header.row()
    return None if header is None else [header.code, header.message, str(header.path)]


def header_of(row: dict[str, Any] | list[str] | None) -> Header:
    """The header whose `header_row` this is."""
    from med_assets.dicom.discover import Instance, Rejection

    if isinstance(row, list):
        code, message, path = row
        return Rejection(code, message, Path(path))
    return None if row is None else Instance.of(row)


def size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # reading it gives the reason
        return 0


def all_parts(kind: str, parts: Sequence[Part]) -> Iterator[int]:
    return iter(range(len(parts)))
