"""Archives of all forms, and damaged ones; the same seed gives the same bytes."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping

from tests.fuzz.mutations import MARK, bits

Files = Mapping[str, bytes]
_NAME = MARK.decode()


def _zip(files: Files, kind: int, target: io.RawIOBase | io.BytesIO, zip64: bool = False) -> None:
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, content in files.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as member:
                member.write(content)


def zipped(files: Files, rng: random.Random) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(
        target, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    ) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


class _Pipe(io.RawIOBase):
    """What can't be sought in: zipfile then writes sizes behind each member."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        content = bytes(data)  # type: ignore[call-overload]  # data is any buffer, which object does not say
        self.written += content
        return len(content)


def descriptors(files: Files, rng: random.Random) -> bytes:
    """A zip with data descriptors behind its members, some with sizes of 64 bits."""
    target = _Pipe()
    _zip(files, zipfile.ZIP_DEFLATED, target, zip64=rng.random() < 0.5)
    return bytes(target.written)


def zip64(files: Files, rng: random.Random) -> bytes:
    target = io.BytesIO()
    _zip(files, zipfile.ZIP_STORED, target, zip64=True)
    return target.getvalue()


def overlapping(files: Files, rng: random.Random) -> bytes:
    """A zip whose directory names its first member many times, as bombs of overlapping files do."""
    content = zipped(dict(list(files.items())[:1]), rng)
    start = content.rfind(b"PK\x01\x02")
    end = content.rfind(b"PK\x05\x06")
    directory, count = content[start:end], rng.choice((2, 50, 3000))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory) * count, start, 0)
    return content[:start] + directory * count + tail


def tarred(files: Files, rng: random.Random, *more: tarfile.TarInfo) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    content = target.getvalue()
    return rng.choice((bytes, gzip.compress, bz2.compress, lzma.compress))(content)


def nested(files: Files, rng: random.Random) -> bytes:
    return rng.choice((zipped, tarred))({f"{_NAME}.zip": rng.choice((zipped, tarred))(files, rng)}, rng)


def names(files: Files, rng: random.Random) -> bytes:
    """Members with names that no file system has, or that lead outside."""
    name = rng.choice(
        (_NAME, "n" * 300, "d/" * 2000 + "a", "../a", "/etc/a", "a", "C:\\a", "a\\..\\..\\b", "\u200f\u4e00")
    )
    return rng.choice((zipped, tarred))({name: next(iter(files.values()))}, rng)


def special(files: Files, rng: random.Random) -> bytes:
    """A tar with a link, a device, a sparse file, or a part of several volumes."""
    info = tarfile.TarInfo(f"x{_NAME}")
    info.type = rng.choice(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"M", b"V", tarfile.CONTTYPE)
    )
    info.linkname = rng.choice(("/etc/passwd", "..", _NAME))
    return tarred(files, rng, info)


ARCHIVES: tuple[Callable[[Files, random.Random], bytes], ...] = (
    zipped, descriptors, zip64, overlapping, tarred, nested, names, special,
)  # fmt: skip


def archive(files: Files, rng: random.Random) -> tuple[str, bytes]:
    """Kind and bytes of an archive, with some bits changed in half of them."""
    chosen = rng.choice(ARCHIVES)
    content = chosen(files, rng)
    return chosen.__name__, content if rng.random() < 0.5 else bits(content, rng)
