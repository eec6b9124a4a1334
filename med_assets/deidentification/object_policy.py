"""What removing elements can't de-identify, and is refused: unknown kinds of object, and text in pixels."""

from pydicom.dataset import Dataset
from pydicom.uid import UID

from med_assets.dicom.burned_in_text import declares_text, terms, text_in_pixels
from med_assets.dicom.sop_classes import SUPPORTED_CLASSES, USUALLY_BURNED_IN
from med_assets.dicom.undecoded import Facts
from med_assets.errors import CaseRejected

SCREEN_SHOTS = frozenset({
    "SCREEN SAVE", "SCREENSAVE", "SCREEN SHOT", "SCREENSHOT", "SCREEN CAPTURE", "SCREENCAPTURE", "SCREEN", "CAPTURE",
})  # fmt: skip
"""Values of ImageType of a picture of a screen, with all that the screen showed; blanks stand for `_` too."""

FILMED = frozenset({"DV", "DF", "SD", "DRW"})
"""ConversionType of digitised video and film, scanned documents and drawings (PS3.3, C.8.6.1), which carry text as a rule."""


def _refuse_unsafe(ds: Dataset) -> None:
    kind = str(ds.get("SOPClassUID", ""))
    if kind not in SUPPORTED_CLASSES:
        name = UID(kind).name if UID(kind).type else "an unregistered class"
        raise CaseRejected(
            "unsupported_sop_class",
            f"expected images or RT objects that the confidentiality profile covers, got {name}; leave it out",
        )
    if screen := sorted(SCREEN_SHOTS.intersection(terms(ds, "ImageType"))):
        raise text_in_pixels(f"(ImageType {screen[0]}, a picture of a screen)")
    if filmed := sorted(FILMED.intersection(terms(ds, "ConversionType"))):
        raise text_in_pixels(f"(ConversionType {filmed[0]}, digitised film, video or paper)")
    if kind not in USUALLY_BURNED_IN and declares_text(ds):
        raise text_in_pixels("")


refuse_unsafe = Facts(_refuse_unsafe, "SOPClassUID", "ImageType", "ConversionType", "BurnedInAnnotation")
"""Raise CaseRejected for an object whose pixels or kind could carry identity past the allow-list.

Codes: unsupported_sop_class, burned_in_annotation.
"""
