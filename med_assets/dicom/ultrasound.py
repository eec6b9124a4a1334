"""Single ultrasound images: written and read, the size of their pixels, and text burnt into them taken out.

Arrays are (rows, columns). An image has no place in the patient: regions say what lies where in the picture, and how large a
pixel is. DICOM PS3.3, C.8.5.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundImageStorage

from med_assets.dicom.blanking import PIXEL_GROUP, Box, black_of, put_pixels, stored_pixels, without_pixels
from med_assets.dicom.burned_in_text import declares_text, text_in_pixels
from med_assets.dicom.elements import number, text
from med_assets.dicom.objects import SYNTHETIC_IMAGE_TYPE, Identity, item, new_object, save, set_pixels
from med_assets.errors import CaseRejected

REGIONS = "SequenceOfUltrasoundRegions"

TISSUE = 1
"""RegionSpatialFormat of a two-dimensional picture of tissue; others hold traces, spectra and graphics."""

CORNERS = ("RegionLocationMinX0", "RegionLocationMaxX1", "RegionLocationMinY0", "RegionLocationMaxY1")

FAINT = 16
"""Grey levels that differ from black by no more are no text: lossy compression leaves such a haze around the picture."""

CENTIMETRE = 3
"""PhysicalUnitsXDirection of lengths."""


def tissue_regions(ds: Dataset) -> list[tuple[Box, Dataset]]:
    """Return the regions that show tissue; maxima are inclusive, and one pixel beyond the picture is taken for its border.

    Raises CaseRejected("region_outside_image") for a region that is inverted, not whole or beyond the picture.
    """
    rows, columns = int(number(ds, "Rows") or 0), int(number(ds, "Columns") or 0)
    found = []
    for position, region in enumerate(ds.get(REGIONS) or (), start=1):
        if number(region, "RegionSpatialFormat") != TISSUE:
            continue
        corners = [number(region, keyword) for keyword in CORNERS]
        x0, x1, y0, y1 = (-1 if value is None else int(value) for value in corners)
        if not (0 <= x0 <= x1 <= columns and 0 <= y0 <= y1 <= rows and x0 < columns and y0 < rows):
            place = ", ".join("none" if value is None else f"{value:g}" for value in corners)
            raise CaseRejected(
                "region_outside_image",
                f"expected region {position} of SequenceOfUltrasoundRegions within {columns} x {rows} pixels, got x0, x1, y0, "
                f"y1 of {place}; correct the region, or crop the image and describe what is left",
            )
        box = slice(y0, min(rows, y1 + 1)), slice(x0, min(columns, x1 + 1))
        found.append((box, region))
    return found


def without_burnt_in_text(ds: Dataset) -> tuple[Dataset, bool]:
    """Return a copy in which everything outside of the regions of tissue is black, and whether anything was blanked.

    Names, dates and the machine's own texts stand outside of these regions, whatever BurnedInAnnotation says: the copy says
    NO. Pixels are decompressed only where something is blanked, colours are then RGB; a palette stays.

    Raises CaseRejected: burned_in_annotation (no region says where tissue is, or text is declared and none lies outside of the
    regions, so that it is within), region_outside_image, truncated_file, undecodable_pixels.
    """
    regions = tissue_regions(ds)
    if declares_text(ds) and not regions:
        raise text_in_pixels("and no region of tissue, outside of which it could be blanked")
    if not regions:
        raise CaseRejected(
            "burned_in_annotation",
            "expected an ultrasound image with a region of tissue (SequenceOfUltrasoundRegions, RegionSpatialFormat 1), outside "
            "of which text is blanked, got none; BurnedInAnnotation alone is not relied on. Send the image as the machine "
            "stored it, or crop it to the tissue and describe the whole picture as one region",
        )
    outside = np.ones((int(ds.Rows), int(ds.Columns)), bool)
    for box, _ in regions:
        outside[box] = False
    clean = without_pixels(ds)
    black, frames = black_of(ds), stored_pixels(ds)
    contrast = np.abs(frames[:, outside].astype(np.int64) - black)
    if declares_text(ds) and not (contrast > FAINT).any():
        raise text_in_pixels("and none outside of the regions of tissue, so that it is within them")
    if not contrast.any():
        clean.update({element.tag: element for element in ds if element.tag.group == PIXEL_GROUP})
        return clean, False
    frames[:, outside] = black
    put_pixels(clean, frames)
    return clean, True


def read_us_image(ds: Dataset) -> np.ndarray:
    """Return one ultrasound image as grey values 0 to 255, uint8 (rows, columns); of a colour image the luma (ITU-R BT.601).

    Raises CaseRejected: wrong_modality, several_frames, unusual_pixels, truncated_file, undecodable_pixels.
    """
    if text(ds, "Modality") == "US" and int(number(ds, "NumberOfFrames") or 1) != 1:
        raise CaseRejected("several_frames", "Expected one image; got a clip. Send the frame that was outlined.")
    require_grey_or_colour(ds)
    return grey_values(ds, stored_pixels(ds)[0])


def require_grey_or_colour(ds: Dataset) -> None:
    """Raise CaseRejected("wrong_modality" or "unusual_pixels") unless an object is ultrasound of 8-bit grey or RGB pixels."""
    if text(ds, "Modality") != "US":
        raise CaseRejected("wrong_modality", "Expected an ultrasound image; got another modality. Send the image.")
    if int(ds.get("BitsAllocated") or 0) != 8 or text(ds, "PhotometricInterpretation") == "PALETTE COLOR":
        raise CaseRejected("unusual_pixels", "Expected 8-bit grey or RGB pixels; got others. Export as 8-bit grey.")


def grey_values(ds: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Return a decoded frame (rows, columns) or (rows, columns, samples) as grey values, see `read_us_image`."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    elif pixels.ndim == 3:
        pixels = np.rint(pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    return 255 - pixels if text(ds, "PhotometricInterpretation") == "MONOCHROME1" else pixels


def pixel_size_mm(ds: Dataset) -> tuple[float, float] | None:
    """Return (dy, dx) of a pixel in mm by the region of tissue; None where none is calibrated, or several are and differ."""
    sizes = set()
    for _, region in tissue_regions(ds):
        units = [number(region, f"PhysicalUnits{axis}Direction") for axis in "XY"]
        steps = [number(region, f"PhysicalDelta{axis}") for axis in "YX"]
        if units == [CENTIMETRE] * 2 and all(step for step in steps):
            dy, dx = (round(abs(step or 0.0) * 10, 9) for step in steps)
            sizes.add((dy, dx))
    return sizes.pop() if len(sizes) == 1 else None


def write_us(
    path: Path,
    pixels: np.ndarray,
    identity: Identity,
    *,
    pixel_mm: tuple[float, float] | None = None,
    region: Box | None = None,
    burnt_in: bool = False,
    frame: str = "",
) -> Dataset:
    """Write grey pixels, uint8 (rows, columns), as an Ultrasound Image; the same input gives the same bytes.

    `region` is what shows tissue, the whole picture unless given; `pixel_mm` is (dy, dx), none is written for an image that
    nobody calibrated. `burnt_in` says that there is text in the pixels. `frame` tells several images of one study apart.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"expected uint8 pixels (rows, columns), got {pixels.dtype} {pixels.shape}")
    ds = us_object(pixels.shape, identity, UltrasoundImageStorage, pixel_mm, region, frame)
    ds.BurnedInAnnotation = "YES" if burnt_in else "NO"
    set_pixels(ds, pixels)
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"
    save(ds, path)
    return ds


