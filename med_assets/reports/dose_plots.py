"""Pictures of a dose distribution: colour wash with isodoses on the CT, and dose-volume histograms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.dvh import cumulative_dvh
from med_assets.reports.planes import BODY_HU, EDGES, PLANES, Panel, bounding_box, hot_centre, letters, outline
from med_assets.reports.style import INK, MUTED, figure

ISODOSE_PERCENT = (20, 40, 60, 80, 95, 105)
"""Isodose lines, % of the prescription."""

WASH_FROM_PERCENT = 10
"""The colour wash starts at this % of the prescription; below it the CT stays visible."""

_CT_WINDOW_HU = (-160, 240)


def plot_dose(
    path: Path,
    ct_hu: NDArray[Any],
    truth_gy: NDArray[np.floating],
    prediction_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    prescription_gy: float,
    *,
    outlines: Mapping[str, NDArray[np.bool_]] | None = None,
    centre: tuple[int, int, int] | None = None,
    title: str = "",
) -> Path:
    """Draw planned dose, predicted dose and their difference in three planes through `centre`; return `path`.

    Arrays are (z, y, x) with axes to superior, posterior and patient left (radiological view: patient right at the left
    of the picture). `outlines` are structure masks drawn as lines. `centre` is a voxel index (z, y, x); without it, the
    centroid of the planned dose above 90% of its maximum.
    """
    from matplotlib.lines import Line2D

    if not ct_hu.shape == truth_gy.shape == prediction_gy.shape:
        raise ValueError(
            f"expected CT and doses on one grid, got {ct_hu.shape}, {truth_gy.shape} and {prediction_gy.shape}"
        )
    structures = dict(outlines or {})
    middle = centre or hot_centre(truth_gy)
    box = bounding_box(np.asarray(ct_hu) > BODY_HU)
    panels = [Panel.cut(plane, middle, box, spacing_mm) for plane in PLANES]
    widths = [panel.width_mm / panel.height_mm for panel in panels]
    top = 1.2 * prescription_gy
    difference = prediction_gy - truth_gy
    swing = max(5.0, float(np.percentile(np.abs(difference[truth_gy > 0.1 * prescription_gy]), 99)))
    rows = (
        ("Planned", truth_gy, "inferno", 0.0, top),
        ("Predicted", prediction_gy, "inferno", 0.0, top),
        ("Predicted - planned", difference, "RdBu_r", -swing, swing),
    )
    row_height = min(2.5, 10.2 / sum(widths))
    with figure(path, row_height * sum(widths) + 1.3, row_height * 3 + (1.0 if title else 0.7), print_scale=1.0) as fig:
        axes = fig.subplots(3, 3, width_ratios=widths, squeeze=False)
        for row, (label, volume, cmap, low, high) in enumerate(rows):
            for column, panel in enumerate(panels):
                axis = axes[row][column]
                axis.grid(False)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                shown = panel(volume)
                frame = {"extent": panel.extent, "origin": "upper", "aspect": "equal"}
                if row < 2:
                    low_hu, high_hu = _CT_WINDOW_HU
                    axis.imshow(panel(ct_hu), cmap="gray", vmin=low_hu, vmax=high_hu, interpolation="bilinear", **frame)
                    cold = shown < WASH_FROM_PERCENT / 100 * prescription_gy
                    warm = np.ma.masked_where(cold, shown)
                    wash = axis.imshow(
                        warm, cmap=cmap, vmin=low, vmax=high, alpha=0.62, interpolation="nearest", **frame
                    )
                    levels = [percent / 100 * prescription_gy for percent in ISODOSE_PERCENT]
                    lines = {"levels": levels, "cmap": "inferno", "vmin": 0, "vmax": top, "linewidths": 1.1}
                    axis.contour(panel.x_mm, panel.y_mm, shown, **lines)
                else:
                    wash = axis.imshow(shown, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", **frame)
                    skin = (panel(ct_hu) > BODY_HU).astype(float)
                    axis.contour(panel.x_mm, panel.y_mm, skin, levels=[0.5], colors=[MUTED], linewidths=0.8)
                for number, mask in enumerate(structures.values()):
                    cut = panel(mask)
                    if cut.any():
                        line = {"levels": [0.5], "colors": [outline(number, row < 2)], "linewidths": 1.4}
                        axis.contour(panel.x_mm, panel.y_mm, cut.astype(float), **line)
                letters(axis, EDGES[panel.plane], "#c8d0d8" if row < 2 else MUTED)
                if row == 0:
                    axis.set_title(panel.plane, fontweight="normal", color=MUTED)
                if column == 0:
                    axis.set_ylabel(label, fontsize=10.5, fontweight="bold")
            bar = fig.colorbar(wash, ax=list(axes[row]), shrink=0.85, pad=0.01, aspect=22)
            bar.outline.set_visible(False)
            bar.set_label("Gy")
            if row < 2:
                bar.ax.axhline(prescription_gy, color="white", linewidth=1.2)
        handles = [
            Line2D([], [], color=outline(i, False), linewidth=2.4, label=name) for i, name in enumerate(structures)
        ]
        if handles:
            fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        percents = ", ".join(str(percent) for percent in ISODOSE_PERCENT)
        note = f"isodoses {percents}% of {prescription_gy:g} Gy"
        fig.suptitle(f"{title}   {note}" if title else note, x=0.01, ha="left", fontsize=10.5, color=INK)
    return path


def plot_dvh(
    path: Path,
    truth_gy: NDArray[np.floating],
    prediction_gy: NDArray[np.floating],
    structures: Mapping[str, NDArray[np.bool_]],
    *,
    title: str = "Dose-volume histogram",
) -> Path:
    """Draw cumulative DVHs, planned solid and predicted dashed, for every structure that has voxels; return `path`."""
    from matplotlib.lines import Line2D

    present = {name: mask for name, mask in structures.items() if mask.any()}
    top = 1.03 * max(float(truth_gy.max()), float(prediction_gy.max()), 1.0)
    levels = np.linspace(0, top, 400)
    with figure(path, 8.6, 4.6) as fig:
        axis = fig.subplots()
        for number, (name, mask) in enumerate(present.items()):
            tone = outline(number, False)  # as the outlines of the dose wash, where the targets come first too
            axis.plot(levels, cumulative_dvh(truth_gy[mask], levels), color=tone, linewidth=1.9, label=name)
            predicted = cumulative_dvh(prediction_gy[mask], levels)
            axis.plot(levels, predicted, color=tone, linewidth=1.7, linestyle=(0, (4, 2)))
        axis.set(xlim=(0, top), ylim=(0, 102), xlabel="Dose (Gy)", ylabel="Volume (%)", title=title)
        styles = [
            Line2D([], [], color=INK, linewidth=1.9, label="planned"),
            Line2D([], [], color=INK, linewidth=1.7, linestyle=(0, (4, 2)), label="predicted"),
        ]
        names, labels = axis.get_legend_handles_labels()
        fig.legend(handles=[*styles, *names], labels=["planned", "predicted", *labels], loc="outside right upper")
    return path
