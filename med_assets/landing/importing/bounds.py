"""What a file of an import may unpack to, measured before it is read: a few MB can hold hundreds of GB of zeros."""

import bz2
import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from med_assets.errors import CaseRejected

MAX_VOXELS = 1 << 30
"""Voxels of a volume: a CT of 1024 x 1024 pixels and a thousand slices."""

MAX_PICTURE_PIXELS = 1 << 26
"""Pixels of a picture: 8192 x 8192."""

MOST_INFLATED_PER_BYTE = 1032
"""What a byte of deflated data can hold at most."""

MAX_DICTIONARY_BYTES = 128 << 20
"""Memory of an LZMA decoder for what it may refer back to."""

_CHUNK_BYTES = 1 << 20


def require_volume(path: Path, shape: Sequence[Any], voxel_bytes: int, *, packed: bool) -> None:
    """Refuse a volume of more voxels than MAX_VOXELS, or than its file can hold. Raises CaseRejected("volume_too_large")."""
    voxels = math.prod(int(size) for size in shape)
    held = path.stat().st_size * (MOST_INFLATED_PER_BYTE if packed else 1) // max(voxel_bytes, 1)
    if not 0 <= voxels <= min(MAX_VOXELS, held):
        raise _too_large(f"{' x '.join(map(str, shape))} voxels", f"{min(MAX_VOXELS, held)} in this file")


def require_inflated(stream: IO[bytes], encoding: str, n_bytes: int) -> None:
    """Refuse the rest of `stream` (gzip, bzip2) where it inflates to more than `n_bytes`, which its header declares.

    Raises CaseRejected("volume_too_large"), OSError, zlib.error.
    """
    gz = encoding in ("gzip", "gz")
    unpacker: Any = zlib.decompressobj(zlib.MAX_WBITS | 16) if gz else bz2.BZ2Decompressor()
    total = 0
    while not unpacker.eof:
        packed = unpacker.unconsumed_tail if gz else b""
        if not packed and (gz or unpacker.needs_input):
            packed = stream.read(_CHUNK_BYTES)
            if not packed:
                return  # cut off: its reader says so
        total += len(unpacker.decompress(packed, _CHUNK_BYTES))
        if total > n_bytes:
            raise _too_large("more bytes than its header declares", str(n_bytes))


def unpacked_xz(content: bytes, n_bytes: int) -> bytes:
    """The content of an xz file. Raises CaseRejected("volume_too_large") beyond `n_bytes`, lzma.LZMAError, EOFError."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)
    data = unpacker.decompress(content, n_bytes + 1)
    if len(data) > n_bytes:
        raise _too_large("more bytes", str(n_bytes))
    if not unpacker.eof:
        raise EOFError
    return data


def require_members(content: bytes, n_bytes: int) -> None:
    """Refuse a NumPy archive whose members declare more than `n_bytes`. Raises CaseRejected("volume_too_large"), BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    if declared > n_bytes:
        raise _too_large(f"{declared} bytes", str(n_bytes))


def _too_large(got: str, most: str) -> CaseRejected:
    return CaseRejected(
        "volume_too_large", f"expected a volume of at most {most}, got {got}; check the file, or export it in parts"
    )
