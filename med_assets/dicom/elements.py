"""The elements of image datasets: text and numbers, pixels, and where an image lies, or a refusal that explains itself."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from med_assets.dicom.tolerances import DIRECTION_TOLERANCE, DUPLICATE_DISTANCE_MM, SPACING_TOLERANCE_MM
from med_assets.errors import CaseRejected

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Origin (x, y, z) in mm; (3, 3) unit vectors along frames, along a column and along a row; (dy, dx) in mm."""

FIT_DECIMALS = 9
"""Decimals of a mm that a fitted position keeps, so that an even stack has the spacing that its positions are written with."""


class _Quiet(threading.local):
    """The warnings that this thread keeps to itself, None where it does not."""

    caught: list[warnings.WarningMessage] | None = None


_quiet = _Quiet()


@contextmanager
def quietly() -> Iterator[list[warnings.WarningMessage]]:
    """Keep pydicom's warnings to ourselves: they quote values and file names, which may identify a patient.

    Yields those of the block, complete when it ends. A block within another costs next to nothing.
    """
    if (outer := _quiet.caught) is not None:
        before, inner = len(outer), list[warnings.WarningMessage]()
        try:
            yield inner
        finally:
            inner += outer[before:]
            del outer[before:]
        return
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _quiet.caught = caught
            yield caught
    finally:
        _quiet.caught = None
        logger.disabled = disabled


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element's value as stripped text, empty where it is absent."""
    from med_assets.dicom.undecoded import plain, tag_of_keyword

    if (stored := plain(dataset.get_item(tag_of_keyword(keyword), keep_deferred=True))) is not None:
        return stored
    with quietly():
        value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values of an element as stripped texts, none where it is absent."""
    with quietly():
        value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return tuple(str(one).strip() for one in (value if several else [value]))


def identifier(value: object) -> str:
    """Return an identifier without the blanks and zero bytes that pad it: so two are compared, and pseudonyms made."""
    return str(value).replace("\0", " ").strip()


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's value as a finite float, None where it is absent or anything else."""
    from med_assets.dicom.undecoded import plain_number, tag_of_keyword

    if (stored := plain_number(dataset.get_item(tag_of_keyword(keyword), keep_deferred=True))) is not None:
        return stored
    try:
        with quietly():
            value = float(dataset[keyword].value)
    except (KeyError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def numbers(dataset: Dataset, keyword: str) -> np.ndarray | None:
    """Return an element of decimal text as finite float64 values, (n,), None where it is absent or anything else."""
    from med_assets.dicom.element_values import decimals
    from med_assets.dicom.undecoded import tag_of_keyword

    tag = tag_of_keyword(keyword)
    if tag not in dataset:
        return None
    try:
        stored = dataset.get_item(tag, keep_deferred=True)
        # Decimal text not yet parsed is split here: pydicom makes an object of each number, seconds per structure set.
        value = stored.value if stored.VR == "DS" else decimals(stored) or dataset[tag].value
        values = np.array(value.split(b"\\") if isinstance(value, bytes) else value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    return values if values.size and np.isfinite(values).all() else None


_NEWER_SYNTAXES = {"1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression"}
"""Transfer syntaxes of the standard that pydicom 3.0 does not know."""


def syntax_name(syntax: str) -> str:
    """Return the name of a transfer syntax for a message; a UID that the standard does not register is not quoted."""
    from pydicom.uid import UID

    known = UID(syntax)
    if known.type == "Transfer Syntax":
        return str(known.name)
    if not syntax.startswith("1.2.840.10008."):
        return "one that the standard does not register"
    return f"{syntax} ({_NEWER_SYNTAXES.get(syntax, 'unknown here')})"


def uncompressed(syntax: str) -> str:
    """Return what to do about pixels of a transfer syntax that cannot be decoded: never to export in this one again."""
    from pydicom.uid import UID

    known = UID(syntax)
    if known.type == "Transfer Syntax" and not known.is_encapsulated:
        return "export the object again"
    return "export it uncompressed (Explicit VR Little Endian)"


@contextmanager
def decoding(syntax: str) -> Iterator[None]:
    """Around the decoding of pixels in a transfer syntax. Raises `CaseRejected`: "truncated_file", "undecodable_pixels", see `decoded`."""
    try:
        with quietly():
            yield
    except MemoryError:  # says nothing of the data
        raise
    except Exception as error:  # decoders of compressed syntaxes raise what they like; the cause is kept
        if "less than" in str(error) or "end of" in str(error).lower() or isinstance(error, EOFError):
            raise CaseRejected(
                "truncated_file", "Expected all pixels of the image; got a file that ends before. Send it again."
            ) from error
        raise CaseRejected(
            "undecodable_pixels",
            f"Expected pixels that can be decoded here; got {type(error).__name__} from decoding {syntax_name(syntax)}. To do: "
            f"{uncompressed(syntax)}.",
        ) from error


def decoded(dataset: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """Return the stored pixel values, decompressed, in the `shape` expected.

    Raises `CaseRejected`: "truncated_file" where bytes are missing, "undecodable_pixels" for any other failure.
    """
    if "PixelData" not in getattr(dataset, "source", dataset):  # of a frame of a multi-frame object, see `enhanced`
        raise CaseRejected("truncated_file", "Expected pixel data; got none: the file was cut or stripped. Send again.")
    with decoding(text(getattr(dataset, "source", dataset).file_meta, "TransferSyntaxUID")):
        pixels = np.asarray(dataset.pixel_array)
    if pixels.shape != shape:
        raise CaseRejected(
            "undecodable_pixels",
            f"Expected a grey image of {shape} pixels; got {pixels.shape} from decoding. Export again.",
        )
    return pixels


_PLACE = (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
"""Elements that say where an image lies, and how many numbers each has."""


def _finite(dataset: Dataset, keyword: str, count: int) -> np.ndarray:
    values = numbers(dataset, keyword)
    if values is None or values.size != count:
        if not text(dataset, keyword):
            what = "none"
        else:
            what = f"{values.size}" if values is not None else "values that are no finite numbers"
        raise CaseRejected(
            "missing_geometry",
            f"Expected {count} finite numbers in {keyword} of every image; got {what}. Export the original images: no position is "
            "made up here.",
        )
    return values


def image_axes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return origin (x, y, z) mm, the unit vectors (3, 3) of frames, rows' stacking and columns, and (dy, dx) mm.

    Raises `CaseRejected`: "missing_geometry" where a tag is absent, "inconsistent_geometry" where it makes no frame.
    """
    origin, cosines, spacing = (_finite(dataset, keyword, count) for keyword, count in _PLACE)
    return origin, _direction(cosines.tobytes(), spacing.tobytes()).copy(), spacing


@lru_cache
def _direction(cosine_bytes: bytes, spacing_bytes: bytes) -> np.ndarray:
    """Return the unit vectors (3, 3) of frames, rows' stacking and columns, the same in all slices of a stack."""
    cosines, spacing = np.frombuffer(cosine_bytes), np.frombuffer(spacing_bytes)
    columns, rows = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(columns), np.linalg.norm(rows)
    if max(abs(length - 1) for length in lengths) > DIRECTION_TOLERANCE:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected two unit vectors in ImageOrientationPatient; got lengths of {lengths[0]:.4g} and {lengths[1]:.4g} "
            f"({DIRECTION_TOLERANCE:g} of 1 is allowed). Export the original images.",
        )
    if abs(columns @ rows) > DIRECTION_TOLERANCE:
        angle = np.degrees(np.arccos(np.clip(columns @ rows, -1, 1)))
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected two vectors at a right angle in ImageOrientationPatient; got {angle:.2f} degrees. Export the original images.",
        )
    if spacing.min() <= 0:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected PixelSpacing above 0 mm; got {spacing[0]:.4g} and {spacing[1]:.4g}. Export the original images.",
        )
    columns, rows = columns / lengths[0], rows / lengths[1]
    return np.array([np.cross(columns, rows), rows, columns])


def regular_spacing(positions_mm: np.ndarray) -> float:
    """Return the one distance in mm between neighbours in ascending `positions_mm`, (n,) with n >= 2, see `even_stack`."""
    return even_stack(positions_mm)[1]


def even_stack(positions_mm: np.ndarray) -> tuple[float, float]:
    """Return where the even stack begins that fits ascending `positions_mm` best, (n,) with n >= 2, and its spacing, both in mm.

    The line is fitted to all positions (least squares), since the noise of a first or last one would bend it for all others.
    Raises `CaseRejected`: "duplicate_slice", "missing_slice" (a gap of a whole multiple), "nonuniform_spacing".
    """
    gaps = np.diff(positions_mm)
    apart = gaps[gaps > SPACING_TOLERANCE_MM]
    noise = min(SPACING_TOLERANCE_MM, float(np.median(apart)) / 2) if apart.size else DUPLICATE_DISTANCE_MM
    if repeats := int((gaps < max(noise, DUPLICATE_DISTANCE_MM)).sum()):
        raise CaseRejected(
            "duplicate_slice",
            f"Expected one slice per position; got {repeats} of {len(positions_mm)} that lie within {noise:.2g} mm of another, as in "
            "two acquisitions or reconstructions in one series. Send one, once.",
        )
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    steps = np.maximum(np.round(gaps / usual), 1)
    if (np.abs(gaps - steps * usual) > 2 * SPACING_TOLERANCE_MM).any():
        raise CaseRejected(
            "nonuniform_spacing",
            f"Expected slices {usual:.3f} mm apart throughout; got gaps from {gaps.min():.3f} to {gaps.max():.3f} mm. "
            "Send one series with one slice spacing.",
        )
    if (steps > 1).any():
        raise CaseRejected(
            "missing_slice",
            f"Expected a slice every {usual:.3f} mm; got {len(positions_mm)}, between which {int((steps - 1).sum())} are "
            "missing. Send the whole series: slices are not interpolated.",
        )
    index = np.arange(len(positions_mm)) - (len(positions_mm) - 1) / 2
    middle = float(positions_mm.mean())
    spacing = float(index @ (positions_mm - middle) / (index @ index))
    off = np.abs(positions_mm - middle - spacing * index)
    if off.max() > SPACING_TOLERANCE_MM:
        raise CaseRejected(
            "nonuniform_spacing",
            f"Expected slices {spacing:.3f} mm apart throughout; got slice {int(off.argmax()) + 1} of {len(off)} that lies {off.max():.2f} mm from "
            f"its place in an even stack ({SPACING_TOLERANCE_MM:g} mm are allowed). Send one series with one slice spacing.",
        )
    return round(middle + spacing * float(index[0]), FIT_DECIMALS), round(spacing, FIT_DECIMALS)
