"""What is mutated: the files of a program's phantom as they are, and with their images compressed in each way."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.shared_phantoms import write_phantoms
from tests.streams import lossless_jpeg

Case = dict[str, bytes]
"""The files of one case, by name."""

SYNTAXES = (
    ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless,
    JPEG2000Lossless, HTJ2KLossless,
)  # fmt: skip


def cases(name: str, folder: Path) -> list[Case]:
    """The phantom of a program in each transfer syntax, the first as it is written. `folder` is absent."""
    write_phantoms(name, folder, 1, 2)
    plain = files_below(folder)
    return [plain, *(dict(_in_syntax(plain, syntax)) for syntax in SYNTAXES)]


def files_below(folder: Path) -> Case:
    """All files below a folder but hidden ones, which intake does not look at."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    return {
        name.as_posix(): path.read_bytes()
        for name, path in zip(names, paths, strict=True)
        if not any(part.startswith(".") for part in name.parts)
    }


def _in_syntax(plain: Case, syntax: UID) -> Iterator[tuple[str, bytes]]:
    for name, content in plain.items():
        ds = pydicom.dcmread(io.BytesIO(content))
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            if ds.Modality not in ("CT", "MR", "US", "OPT"):
                yield name, content
                continue
            compressed(ds, syntax)
        else:
            ds.file_meta.TransferSyntaxUID = syntax
        target = io.BytesIO()
        ds.save_as(target, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        yield name, target.getvalue()


def compressed(ds: Dataset, syntax: UID) -> None:
    """Compress the pixels of an object in place."""
    if syntax in (JPEGBaseline8Bit, JPEGLosslessSV1):
        frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
        if syntax == JPEGBaseline8Bit:
            frames = (frames >> ds.BitsStored - 8).astype(np.uint8)
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = encapsulate(
            [
                _baseline(frame) if syntax == JPEGBaseline8Bit else lossless_jpeg(frame, ds.BitsStored)
                for frame in frames
            ]
        )
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
        return
    compress(ds, JPEG2000Lossless if syntax == HTJ2KLossless else syntax, generate_instance_uid=False)
    if syntax == HTJ2KLossless:  # no encoder here: its decoder reads JPEG 2000 too
        ds.file_meta.TransferSyntaxUID = syntax


def _baseline(frame: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(frame).save(target, "JPEG", quality=95)
    return target.getvalue()
