"""Isolines are, pixel by pixel, the lines that matplotlib's `contour` plots."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from med_assets.reporting.isolines import isolines
from med_assets.reporting.style import figure

Y, X = np.arange(20) * 3.0 + 1.5, np.arange(30) * 2.0 + 1.0
DOSE = 60 * np.exp(-(((Y[:, None] - 30) / 15) ** 2) - ((X[None, :] - 25) / 20) ** 2)
TARGET = (DOSE > 40).astype(float)
LEVELS = [5.0, 20.0, 40.0, 70.0]
EXTENT = (0.0, 60.0, 60.0, 0.0)


def plotted(path: Path, draw: Callable[[Any], object], shown: bool) -> bytes:
    """The picture of lines, on an image or alone."""
    with figure(path, 4, 3) as fig:
        axis = fig.subplots()
        if shown:
            axis.imshow(DOSE, cmap="gray", extent=EXTENT)
        draw(axis)
    return path.read_bytes()


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(
    ("values", "levels", "style"),
    [
        (DOSE, LEVELS, "solid"),
        (np.ma.masked_where(DOSE < 10, DOSE), LEVELS, "dashed"),
        (np.where(DOSE > 50, np.nan, DOSE), LEVELS, "solid"),
        (TARGET, [0.5], "dotted"),
        (1 - TARGET, [0.5], "dashdot"),
    ],
    ids=["isodoses", "masked", "undefined", "outline", "hole"],
)
def test_the_picture_is_that_of_contour(
    tmp_path: Path, values: NDArray[Any], levels: list[float], style: str, shown: bool
) -> None:
    colours = colormaps["inferno"](Normalize(0, 72)(levels))

    def by_contour(axis: Any) -> None:
        axis.contour(X, Y, values, levels=levels, colors=colours, linewidths=1.4, linestyles=[style])

    def by_isolines(axis: Any) -> None:
        isolines(axis, X, Y, values, levels, colours, 1.4, style)

    empty = plotted(tmp_path / "empty.png", lambda axis: None, shown)
    ours = plotted(tmp_path / "ours.png", by_isolines, shown)
    assert ours == plotted(tmp_path / "theirs.png", by_contour, shown) != empty


def test_lines_beyond_an_image_widen_the_axes_as_contour_does(tmp_path: Path) -> None:
    around = np.r_[-1.0, X, X[-1] + 2.0], np.r_[-1.5, Y, Y[-1] + 3.0]
    padded = np.pad(np.ones_like(DOSE), 1)
    limits = []
    for draw in (
        lambda axis: axis.contour(*around, padded, levels=[0.5], colors=["red"], linewidths=1.2),
        lambda axis: isolines(axis, *around, padded, [0.5], ["red"], 1.2),
    ):
        with figure(tmp_path / "any.png", 4, 3) as fig:
            axis = fig.subplots()
            axis.imshow(DOSE, cmap="gray", extent=EXTENT)
            draw(axis)
            limits.append((axis.get_xlim(), axis.get_ylim()))
    assert limits[0] == limits[1]


def test_a_level_that_no_value_crosses_has_no_line_and_no_warning(tmp_path: Path) -> None:
    without = plotted(tmp_path / "without.png", lambda axis: None, True)
    assert (
        plotted(tmp_path / "ours.png", lambda axis: isolines(axis, X, Y, DOSE, [90.0], ["red"], 1.0), True) == without
    )
