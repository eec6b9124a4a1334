"""Whether an image lost values in compression: by its header, by its transfer syntax, or by the wavelet of its JPEG 2000 streams."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from med_assets.dicom.elements import numbers, quietly, text

LOSSY_SYNTAXES = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless})
"""Transfer syntaxes that lose values whatever the header says."""

_EITHER_WAY = frozenset({uid.JPEG2000, uid.HTJ2K})
"""Transfer syntaxes with or without loss, as the wavelet of a stream says: 9/7 is irreversible, 5/3 reversible."""

_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51")
_COD, _COC, _SOT = 0x52, 0x53, 0x90
_IRREVERSIBLE = 0


@dataclass(frozen=True)
class Loss:
    """Whether images lost values in compression at any time, and the greatest ratio that one states, None where none does."""

    lossy: bool
    ratio: float | None


def loss_of(folder: Path) -> Loss:
    """Return the loss of the images of a stored case (PS3.3 C.7.6.1.1.5)."""
    lossy = False
    ratios: list[float] = []
    for path in sorted(folder.glob("*.dcm")):
        with quietly():
            ds = dcmread(
                path, stop_before_pixels=True, specific_tags=["LossyImageCompression", "LossyImageCompressionRatio"]
            )
            if text(ds.file_meta, "TransferSyntaxUID") in _EITHER_WAY and text(ds, "LossyImageCompression") != "01":
                ds = dcmread(path)
        lossy |= lost_values(ds)
        ratios += [] if (stated := numbers(ds, "LossyImageCompressionRatio")) is None else stated.tolist()
    return Loss(lossy, max(ratios, default=None))


def lost_values(ds: Dataset) -> bool:
    """Say whether an image lost values in compression, as far as it and its streams tell.

    A JPEG 2000 stream of the reversible wavelet may have been cut to a rate, which nothing but the header tells.
    """
    meta = getattr(ds, "file_meta", None)
    syntax = "" if meta is None else text(meta, "TransferSyntaxUID")
    if text(ds, "LossyImageCompression") == "01" or syntax in LOSSY_SYNTAXES:
        return True
    pixels = ds.get_item("PixelData").value if syntax in _EITHER_WAY and "PixelData" in ds else b""
    return any(irreversible(pixels[one.start() :]) for one in _CODESTREAM.finditer(pixels or b""))


def irreversible(stream: bytes) -> bool:
    """Say whether the main header of a JPEG 2000 codestream names the irreversible wavelet (ISO/IEC 15444-1, tables A.13 and A.20)."""
    position, components = 2, 0
    while position + 4 <= len(stream) and stream[position] == 0xFF and (marker := stream[position + 1]) != _SOT:
        body = stream[position + 4 : position + 2 + int.from_bytes(stream[position + 2 : position + 4])]
        if marker == 0x51:
            components = int.from_bytes(body[34:36])
        # Coding style, then (of all components: progression, layers, colours) levels, width, height, style, wavelet.
        place = {_COD: 9, _COC: 6 if components < 257 else 7}.get(marker)
        if place is not None and len(body) > place and body[place] == _IRREVERSIBLE:
            return True
        position += 4 + len(body)
    return False
