"""Stored pixels as arrays, and copies of objects in which some of them are black."""

from copy import copy

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from med_assets.dicom.elements import decoding, text
from med_assets.errors import CaseRejected

PIXEL_GROUP = 0x7FE0

Box = tuple[slice, slice]
"""Rows and columns of a part of a picture."""


def stored_pixels(ds: Dataset) -> np.ndarray:
    """Return stored pixels (frames, rows, columns, samples), decompressed, colours as RGB; a palette is not applied.

    Raises CaseRejected: truncated_file, undecodable_pixels.
    """
    from pydicom.pixels import pixel_array

    if "PixelData" not in ds:
        raise CaseRejected("truncated_file", "Expected pixel data; got none: the file was cut or stripped. Send again.")
    with decoding(text(ds.file_meta, "TransferSyntaxUID")):
        pixels = np.asarray(pixel_array(ds))
    shape = int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel)
    frame = shape if shape[-1] > 1 else shape[:2]
    if pixels.shape[-len(frame) :] != frame:
        raise CaseRejected(
            "undecodable_pixels",
            f"Expected {ds.Rows} x {ds.Columns} pixels; got {pixels.shape} from decoding. Export again.",
        )
    return np.array(pixels).reshape(-1, *shape)


def without_pixels(ds: Dataset) -> Dataset:
    """Return a copy without the elements of pixels, which says that no text is in them."""
    clean = Dataset()
    clean.update({element.tag: copy(element) for element in ds if element.tag.group != PIXEL_GROUP})
    clean.file_meta = ds.file_meta.__class__()
    clean.file_meta.update(dict(ds.file_meta.items()))
    clean.BurnedInAnnotation = "NO"
    return clean


def put_pixels(clean: Dataset, frames: np.ndarray) -> None:
    """Put pixels (frames, rows, columns, samples) into an object without any, uncompressed; three samples are RGB."""
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if frames.shape[-1] == 3:
        clean.PhotometricInterpretation, clean.PlanarConfiguration = "RGB", 0
    data = frames.astype(frames.dtype.newbyteorder("<"), copy=False).tobytes()
    clean.PixelData = data + b"\0" * (len(data) % 2)
    clean["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"


def black_of(ds: Dataset) -> int:
    """Return the stored value of black: the darkest entry of a palette, the highest value where pixels are inverted, else 0."""
    kind = text(ds, "PhotometricInterpretation")
    if kind == "MONOCHROME1":
        return 2 ** int(ds.BitsStored) - 1
    if kind != "PALETTE COLOR":
        return 0
    channels = []
    for colour in ("Red", "Green", "Blue"):
        entries, first, bits = (int(value) for value in ds[f"{colour}PaletteColorLookupTableDescriptor"].value)
        raw = ds[f"{colour}PaletteColorLookupTableData"].value
        width = np.uint8 if bits == 8 and len(raw) < 2 * entries else np.uint16
        channels.append(np.frombuffer(raw, width)[:entries].astype(np.int64))
    return first + int(np.sum(channels, axis=0).argmin())
