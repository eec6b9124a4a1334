"""Maps of the gamma index of a predicted dose in three planes."""

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.gamma import MAP_TO_GAMMA, gamma_index, reaches_cutoff
from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.reporting.isolines import isolines
from med_assets.reporting.planes import BODY_HU, EDGES, PLANES, Panel, bounding_box, hot_centre, letters
from med_assets.reporting.style import INK, MUTED, figure
from med_assets.storage.files import digest
from med_assets.storage.memo import Memo

MAX_POINTS = 2500
"""Points per plane whose index is computed: every second or third voxel of a large plane, so that a map takes 2 s or less."""

MAPS = 16
"""Maps whose indices a process keeps, up to 60 kB each."""

LINES: tuple[Any, ...] = ("solid", "dashed", "dotted", "dashdot")
"""Outlines differ by line and not by colour, of which the map has all."""

SEARCH_FRACTION = 5
"""The search for a map goes in steps of the distance criterion / 5, twice as coarse as for a passing rate."""


def plot_gamma(
    path: Path,
    ct_hu: NDArray[Any],
    truth_gy: NDArray[np.floating],
    prediction_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    body: NDArray[np.bool_],
    settings: GammaSettings,
    *,
    prescription_gy: float | None = None,
    outlines: Mapping[str, NDArray[np.bool_]] | None = None,
    title: str = "",
) -> Path:
    """Plot the gamma index of the predicted dose in three planes on the CT, what passes blue and what fails red; return `path`.

    Arrays are (z, y, x) as for `plot_dose`, through the same centre. The index is that of the 3-D search in the whole volume,
    at no more than MAX_POINTS voxels of each plane, inside `body` and above the cut-off of `settings`.
    """
    from matplotlib.lines import Line2D

    settings = settings.model_copy(update={"interp_fraction": min(settings.interp_fraction, SEARCH_FRACTION)})
    middle, box = hot_centre(truth_gy), bounding_box(np.asarray(ct_hu) > BODY_HU)
    panels = [Panel.cut(plane, middle, box, spacing_mm) for plane in PLANES]
    base_gy = prescription_gy if settings.normalisation == "prescription" and prescription_gy else truth_gy.max()
    wanted = body & reaches_cutoff(truth_gy, settings, float(base_gy))
    grids = [_thinned(panel, wanted) for panel in panels]
    where = np.logical_or.reduce([grid for grid, _ in grids])
    index = _gamma_index(truth_gy, prediction_gy, spacing_mm, where, settings, prescription_gy)
    widths = [panel.width_mm / panel.height_mm for panel in panels]
    height = min(3.0, 10.2 / sum(widths))
    with figure(path, height * sum(widths) + 1.3, height + 1.35, print_scale=1.0) as fig:
        axes = fig.subplots(1, 3, width_ratios=widths)
        for axis, panel, (grid, step) in zip(axes, panels, grids, strict=True):
            axis.grid(False)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            frame = {"extent": panel.extent, "origin": "upper", "aspect": "equal"}
            axis.imshow(panel(ct_hu), cmap="gray", vmin=-160, vmax=240, interpolation="bilinear", **frame)
            wash = axis.imshow(
                np.ma.masked_invalid(panel(_filled(panel, index, wanted, step))), cmap="RdBu_r", vmin=0, vmax=MAP_TO_GAMMA, alpha=0.75, interpolation="nearest", **frame
            )  # fmt: skip
            for number, mask in enumerate((outlines or {}).values()):
                if (cut := panel(mask)).any():
                    style = LINES[number % len(LINES)]
                    isolines(axis, panel.x_mm, panel.y_mm, cut.astype(float), [0.5], [INK], 1.6, style)
            letters(axis, EDGES[panel.plane], "white", halo=INK)
            seen = index[grid]
            passed = f", {np.mean(seen <= 1):.0%} pass" if seen.size else ", no dose here"
            axis.set_title(f"{panel.plane}{passed}", fontweight="normal", color=MUTED)
        bar = fig.colorbar(wash, ax=list(axes), shrink=0.85, pad=0.01, aspect=18, ticks=[0, 0.5, 1, 1.5, MAP_TO_GAMMA])
        bar.ax.set_yticklabels(["0", "0.5", "1", "1.5", f"≥ {MAP_TO_GAMMA:g}"])
        bar.outline.set_visible(False)
        bar.set_label("gamma index")
        handles = [
            Line2D([], [], color=INK, linewidth=1.6, linestyle=LINES[i % len(LINES)], label=name)
            for i, name in enumerate(outlines or {})
        ]
        if handles:
            fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        fig.suptitle(
            "\n".join(filter(None, (title, _criteria(settings, max(step for _, step in grids))))), x=0.01, ha="left", fontsize=9.5, color=INK,
        )  # fmt: skip
    return path


_indices: Memo[NDArray[np.float64]] = Memo(MAPS)
"""Gamma indices of maps by all that they are computed from."""


def _gamma_index(
    truth_gy: NDArray[np.floating],
    prediction_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    where: NDArray[np.bool_],
    settings: GammaSettings,
    prescription_gy: float | None,
) -> NDArray[np.float64]:
    """Return `gamma_index` at the voxels of `where`, computed once for the pictures of a case on screen and in print."""
    doses = [(dose.dtype.str, np.ascontiguousarray(dose).tobytes()) for dose in (truth_gy, prediction_gy)]
    numbers = (where.shape, spacing_mm, settings.model_dump(mode="json"), prescription_gy)
    key = digest(*(part for dose in doses for part in dose), np.packbits(where).tobytes(), numbers)
    values = _indices.get(
        key,
        lambda: gamma_index(
            truth_gy, prediction_gy, spacing_mm, where, settings, prescription_gy=prescription_gy
        )[where],
    )  # fmt: skip
    index = np.full(where.shape, np.nan)
    index[where] = values
    return index


def _criteria(settings: GammaSettings, step: int) -> str:
    base = "maximum planned dose" if settings.normalisation == "max_reference" else "prescription"
    return (
        f"global gamma {settings.dose_percent_threshold:g}% of the {base} / {settings.distance_mm_threshold:g} mm, "
        f"from {settings.lower_cutoff_percent:g}% up; 3-D search in steps of "
        f"{settings.distance_mm_threshold / settings.interp_fraction:g} mm, at "
        + ("every voxel" if step == 1 else f"one in {step} x {step} voxels")
    )


def _thinned(panel: Panel, wanted: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """Return the voxels of a plane where the index is computed, and how many voxels apart they are."""
    plane = np.zeros(wanted.shape, bool)
    plane[panel.index] = wanted[panel.index]
    step = max(1, ceil(sqrt(int(plane.sum()) / MAX_POINTS)))
    kept = np.zeros_like(plane)
    places = tuple(slice(side.start, side.stop, step) if isinstance(side, slice) else side for side in panel.index)
    kept[places] = plane[places]
    return kept, step


def _filled(panel: Panel, values: NDArray[np.float64], wanted: NDArray[np.bool_], step: int) -> NDArray[np.float64]:
    """Return a volume in whose plane every computed value covers the `step` x `step` voxels that it stands for."""
    plane = values[panel.index]
    rows, columns = plane.shape
    blocks = np.repeat(np.repeat(plane[::step, ::step], step, axis=0), step, axis=1)[:rows, :columns]
    out = np.full(values.shape, np.nan)
    out[panel.index] = np.where(wanted[panel.index], blocks, np.nan)
    return out
