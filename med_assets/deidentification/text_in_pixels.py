"""Text burnt into pixels, which no element shows: found by a detector, then blanked, or its case is quarantined."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from med_assets.dicom.blanking import Box, black_of, put_pixels, stored_pixels, without_pixels
from med_assets.dicom.burned_in_text import declares_text, terms
from med_assets.dicom.compression import lost_values
from med_assets.dicom.elements import text
from med_assets.dicom.pixel_data import pixel_layout, require_syntax
from med_assets.dicom.sop_classes import MODALITIES, PIXEL_CLASSES, USUALLY_BURNED_IN
from med_assets.dicom.text_detection import as_picture, find_text
from med_assets.dicom.ultrasound import tissue_regions
from med_assets.errors import CaseRejected
from med_assets.settings import Settings
from med_assets.storage.files import replacing
from med_assets.storage.versions import part_of

AS_ACQUIRED = frozenset({"ORIGINAL", "PRIMARY"})
"""Values of ImageType of what a scanner reconstructed and nobody changed, in whose pixels it writes nothing."""

_IMAGE_CLASSES = PIXEL_CLASSES - {one for kind in MODALITIES.values() if kind.derived for one in kind.classes}


def may_hold_text(ds: Dataset) -> bool:
    """Whether the tags of an object leave it open that text is in its pixels.

    They exclude it for segmentations and doses; beside ultrasound for what declares BurnedInAnnotation NO, and, without a
    declaration, for what was stored as it was acquired.
    """
    kind = text(ds, "SOPClassUID")
    if kind not in _IMAGE_CLASSES or "PixelData" not in ds:
        return False
    if kind in USUALLY_BURNED_IN or declares_text(ds):
        return True
    return text(ds, "BurnedInAnnotation").upper() != "NO" and not terms(ds, "ImageType") >= AS_ACQUIRED


@dataclass(frozen=True)
class Found:
    """An object whose pixels were searched, and how many boxes of text were blanked in it."""

    ds: Dataset
    boxes: int


@part_of("intake")
@dataclass(frozen=True)
class TextInPixels:
    """Searches the objects of one case; `pictures` is a folder beside the landing zone, since what it shows may name a patient."""

    quarantine: bool
    pictures: Path
    case_id: str

    @classmethod
    def of(cls, ws: Settings, program: str, batch: str, case_id: str) -> Self | None:
        """The search that the settings ask for, None where they do not; pictures lie beside the manifest of the batch."""
        if ws.ocr == "off":
            return None
        return cls(
            ws.ocr == "quarantine", ws.landing_zone(program).manifests.beside(program) / f"{batch}.text", case_id
        )

    def cleaned(self, ds: Dataset, position: int, before_frame: Callable[[], None]) -> Found:
        """Return the object itself where nothing is found, otherwise a copy in which the text of any frame is black in all frames.

        The copy is uncompressed, its colours RGB, and it declares BurnedInAnnotation NO. `before_frame` is called before each
        frame is searched; `position` of the object in its case names its picture.

        Raises CaseRejected: text_found_in_pixels where the policy is quarantine, malformed_element, truncated_file,
        undecodable_pixels, region_outside_image.
        """
        if not may_hold_text(ds):
            return Found(ds, 0)
        searched = _searched(ds)
        if not searched:  # ultrasound that does not say where tissue is; it is refused
            return Found(ds, 0)
        require_syntax(text(ds.file_meta, "TransferSyntaxUID"))
        pixel_layout(ds)
        frames = stored_pixels(ds)
        outside = np.ones(frames.shape[1:3], bool)
        for box in searched:
            outside[box] = False
        boxes: set[tuple[int, int, int, int]] = set()
        shown: np.ndarray | None = None
        for frame in frames:
            before_frame()
            picture = as_picture(_coloured(ds, frame))
            picture[outside] = 0
            found = find_text(picture)
            shown = picture if found and shown is None else shown
            boxes.update((rows.start, rows.stop, columns.start, columns.stop) for rows, columns in found)
        if shown is None:
            return Found(ds, 0)
        blanked = [(slice(top, bottom), slice(left, right)) for top, bottom, left, right in sorted(boxes)]
        _save_picture(self.pictures / f"{self.case_id}-{position:04d}.png", shown, blanked)
        if self.quarantine:
            raise CaseRejected(
                "text_found_in_pixels",
                f"expected pixels without text, got what looks like text in {len(blanked)} places of image {position}; see the "
                f"picture {self.case_id}-{position:04d}.png beside the batch's manifest, mask the text and send the image again, "
                "or take it in with MED_ASSETS_OCR=blank",
            )
        clean = without_pixels(ds)
        if lost_values(ds):
            clean.LossyImageCompression = "01"
        if UID(text(ds.file_meta, "TransferSyntaxUID")).is_encapsulated:
            clean.HighBit = int(ds.BitsStored) - 1  # decoders leave values in the lowest bits
        black = _black(ds, frames)
        for box in blanked:
            frames[:, *box] = black
        put_pixels(clean, frames)
        return Found(clean, len(blanked))


def _searched(ds: Dataset) -> list[Box]:
    """The parts of an image that are searched: of ultrasound the tissue, outside of which all is blanked anyway."""
    if text(ds, "SOPClassUID") in USUALLY_BURNED_IN:
        return [box for box, _ in tissue_regions(ds)]
    return [(slice(0, int(ds.Rows)), slice(0, int(ds.Columns)))]


def _coloured(ds: Dataset, frame: np.ndarray) -> np.ndarray:
    """A frame with the colours of its palette, where it has one."""
    if text(ds, "PhotometricInterpretation") != "PALETTE COLOR":
        return frame.copy()
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(frame[..., 0], ds)
    return (colours >> 8 * (colours.dtype.itemsize - 1)).astype(np.uint8)


def _black(ds: Dataset, frames: np.ndarray) -> int:
    """Stored value of black; of grey pixels that may be signed, the darkest that occurs."""
    if (
        text(ds, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
        and text(ds, "SOPClassUID") not in USUALLY_BURNED_IN
    ):
        return int(frames.max() if text(ds, "PhotometricInterpretation") == "MONOCHROME1" else frames.min())
    return black_of(ds)


def _save_picture(path: Path, picture: np.ndarray, boxes: list[Box]) -> None:
    """Write a picture with the boxes of text outlined."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture).convert("RGB")
    draw = ImageDraw.Draw(image)
    for rows, columns in boxes:
        draw.rectangle((columns.start, rows.start, columns.stop - 1, rows.stop - 1), outline=(255, 200, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
