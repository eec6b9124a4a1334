"""Pictures of a dose distribution: colour wash with isodoses on the CT, and dose-volume histograms."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.dvh import cumulative_dvh
from med_assets.reporting.isolines import isolines
from med_assets.reporting.planes import BODY_HU, EDGES, PLANES, Panel, bounding_box, hot_centre, letters, outline
from med_assets.reporting.style import INK, MUTED, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

ISODOSE_PERCENT = (20, 40, 60, 80, 95, 105)
"""Isodose lines, % of the prescription."""

WASH_FROM_PERCENT = 10
"""The colour wash starts at this % of the prescription; below it the CT stays visible."""

HATCH = "////"
"""Pattern of the region in which no dose was calculated."""

_CT_WINDOW_HU = (-160, 240)


def plot_dose(
    path: Path,
    ct_hu: NDArray[Any],
    truth_gy: NDArray[np.floating] | None,
    prediction_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    prescription_gy: float,
    *,
    outlines: Mapping[str, NDArray[np.bool_]] | None = None,
    calculated: NDArray[np.bool_] | None = None,
    centre: tuple[int, int, int] | None = None,
    title: str = "",
) -> Path:
    """Plot planned dose, predicted dose and their difference in three planes through `centre`; return `path`.

    Without a planned dose the predicted one alone.

    Arrays are (z, y, x) with axes to superior, posterior and patient left (radiological view: patient right at the left
    of the picture). `outlines` are structure masks drawn as lines. Where the planned dose was not `calculated` (all was, unless given) it
    is not 0 Gy but unknown: planned dose and difference are hatched there. `centre` is a voxel index (z, y, x); without it, the
    centroid of the planned (else the predicted) dose above 90% of its maximum.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shapes = [array.shape for array in (ct_hu, truth_gy, prediction_gy, calculated) if array is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected CT and doses on one grid, got {shapes}")
    structures = dict(outlines or {})
    dose = prediction_gy if truth_gy is None else truth_gy
    middle = centre or hot_centre(dose if calculated is None else np.where(calculated, dose, 0))
    box = bounding_box(np.asarray(ct_hu) > BODY_HU)
    panels = [Panel.cut(plane, middle, box, spacing_mm) for plane in PLANES]
    widths = [panel.width_mm / panel.height_mm for panel in panels]
    top = 1.2 * prescription_gy
    unknown = None if truth_gy is None or calculated is None or calculated.all() else ~calculated
    rows = [("Predicted", prediction_gy, "inferno", 0.0, top)]
    if truth_gy is not None:
        difference = prediction_gy - truth_gy
        irradiated = truth_gy > 0.1 * prescription_gy
        if unknown is not None:
            irradiated &= ~unknown
        swing = max(5.0, float(np.percentile(np.abs(difference[irradiated]), 99)))
        rows.insert(0, ("Planned", truth_gy, "inferno", 0.0, top))
        rows.append(("Predicted - planned", difference, "RdBu_r", -swing, swing))
    row_height = min(2.5, 10.2 / sum(widths))
    with figure(
        path, row_height * sum(widths) + 1.3, row_height * len(rows) + (1.0 if title else 0.7), print_scale=1.0
    ) as fig:
        axes = fig.subplots(len(rows), 3, width_ratios=widths, squeeze=False)
        for row, (label, volume, cmap, low, high) in enumerate(rows):
            washed = cmap == "inferno"
            for column, panel in enumerate(panels):
                axis = axes[row][column]
                axis.grid(False)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                beyond = None if unknown is None or volume is prediction_gy else panel(unknown)
                shown = panel(volume) if beyond is None else np.ma.masked_where(beyond, panel(volume))
                frame = {"extent": panel.extent, "origin": "upper", "aspect": "equal"}
                if washed:
                    low_hu, high_hu = _CT_WINDOW_HU
                    axis.imshow(panel(ct_hu), cmap="gray", vmin=low_hu, vmax=high_hu, interpolation="bilinear", **frame)
                    cold = shown < WASH_FROM_PERCENT / 100 * prescription_gy
                    warm = np.ma.masked_where(cold, shown)
                    wash = axis.imshow(
                        warm, cmap=cmap, vmin=low, vmax=high, alpha=0.62, interpolation="nearest", **frame
                    )
                    levels = [percent / 100 * prescription_gy for percent in ISODOSE_PERCENT]
                    tones = colormaps["inferno"](Normalize(0, top)(levels))
                    isolines(axis, panel.x_mm, panel.y_mm, shown, levels, tones, 1.1)
                else:
                    wash = axis.imshow(shown, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", **frame)
                    skin = (panel(ct_hu) > BODY_HU).astype(float)
                    isolines(axis, panel.x_mm, panel.y_mm, skin, [0.5], [MUTED], 0.8)
                for number, mask in enumerate(structures.values()):
                    cut = panel(mask)
                    if cut.any():
                        tone = outline(number, washed)
                        isolines(axis, panel.x_mm, panel.y_mm, cut.astype(float), [0.5], [tone], 1.4)
                if beyond is not None and beyond.any():
                    _hatch(axis, panel, beyond, "#c8d0d8" if washed else MUTED)
                letters(axis, EDGES[panel.plane], "#c8d0d8" if washed else MUTED)
                if row == 0:
                    axis.set_title(panel.plane, fontweight="normal", color=MUTED)
                if column == 0:
                    axis.set_ylabel(label, fontsize=10.5, fontweight="bold")
            bar = fig.colorbar(wash, ax=list(axes[row]), shrink=0.85, pad=0.01, aspect=22)
            bar.outline.set_visible(False)
            bar.set_label("Gy")
            if washed:
                bar.ax.axhline(prescription_gy, color="white", linewidth=1.2)
        handles: list[Any] = [
            Line2D([], [], color=outline(i, False), linewidth=2.4, label=name) for i, name in enumerate(structures)
        ]
        if unknown is not None:
            handles.append(Patch(facecolor="white", edgecolor=MUTED, hatch=HATCH, label="no dose calculated"))
        if handles:
            fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        percents = ", ".join(str(percent) for percent in ISODOSE_PERCENT)
        note = f"isodoses {percents}% of {prescription_gy:g} Gy"
        fig.suptitle(f"{title}   {note}" if title else note, x=0.01, ha="left", fontsize=10.5, color=INK)
    return path


def _hatch(axis: Any, panel: Panel, where: NDArray[np.bool_], tone: str) -> None:
    hatched = axis.contourf(
        panel.x_mm, panel.y_mm, where.astype(float), levels=[0.5, 1.5], colors="none", hatches=[HATCH]
    )
    hatched.set(edgecolor=tone, linewidth=0.0)


def plot_dvh(
    path: Path,
    truth_gy: NDArray[np.floating] | None,
    prediction_gy: NDArray[np.floating],
    structures: Mapping[str, NDArray[np.bool_]],
    *,
    title: str = "Dose-volume histogram",
) -> Path:
    """Plot cumulative DVHs, planned (if there is one) solid and predicted dashed, for every structure that has voxels; return `path`."""
    with figure(path, 8.6, 4.6) as fig:
        axis = fig.subplots()
        handles = dvh_lines(axis, truth_gy, prediction_gy, structures)
        axis.set_title(title)
        fig.legend(handles=handles, loc="outside right upper")
    return path


def dvh_lines(
    axis: "Axes",
    truth_gy: NDArray[np.floating] | None,
    prediction_gy: NDArray[np.floating],
    structures: Mapping[str, NDArray[np.bool_]],
) -> "list[Line2D]":
    """Plot the lines of `plot_dvh` into axes; returns what a legend shows."""
    from matplotlib.lines import Line2D

    present = {name: mask for name, mask in structures.items() if mask.any()}
    doses = [dose for dose in (truth_gy, prediction_gy) if dose is not None]
    top = 1.03 * max(1.0, *(float(dose.max()) for dose in doses))
    levels = np.linspace(0, top, 400)
    named = []
    for number, (name, mask) in enumerate(present.items()):
        tone = outline(number, False)  # as the outlines of the dose wash, where the targets come first too
        planned = None if truth_gy is None else cumulative_dvh(truth_gy[mask], levels)
        if planned is not None:
            named += axis.plot(levels, planned, color=tone, linewidth=1.9, label=name)
        predicted = cumulative_dvh(prediction_gy[mask], levels)
        label = name if planned is None else None
        lines = axis.plot(levels, predicted, color=tone, linewidth=1.7, linestyle=(0, (4, 2)), label=label)
        named += lines if planned is None else []
    axis.set(xlim=(0, top), ylim=(0, 102), xlabel="Dose (Gy)", ylabel="Volume (%)")
    styles = [
        Line2D([], [], color=INK, linewidth=1.9, label="planned"),
        Line2D([], [], color=INK, linewidth=1.7, linestyle=(0, (4, 2)), label="predicted"),
    ]
    return [*(styles if truth_gy is not None else styles[1:]), *named]
