"""Pictures of one located spine: marked and predicted points on the middle slice, and the map of each level."""

from pathlib import Path

import numpy as np

from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.scorer import read_prediction
from med_assets.reports.style import COLOURS, INK, figure

MARKED = "#3DF59B"
FAINT = 0.05
"""Probability below which a map is not shown: nearly all of a slice has a little of it."""


def draw(prepared: Path, predicted: Path, out: Path) -> list[Path]:
    """Draw one case as a PNG file under `out`: head at the top, front at the left, distances to scale.

    The first panel has the marked points as circles and the predicted ones as crosses; then each level's map over the
    slice, with its confidence and entropy, so that what is not found is seen to be not found.
    """
    case = PreparedCase.open(prepared)
    summary, heats, _ = read_prediction(predicted)
    shown = np.asarray(case.volume[summary["middle"]])
    dy, dx = case.pixel_mm
    extent = (0.0, case.shape[2] * dx, case.shape[1] * dy, 0.0)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{case.case_id}_levels.png"
    with figure(path, 2.2 * (1 + len(LEVELS)), 2.2 * extent[2] / extent[1] + 0.9) as fig:
        panels = fig.subplots(1, 1 + len(LEVELS))
        for axis in panels:
            axis.grid(False)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear", aspect="equal")
        for index, level in enumerate(LEVELS):
            marked, found = case.levels[level], summary["points"][level]
            if marked is not None:
                place = ((marked[2] + 0.5) * dx, (marked[1] + 0.5) * dy)
                panels[0].plot(*place, marker="o", markersize=8, fillstyle="none", color=MARKED, linestyle="")
            if found is not None:
                _, y, x = found["voxel"]
                panels[0].plot((x + 0.5) * dx, (y + 0.5) * dy, marker="x", markersize=7, color=COLOURS[1], linestyle="")
            heat = np.ma.masked_less(heats[index], FAINT)
            panels[1 + index].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6, extent=extent, aspect="equal")
            panels[1 + index].set_title(_title(level, summary["uncertainty"][level]), fontweight="normal", fontsize=8)
        panels[0].set_title("o marked, x predicted", fontweight="normal", fontsize=8)
        said = ", synthetic" if case.synthetic else ""
        fig.suptitle(
            f"case {case.case_id}{said}, slice {summary['middle']}", x=0.01, ha="left", fontsize=10.5, color=INK
        )
    return [path]


def _title(level: str, row: dict[str, float | None]) -> str:
    if row["entropy"] is None:
        return f"{level}: not found\nconfidence {row['confidence']:.2f}"
    return f"{level}\nconfidence {row['confidence']:.2f}, entropy {row['entropy']:.2f}"
