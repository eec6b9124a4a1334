"""Unpacks zip and tar files that strangers sent, or refuses them whole: nothing is left behind by a refused archive."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from med_assets.errors import ArchiveRejected

CHUNK_BYTES = 1 << 20

MAX_BYTES = 32 << 30
"""Unpacked bytes of an archive unless the caller says otherwise: some hundred cases of CT, structures and dose."""

MAX_FILES = 200_000
"""Files of an archive unless the caller says otherwise: the slices of some thousand cases."""

MAX_RATIO = 200.0
"""Unpacked bytes per byte of archive unless the caller says otherwise: real studies stay under 50, bombs pass 1000."""

MAX_DIRECTORY_BYTES = 32 << 20
"""List of members of a zip, all of which is held in memory: that of some hundred thousand files."""

MAX_HEADER_BYTES = 1 << 20
"""One extended header of a tar, which holds names and times of one member."""

MAX_DICTIONARY_BYTES = 128 << 20
"""Memory of an LZMA decoder for what it may refer back to: `xz -9` asks for half of it."""

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_SPLIT_ZIP_START = b"PK\x07\x08"
_VOLUME_LABEL, _CONTINUED = b"V", b"M"


START_BYTES = 512
"""What is read of a file to see whether it is an archive."""


def _start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(START_BYTES)


def is_archive(path: Path, start_of: Callable[[Path], bytes] = _start) -> bool:
    """Say by content whether a file is a zip, or a tar that may be compressed with gzip, xz or bzip2.

    `start_of` reads the first bytes of a file; it raises OSError.
    """
    if path.is_symlink() or not path.is_file():  # opening a pipe would wait for ever
        return False
    try:
        start = start_of(path)
    except OSError:
        return False
    if start.startswith((*ZIP_STARTS, _SPLIT_ZIP_START)):
        return True
    if start[128:132] == b"DICM":
        return False
    # The first header alone is read, so that neither a long name nor a long comment in it costs anything.
    try:
        with _opened(path, start) as raw:
            tarfile.TarInfo.frombuf(raw.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except lzma.LZMAError as error:
        return _asks_for_memory(error)
    except (EOFError, OSError, ValueError, tarfile.TarError, zlib.error):
        return False
    return True


def _opened(path: Path, start: bytes) -> IO[bytes]:
    """The bytes of a tar whose file starts with `start`, decompressed."""
    opener = {b"\x1f\x8b": gzip.open, b"\xfd7": _opened_xz, b"BZ": bz2.open}.get(start[:2], open)
    opened: IO[bytes] = opener(path, "rb")  # type: ignore[operator]  # each opener has its own signature
    return opened


def _opened_xz(path: Path, _mode: str) -> IO[bytes]:
    return io.BufferedReader(_Xz(path.open("rb")))


class _Xz(io.RawIOBase):
    """The bytes of an xz file, whose decoder takes no more memory than MAX_DICTIONARY_BYTES."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._decoder = stream, _xz_decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._decoder.eof:
                packed = (self._decoder.unused_data or self._stream.read(CHUNK_BYTES)).lstrip(b"\0")
                if not packed:
                    return 0
                self._decoder = _xz_decoder()
            else:
                packed = self._stream.read(CHUNK_BYTES) if self._decoder.needs_input else b""
                if not packed and self._decoder.needs_input:
                    raise EOFError
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)


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
    folder), "archive_link", "archive_device", "archive_encrypted", "archive_too_large", "archive_in_parts",
    "archive_too_many_files", "archive_corrupt", "not_archive".
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=into.parent, prefix=".expand-"))
    try:
        with archive.open("rb") as stream:
            start = stream.read(8)
        budget = _Budget(temporary, max_bytes, max_files, max_ratio, archive.stat().st_size)
        try:
            if start.startswith(_SPLIT_ZIP_START):
                raise _in_parts()
            if start.startswith(ZIP_STARTS):
                _expand_zip(archive, budget)
            else:
                _expand_tar(archive, start, budget)
        except ArchiveRejected:
            raise
        except MemoryError:
            raise
        except lzma.LZMAError as error:
            raise (_large_dictionary() if _asks_for_memory(error) else _corrupt(error)) from None
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
    with archive.open("rb") as stream:
        record = zipfile._EndRecData(stream)  # type: ignore[attr-defined]  # what ZipFile reads first, and then all of the list
    if record and record[1] != record[2]:  # number of this part, and of that with the list
        raise _in_parts()
    if record and record[5] > MAX_DIRECTORY_BYTES:
        raise ArchiveRejected(
            "archive_too_many_files",
            f"Expected a list of members of at most {MAX_DIRECTORY_BYTES} bytes; got {record[5]}. Split the archive.",
        )
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _require_plain(stat.S_IFMT(member.external_attr >> 16), member.is_dir())
            if member.flag_bits & 1:
                raise ArchiveRejected("archive_encrypted", "Expected a zip without password. Pack it without.")
            _require_inside(member.filename)
            if not member.is_dir():
                if member.compress_type == zipfile.ZIP_LZMA:
                    _require_small_dictionary(archive, member)
                with opened.open(member) as source:
                    budget.write(source, metered=True)


def _require_small_dictionary(archive: Path, member: zipfile.ZipInfo) -> None:
    """Of LZMA data in a zip: four bytes of version and length, one of properties, four of the dictionary's size."""
    with archive.open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(30)
        if len(header) < 30:
            raise EOFError
        stream.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
        start = stream.read(9)
    if int.from_bytes(start[5:], "little") > MAX_DICTIONARY_BYTES:
        raise _large_dictionary()


def _large_dictionary() -> ArchiveRejected:
    return ArchiveRejected(
        "archive_too_large",
        f"Expected an archive that unpacks with at most {MAX_DICTIONARY_BYTES} bytes of memory; it asks for more. Pack it with "
        "the usual compression.",
    )


def _asks_for_memory(error: lzma.LZMAError) -> bool:
    return "emory" in str(error)  # there is no other sign of the limit


def _in_parts() -> ArchiveRejected:
    return ArchiveRejected(
        "archive_in_parts", "Expected a whole archive; this is one part of several. Join the parts, or pack it in one."
    )


class _Header(tarfile.TarInfo):
    """A header of a tar that holds no more than names and times."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        extended = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if header.type in extended and header.size > MAX_HEADER_BYTES:
            raise ArchiveRejected(
                "archive_too_large",
                f"Expected headers of at most {MAX_HEADER_BYTES} bytes; one has {header.size}. Pack the files again.",
            )
        return header


def _expand_tar(archive: Path, start: bytes, budget: _Budget) -> None:
    with (
        _opened(archive, start) as raw,
        tarfile.open(fileobj=_Metered(raw, budget), mode="r|", tarinfo=_Header) as opened,  # type: ignore[call-overload]  # _Metered is the readable part of a file, all that a stream needs
    ):
        for member in opened:
            if member.type == _VOLUME_LABEL:
                continue
            if member.type == _CONTINUED:
                raise _in_parts()
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
