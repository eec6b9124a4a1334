"""Single ultrasound images: written and read, the size of their pixels, and text burnt into them taken out.

Arrays are (rows, columns). An image has no place in the patient: regions say what lies where in the picture, and how large a
pixel is. DICOM PS3.3, C.8.5.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from med_assets.dicom.frames import decoding, number, text
from med_assets.dicom.objects import SYNTHETIC_IMAGE_TYPE, Identity, item, new_object, save, set_pixels
from med_assets.errors import CaseRejected

REGIONS = "SequenceOfUltrasoundRegions"

TISSUE = 1
"""RegionSpatialFormat of a two-dimensional picture of tissue; others hold traces, spectra and graphics."""

CENTIMETRE = 3
"""PhysicalUnitsXDirection of lengths."""

Box = tuple[slice, slice]
"""Rows and columns of a region."""


def tissue_regions(ds: Dataset) -> list[tuple[Box, Dataset]]:
    """Return the regions that show tissue, within the picture; one that is not whole or lies outside is left out."""
    found = []
    for region in ds.get(REGIONS) or ():
        corners = [number(region, name) for name in ("RegionLocationMinY0", "RegionLocationMaxY1", "RegionLocationMinX0", "RegionLocationMaxX1")]  # fmt: skip
        if number(region, "RegionSpatialFormat") != TISSUE or None in corners:
            continue
        y0, y1, x0, x1 = (int(value or 0) for value in corners)
        box = slice(max(0, y0), min(int(ds.Rows), y1 + 1)), slice(max(0, x0), min(int(ds.Columns), x1 + 1))
        if all(side.start < side.stop for side in box):
            found.append((box, region))
    return found


def without_burnt_in_text(ds: Dataset) -> Dataset:
    """Return a copy in which everything outside of the regions of tissue is black, and which says that it holds no text.

    Names, dates and the machine's own texts stand outside of these regions. An object without such a region, or with a
    palette, is returned as it is, and de-identification refuses it unless it declares itself free of text. Compressed pixels
    are stored uncompressed, colours as RGB. Raises CaseRejected: truncated_file, undecodable_pixels.
    """
    regions = tissue_regions(ds)
    if not regions or text(ds, "PhotometricInterpretation") == "PALETTE COLOR":
        return ds
    pixels = _pixels(ds)
    frames, channels = int(number(ds, "NumberOfFrames") or 1), int(number(ds, "SamplesPerPixel") or 1)
    pixels = pixels.reshape(frames, int(ds.Rows), int(ds.Columns), channels)
    kept = np.zeros(pixels.shape[1:3], bool)
    for box, _ in regions:
        kept[box] = True
    black = 2 ** int(ds.BitsStored) - 1 if ds.PhotometricInterpretation == "MONOCHROME1" else 0
    clean = Dataset()
    clean.update({element.tag: element for element in ds if element.tag.group != 0x7FE0})
    clean.file_meta = ds.file_meta.__class__()
    clean.file_meta.update(dict(ds.file_meta.items()))
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = np.where(kept[None, :, :, None], pixels, pixels.dtype.type(black)).tobytes()
    if channels == 3:
        clean.PhotometricInterpretation, clean.PlanarConfiguration = "RGB", 0
    clean.PixelData = data + b"\0" * (len(data) % 2)
    clean["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    clean.BurnedInAnnotation = "NO"
    return clean


def _pixels(ds: Dataset) -> np.ndarray:
    """Stored pixels, decompressed, colours as RGB."""
    from pydicom.pixels import pixel_array

    if "PixelData" not in ds:
        raise CaseRejected("truncated_file", "Expected pixel data; got none: the file was cut or stripped. Send again.")
    with decoding():
        return np.asarray(pixel_array(ds))


def read_us_image(ds: Dataset) -> np.ndarray:
    """Return one ultrasound image as grey values 0 to 255, uint8 (rows, columns); of a colour image the luma (ITU-R BT.601).

    Raises CaseRejected: wrong_modality, several_frames, unusual_pixels, truncated_file, undecodable_pixels.
    """
    if text(ds, "Modality") != "US":
        raise CaseRejected("wrong_modality", "Expected an ultrasound image; got another modality. Send the image.")
    if int(number(ds, "NumberOfFrames") or 1) != 1:
        raise CaseRejected("several_frames", "Expected one image; got a clip. Send the frame that was outlined.")
    if int(ds.get("BitsAllocated") or 0) != 8 or text(ds, "PhotometricInterpretation") == "PALETTE COLOR":
        raise CaseRejected("unusual_pixels", "Expected 8-bit grey or RGB pixels; got others. Export as 8-bit grey.")
    pixels = _pixels(ds)
    if pixels.shape[:2] != (int(ds.Rows), int(ds.Columns)):
        raise CaseRejected(
            "undecodable_pixels", f"Expected {ds.Rows} x {ds.Columns} pixels; decoding gave {pixels.shape}."
        )
    if pixels.ndim == 3:
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

    `region` is what shows tissue, all of it unless given; `pixel_mm` is (dy, dx), none is written for an image that nobody
    calibrated. `burnt_in` says that there is text in the pixels. `frame` tells several images of one study apart.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"expected uint8 pixels (rows, columns), got {pixels.dtype} {pixels.shape}")
    ds = new_object(identity, UltrasoundImageStorage, "US", identity.uid("US series"), identity.uid("US", frame))
    # An image has no place in the patient, so it belongs to no frame of reference.
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
    ds.ImageType = ["DERIVED", "SECONDARY", SYNTHETIC_IMAGE_TYPE if identity.synthetic else "ABDOMINAL"]
    ds.SeriesNumber, ds.InstanceNumber, ds.PatientOrientation = 1, 1, ""
    ds.BurnedInAnnotation = "YES" if burnt_in else "NO"
    set_pixels(ds, pixels)
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"
    rows, columns = region or (slice(0, pixels.shape[0]), slice(0, pixels.shape[1]))
    if region is not None or pixel_mm is not None:
        values: dict[str, Any] = {
            "RegionSpatialFormat": TISSUE, "RegionDataType": 1, "RegionFlags": 0,
            "RegionLocationMinX0": columns.start, "RegionLocationMinY0": rows.start,
            "RegionLocationMaxX1": columns.stop - 1, "RegionLocationMaxY1": rows.stop - 1,
            "PhysicalUnitsXDirection": CENTIMETRE if pixel_mm else 0, "PhysicalUnitsYDirection": CENTIMETRE if pixel_mm else 0,
        }  # fmt: skip
        dy, dx = pixel_mm or (10.0, 10.0)
        values |= {"PhysicalDeltaX": dx / 10, "PhysicalDeltaY": dy / 10}
        setattr(ds, REGIONS, [item(**values)])
    save(ds, path)
    return ds
