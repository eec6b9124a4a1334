"""Every step from one prepared spine to its uncertainty, as numbered pictures and a table."""

from pathlib import Path

import numpy as np
import pandas as pd

from med_assets.programs.lumbar_mr.kept import read_prediction
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.pictures import FAINT, plot
from med_assets.programs.lumbar_mr.predict import level_masses, load_predictor
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.reporting.style import COLOURS, figure

COLUMNS = 7
"""Slices beside each other."""


def plot_steps(checkpoint: Path, prepared: Path, predicted: Path, out: Path) -> list[Path]:
    """Write, in the order of what happens: the series, its intensities, how the middle was found, the maps of single slices,
    of augmented views, the combined maps with the points, and all measures as CSV; returns the paths.
    """
    case, predictor = PreparedCase.open(prepared), load_predictor(checkpoint)
    summary, _, single = read_prediction(predicted)
    found = predictor(case)
    out.mkdir(parents=True, exist_ok=True)
    paths = [
        _series(case, summary["slices"], out / "1_series.png"),
        _intensities(case, out / "2_intensities.png"),
    ]
    if (masses := level_masses(predictor, case)) is not None:
        paths.append(_middle(case, *masses, int(summary["middle"]), out / "3_middle.png"))
    if len(single):
        paths.append(_maps(case, single, [f"slice {index}" for index in summary["slices"]], out / "4_slices.png"))
    if len(found.view_heats):
        names = ["unchanged", *(f"view {number}" for number in range(1, len(found.view_heats)))]
        paths.append(_maps(case, found.view_heats, names, out / "5_views.png"))
    (combined,) = plot(prepared, predicted, out)
    paths.append(combined.rename(out / "6_combined.png"))
    table = pd.DataFrame(summary["uncertainty"]).T.rename_axis("level")
    points = [summary["points"][level] for level in LEVELS]
    for number, axis in enumerate("xyz"):
        table[f"{axis}_mm"] = [None if point is None else point["mm"][number] for point in points]
    table.to_csv(out / "7_measures.csv")
    return [*paths, out / "7_measures.csv"]


def _series(case: PreparedCase, chosen: list[int], path: Path) -> Path:
    """All slices, or every so many of a long series; those that were combined have a frame."""
    step = max(1, case.shape[0] // (4 * COLUMNS))
    shown = sorted({*range(0, case.shape[0], step), *chosen})
    rows = -(-len(shown) // COLUMNS)
    with figure(path, 1.5 * COLUMNS, 1.7 * rows) as fig:
        fig.set_layout_engine("none")
        place = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1 - 0.2 / fig.get_figheight(), "hspace": 0.15}
        panels = fig.subplots(rows, COLUMNS, squeeze=False, gridspec_kw=place).flat
        for axis in panels:
            axis.set_axis_off()
        for axis, index in zip(fig.axes, shown, strict=False):
            axis.imshow(case.volume[index], cmap="gray", vmin=0, vmax=255, aspect=case.pixel_mm[0] / case.pixel_mm[1])
            axis.set_title(f"slice {index}" + (" combined" if index in chosen else ""), fontsize=7, fontweight="normal")
            if index in chosen:
                axis.set_axis_on()
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, color=COLOURS[1], linewidth=2)
    return path


def _intensities(case: PreparedCase, path: Path) -> Path:
    with figure(path, 6, 2.6) as fig:
        axis = fig.subplots()
        axis.hist(np.asarray(case.volume).ravel(), bins=64, range=(0, 256), color=COLOURS[0], log=True)
        axis.set(
            title="Voxels by intensity, 0 and 255 at the percentiles 0.1 and 99.9 of the series", xlabel="intensity"
        )
    return path


def _middle(case: PreparedCase, looked_at: np.ndarray, masses: np.ndarray, middle: int, path: Path) -> Path:
    with figure(path, 6, 2.6) as fig:
        axis = fig.subplots()
        axis.plot(looked_at, masses, marker="o", markersize=3, color=COLOURS[0])
        axis.axvline(middle, color=COLOURS[1], label=f"middle that was used, {middle}")
        axis.axvline(case.shape[0] // 2, color=COLOURS[6], linestyle=":", label="middle of the series")
        axis.set(title="Probability of all levels, summed over each slice", xlabel="slice")
        axis.legend(fontsize=8)
    return path


def _maps(case: PreparedCase, heats: np.ndarray, names: list[str], path: Path) -> Path:
    """A row of maps (row, level, 160, 160) for each name, over nothing: what the model says alone."""
    ratio = case.shape[1] * case.pixel_mm[0] / (case.shape[2] * case.pixel_mm[1])
    with figure(path, 1.5 * len(LEVELS), 1.6 * len(names) * ratio) as fig:
        fig.set_layout_engine("none")
        place = {"left": 0.06, "right": 0.99, "bottom": 0.01, "top": 1 - 0.25 / fig.get_figheight(), "hspace": 0.15}
        panels = fig.subplots(len(names), len(LEVELS), squeeze=False, gridspec_kw=place)
        for row, (name, maps) in enumerate(zip(names, heats, strict=True)):
            for axis, level, heat in zip(panels[row], LEVELS, maps, strict=True):
                axis.grid(False)
                axis.set(xticks=[], yticks=[])
                axis.set_facecolor("black")
                axis.imshow(np.ma.masked_less(heat, FAINT), cmap="inferno", vmin=0, vmax=1, aspect=ratio)
                axis.set_title(f"{level}, {heat.max():.2f}", fontsize=7, fontweight="normal")
            panels[row][0].set_ylabel(name, fontsize=8)
    return path