def us_object(
    shape: tuple[int, ...],
    identity: Identity,
    sop_class: str,
    pixel_mm: tuple[float, float] | None,
    region: Box | None,
    frame: str,
) -> Dataset:
    """Return an ultrasound object without pixels, of pictures of a shape (rows, columns); see `write_us`."""
    ds = new_object(identity, sop_class, "US", identity.uid("US series"), identity.uid("US", frame))
    # An image has no place in the patient, so it belongs to no frame of reference.
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
    ds.ImageType = ["DERIVED", "SECONDARY", SYNTHETIC_IMAGE_TYPE if identity.synthetic else "ABDOMINAL"]
    ds.SeriesNumber, ds.InstanceNumber, ds.PatientOrientation, ds.Laterality = 1, 1, "", ""
    ds.BurnedInAnnotation = "NO"
    rows, columns = region or (slice(0, shape[0]), slice(0, shape[1]))
    values: dict[str, Any] = {
        "RegionSpatialFormat": TISSUE, "RegionDataType": 1, "RegionFlags": 0,
        "RegionLocationMinX0": columns.start, "RegionLocationMinY0": rows.start,
        "RegionLocationMaxX1": columns.stop - 1, "RegionLocationMaxY1": rows.stop - 1,
        "PhysicalUnitsXDirection": CENTIMETRE if pixel_mm else 0, "PhysicalUnitsYDirection": CENTIMETRE if pixel_mm else 0,
    }  # fmt: skip
    dy, dx = pixel_mm or (10.0, 10.0)
    values |= {"PhysicalDeltaX": dx / 10, "PhysicalDeltaY": dy / 10}
    setattr(ds, REGIONS, [item(**values)])
    return ds
