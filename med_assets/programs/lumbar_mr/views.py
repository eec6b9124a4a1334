"""A series in the browser: sagittal slices, marked and predicted level points, second peaks, and the maps of the levels."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from med_assets.programs.lumbar_mr.kept import read_prediction
from med_assets.programs.lumbar_mr.levels import LEVELS, ROI_NAMES
from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS
from med_assets.programs.lumbar_mr.peaks import peaks
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.transforms import from_input, to_input
from med_assets.review.viewing.contract import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Grid,
    Kind,
    Layer,
    Marker,
    Role,
    Table,
    View,
    Window,
)  # fmt: skip

WINDOWS = (Window("auto", 0, 255), Window("dark tissue", 0, 128), Window("bright tissue", 96, 255))
"""Parts of the range between the percentiles that the series was scaled to."""

STEPS = 255
"""A probability is sent in steps of one part of these."""

SECOND_PEAK_SHARE = 0.05
"""Second peaks with less of the mass of both are not displayed."""

MEASURES = {
    "confidence": "Confidence", "entropy": "Entropy", "second_peak_share": "Second peak, share",
    "second_peak_distance": "Second peak, mm",
}  # fmt: skip


def views(prepared: Path, predicted: Path | None) -> list[View]:
    """The series with the points that there are, and the maps of a prediction."""
    case = PreparedCase.open(prepared)
    layers = [Layer("series", "signal", Kind.IMAGE, "uint8", lambda: case.volume, windows=WINDOWS)]
    markers = [Marker(ROI_NAMES[level], point, Role.LABEL) for level, point in case.levels.items() if point is not None]
    tables: tuple[Table, ...] = ()
    start = case.middle
    if predicted is not None:
        kept, heats, slice_heats = read_prediction(predicted)
        layers += _map_layers(case, kept, heats, slice_heats)
        markers += _markers(case, kept, heats)
        tables = (_measures(kept),)
        start = start if any(case.levels.values()) else int(kept["middle"])
    _, rows, columns = case.shape
    note = f"Anatomy by the label: {case.lstv}."
    return [
        View(
            "series", "Sagittal series", Grid.of(case.geometry), tuple(layers), (start, rows // 2, columns // 2),
            (SAGITTAL, CORONAL, AXIAL), tuple(markers), tables=tables, note=note,
        )
    ]  # fmt: skip


def _map_layers(case: PreparedCase, kept: Mapping[str, Any], heats: np.ndarray, slice_heats: np.ndarray) -> list[Layer]:
    """The highest probability of all levels, and that of each."""

    @cache
    def maps() -> np.ndarray:
        """Steps uint8 (level, s, y, x): the maps of the slices that were predicted, else the combined ones in the middle slice."""
        slices = list(kept["slices"]) if len(slice_heats) else [int(kept["middle"])]
        found = np.zeros((len(LEVELS), *case.shape), np.uint8)
        for place, index in enumerate(slices):
            own = slice_heats[place] if len(slice_heats) else heats
            found[:, index] = np.rint(_resized(own, case.shape[1:]) * STEPS)
        return found

    def layer(name: str, title: str, read: Callable[[], np.ndarray], *, shown: bool) -> Layer:
        return Layer(name, title, Kind.SCALAR, "uint8", read, slope=1 / STEPS, shown=shown)

    return [
        layer("levels", "probability, all levels", lambda: maps().max(axis=0), shown=True),
        *(
            layer(level, f"probability, {ROI_NAMES[level]}", partial(lambda at: maps()[at], number), shown=False)
            for number, level in enumerate(LEVELS)
        ),
    ]


def _markers(case: PreparedCase, kept: Mapping[str, Any], heats: np.ndarray) -> list[Marker]:
    found = []
    for number, level in enumerate(LEVELS):
        place = kept["points"][level]
        if place is not None:
            s, y, x = (float(value) for value in place["voxel"])
            found.append(Marker(ROI_NAMES[level], (s, y, x), Role.PREDICTION))
        places = peaks(heats[number])
        if len(places) < 2:
            continue
        first, second = places[0], max(places[1:], key=lambda peak: peak.mass)
        share = second.mass / (first.mass + second.mass)
        if share < SECOND_PEAK_SHARE:
            continue
        y, x = (float(value) for value in from_input(np.array(second.point), *case.shape[1:]))
        s = float(place["voxel"][0]) if place is not None else float(kept["middle"])
        found.append(Marker(f"{ROI_NAMES[level]} second, {share:.0%}", (s, y, x), Role.SECOND_PEAK))
    return found


def _measures(kept: Mapping[str, Any]) -> Table:
    def text(level: str, name: str) -> str:
        value = kept["uncertainty"].get(level, {}).get(name)
        return "–" if value is None else f"{value:.3g}"

    rows = [(ROI_NAMES[level], *(text(level, name) for name in MEASURES)) for level in LEVELS]
    return Table("Uncertainty of the levels", ("Level", *MEASURES.values()), tuple(rows))


def _resized(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Maps (level, y, x) of the network's input on the pixels of a slice, linear between pixel centres."""
    rows, columns = shape
    at = to_input(np.stack([np.arange(max(shape))] * 2, axis=1), rows, columns)
    down, across = _weights(at[:rows, 0]), _weights(at[:columns, 1])
    return np.asarray(down @ np.asarray(maps, np.float32) @ across.T)


def _weights(places: np.ndarray) -> np.ndarray:
    """Linear interpolation at fractional pixels of the network's input, (place, pixel); beyond the border is the border."""
    inside = np.clip(places, 0, INPUT_PIXELS - 1)
    lower = np.minimum(np.floor(inside).astype(int), INPUT_PIXELS - 2)
    found = np.zeros((len(places), INPUT_PIXELS), np.float32)
    rows = np.arange(len(places))
    found[rows, lower] = 1 - (inside - lower)
    found[rows, lower + 1] = inside - lower
    return found
