"""Pictures of a segmentation: true and predicted outlines on axial slices of the CT."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from med_assets.reporting.isolines import isolines
from med_assets.reporting.style import INK, figure

WINDOW_HU = (-1150.0, 350.0)
"""Lung window: from width 1500 HU around -400 HU."""

PANEL_MM = 120.0
"""Width and height of what is shown around the lesion, mm."""

TRUE_COLOUR, PREDICTED_COLOUR = "#3DF59B", "#FF8AE2"


def plot_masks(
    path: Path,
    image: NDArray[Any],
    truth: NDArray[np.bool_] | None,
    prediction: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    *,
    title: str = "",
    window: tuple[float, float] = WINDOW_HU,
) -> Path:
    """Plot both masks as outlines on three axial slices through the largest lesion; return `path`. Without `truth`, one.

    Arrays are (z, y, x) with axes to superior, posterior and patient left (radiological view: patient right at the left
    of the picture). The lesion is the largest component of the truth, or of the prediction where there is no truth;
    without either the middle of the volume is shown. `window` are the values shown black and white.
    """
    from matplotlib.lines import Line2D

    masks: list[tuple[NDArray[np.bool_], str, Literal["solid", "dashed"], str]]
    masks = [(prediction, PREDICTED_COLOUR, "dashed", "predicted")]
    if truth is not None:
        masks.insert(0, (truth, TRUE_COLOUR, "solid", "true"))
    if any(mask.shape != image.shape for mask, *_ in masks):
        raise ValueError(
            f"expected image and masks on one grid, got {[image.shape, *(mask.shape for mask, *_ in masks)]}"
        )
    slices, rows, columns = _around(_largest(next((m for m, *_ in masks if m.any()), prediction)), spacing_mm)
    _, dy, dx = spacing_mm
    height, width = (rows.stop - rows.start) * dy, (columns.stop - columns.start) * dx
    y_mm = (np.arange(rows.stop - rows.start) + 0.5) * dy
    x_mm = (np.arange(columns.stop - columns.start) + 0.5) * dx
    with figure(path, 3.1 * len(slices), 3.1 * height / width + 0.8) as fig:
        for axis, index in zip(np.atleast_1d(fig.subplots(1, len(slices))), slices, strict=True):
            axis.grid(False)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            shown = np.asarray(image[index, rows, columns])
            axis.imshow(
                shown, cmap="gray", vmin=window[0], vmax=window[1], extent=(0, width, height, 0), interpolation="bilinear", aspect="equal"
            )  # fmt: skip
            for mask, tone, style, _ in masks:
                cut = mask[index, rows, columns]
                if cut.any():
                    # A border of zeros closes outlines that the picture's edge cuts.
                    isolines(
                        axis, np.r_[x_mm[0] - dx, x_mm, x_mm[-1] + dx], np.r_[y_mm[0] - dy, y_mm, y_mm[-1] + dy],
                        np.pad(cut, 1).astype(float), [0.5], [tone], 1.6, style,
                    )  # fmt: skip
            axis.set_title(f"slice {index}", fontweight="normal")
        handles = [
            Line2D([], [], color=tone, linewidth=2.2, linestyle=style, label=label) for _, tone, style, label in masks
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=2)
        fig.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=INK)
    return path


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest 26-connected component."""
    from scipy.ndimage import label

    components, n = label(mask, np.ones((3, 3, 3)))
    if n < 2:
        return mask
    largest: NDArray[np.bool_] = components == 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    return largest


def _around(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> tuple[list[int], slice, slice]:
    """Return up to three axial slices, at a quarter, half and three quarters of the mask's extent, and its surroundings."""
    found = np.nonzero(mask) if mask.any() else tuple(np.array([side // 2]) for side in mask.shape)
    low, high = int(found[0].min()), int(found[0].max())
    slices = sorted({round(low + share * (high - low)) for share in (0.25, 0.5, 0.75)})
    sides = []
    for axis in (1, 2):
        middle = round((int(found[axis].min()) + int(found[axis].max())) / 2)
        reach = max(PANEL_MM / spacing_mm[axis], np.ptp(found[axis]) * 1.3) / 2
        sides.append(slice(max(0, round(middle - reach)), min(mask.shape[axis], round(middle + reach) + 1)))
    return slices, sides[0], sides[1]
