"""Unpacks zip and tar files that strangers sent, or refuses them whole: nothing is left behind by a refused archive."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from med_assets.errors import ArchiveRejected

CHUNK_BYTES = 1 << 20

MAX_BYTES = 32 << 30
"""Unpacked bytes of an archive unless the caller says otherwise: some hundred cases of CT, structures and dose."""

MAX_FILES = 200_000
"""Files of an archive unless the caller says otherwise: the slices of some thousand cases."""

MAX_RATIO = 200.0
"""Unpacked bytes per byte of archive unless the caller says otherwise: real studies stay under 50, bombs pass 1000."""

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")


def is_archive(path: Path) -> bool:
    """Say by content whether a file is a zip, or a tar that may be compressed with gzip, xz or bzip2."""
    if path.is_symlink() or not path.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError:
        return False
    if start.startswith(ZIP_STARTS):
        return True
    if start[128:132] == b"DICM":
        return False
    # The first header alone is read, so that neither a long name nor a long comment in it costs anything.
    try:
        with _opened(path, start) as raw:
            tarfile.TarInfo.frombuf(raw.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except (EOFError, OSError, ValueError, tarfile.TarError, lzma.LZMAError, zlib.error):
        return False
    return True


def _opened(path: Path, start: bytes) -> IO[bytes]:
    """The bytes of a tar whose file starts with `start`, decompressed."""
    opener = {b"\x1f\x8b": gzip.open, b"\xfd7": lzma.open, b"BZ": bz2.open}.get(start[:2], open)
    opened: IO[bytes] = opener(path, "rb")  # type: ignore[operator]  # each opener has its own signature
    return opened


def expand(
    archive: Path,
    into: Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
    max_ratio: float = MAX_RATIO,
) -> None:
    """Unpack `archive` as the new folder `into`, which must be absent or empty and appears only when all is unpacked.

    Its members become files of one folder, numbered in their order: names in an archive carry no meaning for intake, may be
    longer or deeper than the system allows, and may identify a patient. An archive within an archive stays packed.
    At most `max_bytes` in at most `max_files` files, and at most `max_ratio` times the archive's own bytes, counted
    as they are unpacked and not as declared. Raises `ArchiveRejected`: "archive_traversal" (a name outside the
    folder), "archive_link", "archive_device", "archive_encrypted", "archive_too_large",
    "archive_too_many_files", "archive_corrupt", "not_archive".
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=into.parent, prefix=".expand-"))
    try:
        with archive.open("rb") as stream:
            start = stream.read(8)
        budget = _Budget(temporary, max_bytes, max_files, max_ratio, archive.stat().st_size)
        try:
            if start.startswith(ZIP_STARTS):
                _expand_zip(archive, budget)
            else:
                _expand_tar(archive, start, budget)
        except ArchiveRejected:
            raise
        except Exception as error:  # the readers raise what they like, and quote names of members
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
                raise  # the disk's; those two are of places before the start or beyond the end of any file
            if budget.files == 0 and isinstance(error, tarfile.ReadError):
                raise ArchiveRejected("not_archive", "Expected a zip or tar file; got something else.") from None
            raise _corrupt(error) from None
        if budget.files == 0:
            raise ArchiveRejected("not_archive", "Expected an archive with files in it; got none. Pack it again.")
        temporary.chmod(0o700)
        temporary.rename(into)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _Budget:
    folder: Path
    max_bytes: int
    max_files: int
    max_ratio: float
    archive_bytes: int
    used_bytes: int = 0
    files: int = 0

    def spend(self, count: int) -> None:
        self.used_bytes += count
        if self.used_bytes > self.max_bytes:
            raise ArchiveRejected(
                "archive_too_large",
                f"Expected at most {self.max_bytes} unpacked bytes; there are more. Split the archive.",
            )
        if self.used_bytes > self.max_ratio * self.archive_bytes:
            raise ArchiveRejected(
                "archive_too_large",
                f"Expected at most {self.max_ratio:g} times the archive's bytes; it unpacks to more, as a bomb does. "
                "Send it less compressed.",
            )

    def write(self, source: IO[bytes], *, metered: bool) -> None:
        """Copy `source` to the next numbered file; `metered` where its bytes are not counted elsewhere."""
        self.files += 1
        if self.files > self.max_files:
            raise ArchiveRejected(
                "archive_too_many_files", f"Expected at most {self.max_files} files; there are more. Split the archive."
            )
        with (self.folder / f"{self.files - 1:06d}").open("xb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                if metered:
                    self.spend(len(chunk))
                sink.write(chunk)


class _Metered:
    """A decompressed stream that pays for each byte read, so that headers of a tar can't be bombs either."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._budget.spend(len(data))
        return data


def _expand_zip(archive: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _require_plain(stat.S_IFMT(member.external_attr >> 16), member.is_dir())
            if member.flag_bits & 1:
                raise ArchiveRejected("archive_encrypted", "Expected a zip without password. Pack it without.")
            _require_inside(member.filename)
            if not member.is_dir():
                with opened.open(member) as source:
                    budget.write(source, metered=True)


def _expand_tar(archive: Path, start: bytes, budget: _Budget) -> None:
    # _Metered is the readable part of a file, which is all that a stream needs.
    with _opened(archive, start) as raw, tarfile.open(fileobj=_Metered(raw, budget), mode="r|") as opened:  # type: ignore[call-overload]
        for member in opened:
            kind = stat.S_IFLNK if member.issym() or member.islnk() else 0
            kind = kind or (0 if member.isreg() or member.isdir() else stat.S_IFCHR)
            _require_plain(kind, member.isdir())
            _require_inside(member.name)
            if source := opened.extractfile(member):
                budget.write(source, metered=member.issparse())  # holes of a sparse file are not in the archive
            opened.members = []  # a stream never goes back, and would keep the header of each member
        while raw.read(CHUNK_BYTES):  # a cut or damaged end shows only when it is read
            pass


def _require_plain(kind: int, is_folder: bool) -> None:
    if kind == stat.S_IFLNK:
        raise ArchiveRejected(
            "archive_link", "Expected plain files and folders; there is a link. Pack files themselves."
        )
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
        raise ArchiveRejected("archive_device", "Expected plain files and folders; there is a device, pipe or socket.")


def _require_inside(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or re.match(r"[A-Za-z]:", name) or not name:
        raise ArchiveRejected(
            "archive_traversal", "Expected names inside the archive's own folder; one points outside. Pack it again."
        )


def _corrupt(error: Exception) -> ArchiveRejected:
    return ArchiveRejected(
        "archive_corrupt",
        f"Expected a whole, readable archive; reading failed ({type(error).__name__}). Send it again.",
    )
