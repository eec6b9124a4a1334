"""A volume in the browser: B-scans and en-face slices as the network sees them, the middle B-scan as it was stored, and the class."""

from pathlib import Path

import numpy as np

from med_assets.programs.retinal_oct.kept import PREDICTION
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.review.viewing.contract import B_SCAN, EN_FACE, Grid, Kind, Layer, Table, View, Window, centre_of
from med_assets.storage.files import read_json

STEP = 0.001
"""A standardised grey value is sent in whole steps of this; values beyond 32 standard deviations are cut."""

SHOWN_PERCENTILES = (1.0, 99.5)
"""Ends of the window, as of the stored B-scan."""


def views(prepared: Path, predicted: Path | None) -> list[View]:
    """What the network sees, with the class, and the middle B-scan."""
    case = PreparedCase.open(prepared)
    low, high = (float(value) for value in np.percentile(case.image, SHOWN_PERCENTILES))
    middle = (low + high) / 2
    windows = (Window("auto", low, high), Window("dark layers", low, middle), Window("bright layers", middle, high))
    image = Layer(
        "image", "grey value", Kind.IMAGE, "int16", lambda: _stored(case.image), unit="SD", slope=STEP, windows=windows
    )
    frames, rows, columns = case.image.shape
    stored_rows, stored_columns = case.bscan.shape
    _, depth_mm, lateral_mm = case.spacing_mm
    seen = Grid((frames, rows, columns), (None, depth_mm * stored_rows / rows, lateral_mm * stored_columns / columns))
    stored = Grid((1, stored_rows, stored_columns), (None, depth_mm, lateral_mm))
    bscan = Layer(
        "bscan", "grey value", Kind.IMAGE, "uint8", lambda: np.asarray(case.bscan)[None], windows=(Window("full", 0, 255),)
    )  # fmt: skip
    note = " · ".join(text for text in (case.protocol, case.laterality) if text)
    return [
        View(
            "volume", f"As the network sees it, {frames} x {rows} x {columns}", seen, (image,), centre_of(seen.shape),
            (B_SCAN, EN_FACE), tables=_classes(case, predicted), note=note,
        ),
        View("bscan", "Middle B-scan as stored", stored, (bscan,), centre_of(stored.shape), (B_SCAN,)),
    ]  # fmt: skip


def _stored(image: np.ndarray) -> np.ndarray:
    steps = np.rint(np.asarray(image, np.float32) / np.float32(STEP))
    return np.clip(steps, np.iinfo(np.int16).min, np.iinfo(np.int16).max).astype(np.int16)


def _classes(case: PreparedCase, predicted: Path | None) -> tuple[Table, ...]:
    """The probability of each class; without one where the model predicts no classes, or none of this protocol."""
    chances = {} if predicted is None else read_json(predicted / PREDICTION).get("probabilities", {})
    if not chances and case.stated_label is None:
        return ()
    stated = None if case.stated_label is None else CLASSES[case.stated_label]
    rows = [
        (name, "yes" if name == stated else "", f"{float(chances[name]):.3f}" if name in chances else "–")
        for name in CLASSES
    ]
    return (Table("Classes", ("Class", "Label", "Probability"), tuple(rows)),)
