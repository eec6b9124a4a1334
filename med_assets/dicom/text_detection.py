"""Where text is burnt into a picture: the text detector of RapidOCR (optional extra `ocr`), on one core and without the network.

Text is detected and not read: what it says never leaves the pixels.
"""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.dicom.blanking import Box
from med_assets.errors import ConfigurationError
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    from rapidocr import RapidOCR

INSTALL = "pip install 'med-assets[ocr]'"

MIN_CONFIDENCE = 0.5
"""Least mean probability of text in a box, as the detector gives it, for the box to be taken for text."""

SHORT_SIDE_PIXELS, MAX_ENLARGEMENT, LONG_SIDE_PIXELS = 1280, 3.0, 2560
"""A picture is enlarged, at most so many times, until its short side has so many pixels, as far as its long side stays within its
limit; a larger one is reduced to that. Without, letters of ten pixels are missed."""

MARGIN_SHARE, MARGIN_PIXELS = 0.15, 2
"""What is added to a box on each side: a share of its height, and pixels of the picture."""

MAX_HEIGHT_SHARE = 0.125
"""Text is less high than this share of the picture's short side; a box of more is a part of the picture, such as a dark lesion."""

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
"""Percentiles of pixels of more than 8 bits that are shown to the detector as black and white."""


def require_detector() -> None:
    """Raise ConfigurationError where the extra `ocr` is not installed."""
    if find_spec("rapidocr") is None:
        raise ConfigurationError(
            f"expected the package rapidocr, which finds text in pixels as MED_ASSETS_OCR asks, got none; {INSTALL}, or set MED_ASSETS_OCR=off"
        )


@cache
def _detector() -> "RapidOCR":
    require_detector()
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    sizes = {
        "Global.max_side_len": 2 * LONG_SIDE_PIXELS,
        "Det.limit_type": "max",
        "Det.limit_side_len": LONG_SIDE_PIXELS,
    }
    return RapidOCR(params={"Global.log_level": "critical", "Det.box_thresh": MIN_CONFIDENCE, **threads, **sizes})


@versioned("1")
def find_text(picture: np.ndarray) -> list[Box]:
    """Return the boxes of text in a picture, uint8 (rows, columns) or (rows, columns, 3), with their margins, sorted.

    Raises ConfigurationError where the extra `ocr` is not installed.
    """
    from PIL import Image

    rows, columns = picture.shape[:2]
    scale = min(
        MAX_ENLARGEMENT, max(1.0, SHORT_SIDE_PIXELS / min(rows, columns)), LONG_SIDE_PIXELS / max(rows, columns)
    )
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    shown = np.asarray(Image.fromarray(picture).convert("RGB").resize(size, Image.Resampling.BICUBIC))
    found: Any = _detector()(shown, use_det=True, use_cls=False, use_rec=False)
    boxes = []
    for corners in () if found.boxes is None else found.boxes:
        across, down = (float(np.linalg.norm(corners[1] - corners[0])), float(np.linalg.norm(corners[2] - corners[1])))
        height = min(across, down) / scale
        if height > MAX_HEIGHT_SHARE * min(rows, columns):
            continue
        margin = MARGIN_PIXELS + MARGIN_SHARE * height
        (left, top), (right, bottom) = corners.min(axis=0) / scale - margin, corners.max(axis=0) / scale + margin
        boxes.append(
            (
                slice(max(0, int(top)), min(rows, int(bottom) + 1)),
                slice(max(0, int(left)), min(columns, int(right) + 1)),
            )
        )
    return sorted(boxes, key=lambda box: (box[0].start, box[1].start, box[0].stop, box[1].stop))


def as_picture(frame: np.ndarray) -> np.ndarray:
    """Return a frame (rows, columns, samples) as uint8 grey (rows, columns) or RGB, stretched where it has more than 8 bits."""
    if frame.dtype != np.uint8:
        low, high = np.percentile(frame, (LOW_PERCENT, HIGH_PERCENT))
        frame = np.clip((frame.astype(np.float64) - low) / max(high - low, 1.0) * 255, 0, 255).astype(np.uint8)
    return frame[..., 0] if frame.shape[-1] == 1 else frame[..., :3]
