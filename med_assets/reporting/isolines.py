"""Lines of equal value in a plane of an image.

They are those of matplotlib's `Axes.contour`, pixel by pixel, in a third of its time: it makes a colour map and a norm for each call and colours its
lines several times, which was half of what a picture of a case cost.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def isolines(
    axis: "Axes",
    x: NDArray[Any],
    y: NDArray[Any],
    values: NDArray[Any],
    levels: Sequence[float],
    colours: Sequence[Any] | NDArray[Any],
    width: float,
    style: Any = "solid",
) -> None:
    """Plot where `values` (rows at `y`, columns at `x`, both ascending) cross each level, in the colour of that level.

    `width` is in points. Masked and undefined values have no lines. Lines widen the limits of axes that follow what they show.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    found = contour_generator(
        x, y, np.ma.masked_invalid(values, copy=False), name="mpl2014", corner_mask=True,
        line_type=LineType.SeparateCode,
    )  # fmt: skip
    lines: list[Any] = [found.lines(level) for level in levels]
    paths = [
        Path(np.concatenate(points), np.concatenate(codes)) if points else Path(np.empty((0, 2)))
        for points, codes in lines
    ]
    plotted = PathCollection(
        paths, facecolors="none", edgecolors=list(colours), linewidths=width, linestyles=style, zorder=2,
        transform=axis.transData,
    )  # fmt: skip
    axis.add_collection(plotted, autolim=False)
    ends = [(float(x[0]), float(y[0])), (float(x[-1]), float(y[-1]))]
    plotted.sticky_edges.x[:], plotted.sticky_edges.y[:] = zip(*ends, strict=True)
    axis.update_datalim(ends)
    axis.autoscale_view(tight=True)
