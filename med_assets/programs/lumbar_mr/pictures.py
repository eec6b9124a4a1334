"""Pictures of one located spine: marked and predicted points on the middle slice, and the map of each level."""

from pathlib import Path

import numpy as np
import pandas as pd

from med_assets.programs.lumbar_mr.kept import read_prediction
from med_assets.programs.lumbar_mr.levels import LEVELS, ROI_NAMES
from med_assets.programs.lumbar_mr.measures import MEASURES
from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.studies import anatomies
from med_assets.programs.lumbar_mr.tables import values
from med_assets.programs.lumbar_mr.thresholds import RiskSettings, Thresholds
from med_assets.reporting.style import COLOURS, INK, figure

MARKED = "#3DF59B"
OPACITY = 0.6
FAINT = 0.05
"""Probability below which a map is not shown: nearly all of a slice has a little of it."""


def plot(prepared: Path, predicted: Path, out: Path) -> list[Path]:
    """Plot one case as a PNG file under `out`: head at the top, front at the left, distances to scale.

    The first panel has the marked points as circles and the predicted ones as crosses; then each level's map over the
    slice, with its confidence and entropy, so that what is not found is seen to be not found.
    """
    import matplotlib as mpl

    case = PreparedCase.open(prepared)
    summary, heats, _ = read_prediction(predicted)
    dy, dx = case.pixel_mm
    height, width = case.shape[1] * dy, case.shape[2] * dx
    grey = np.repeat(np.asarray(case.volume[summary["middle"]])[..., None] / 255, 3, axis=2)
    rows, columns = (((np.arange(n) + 0.5) * INPUT_PIXELS / n).astype(int) for n in case.shape[1:])
    panels = [grey]
    for heat in heats[:, rows][:, :, columns]:
        colour, seen = mpl.colormaps["inferno"](heat)[..., :3], OPACITY * (heat >= FAINT)[..., None]
        panels.append(grey * (1 - seen) + colour * seen)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{case.case_id}_levels.png"
    with figure(path, 2.2 * len(panels), 2.2 * height / width + 0.65) as fig:
        fig.set_layout_engine("none")
        axis = fig.add_axes((0.005, 0.01, 0.99, 1 - 0.66 / fig.get_figheight()))
        axis.set_axis_off()
        # One picture of all panels: six with a map each take five times as long.
        axis.imshow(
            np.concatenate(panels, axis=1),
            extent=(0, len(panels) * width, height, 0),
            interpolation="bilinear",
            aspect="equal",
        )
        titles = ["o marked, x predicted", *(_title(level, summary["uncertainty"][level]) for level in LEVELS)]
        for number, title in enumerate(titles):
            axis.text(number * width, -2, title, fontsize=8, va="bottom")
        for level in LEVELS:
            marked, found = case.levels[level], summary["points"][level]
            if marked is not None:
                spot = ((marked[2] + 0.5) * dx, (marked[1] + 0.5) * dy)
                axis.plot(*spot, marker="o", markersize=8, fillstyle="none", color=MARKED, linestyle="")
            if found is not None:
                _, y, x = found["voxel"]
                axis.plot((x + 0.5) * dx, (y + 0.5) * dy, marker="x", markersize=7, color=COLOURS[1], linestyle="")
        axis.set(xlim=(0, len(panels) * width), ylim=(height, 0))
        synthetic = ", synthetic" if case.synthetic else ""
        fig.text(
            0.005,
            0.995,
            f"case {case.case_id}{synthetic}, slice {summary['middle']}",
            va="top",
            fontsize=9.5,
            color=INK,
        )
    return [path]


def _title(level: str, row: dict[str, float | None]) -> str:
    name = ROI_NAMES[level]
    if row["entropy"] is None:
        return f"{name}: not found\nconfidence {row['confidence']:.2f}"
    return f"{name}\nconfidence {row['confidence']:.2f}, entropy {row['entropy']:.2f}"


LOOKS = {"normal": (COLOURS[0], "o"), "transitional": (COLOURS[1], "D"), "unknown": (COLOURS[6], "o")}
"""Colour and marker of what is known of a study's anatomy."""


def plot_distributions(rows: pd.DataFrame, record: Thresholds | None, settings: RiskSettings, path: Path) -> Path:
    """Plot each measure at the deciding level, a dot per study by anatomy, with the thresholds; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = anatomies(rows)
    with figure(path, 9.6, 9.6) as fig:
        panels = fig.subplots(4, 3).ravel()
        for unused in panels[len(MEASURES) :]:
            unused.set_axis_off()
        for axis, (name, spec) in zip(panels, MEASURES.items(), strict=False):
            own = rows[(rows["metric"] == name) & (rows["subject"] == settings.level)]
            for place, (anatomy, (colour, marker)) in enumerate(LOOKS.items()):
                found = own[own["case_id"].map(known) == anatomy]["value"].astype(float).dropna().to_numpy()
                # Spread sideways by rank, so that equal values do not hide each other and the picture is the same each time.
                aside = place + 0.28 * (((np.arange(len(found)) * 0.618) % 1) - 0.5) * 2
                axis.plot(aside, np.sort(found), marker, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
            for rate, colour in ((settings.high_rate, COLOURS[1]), (settings.medium_rate, COLOURS[4])):
                value = record.at(name, settings.level, rate).value if record else None
                if value is not None:
                    axis.axhline(value, color=colour, linewidth=1, linestyle="--")
            axis.set_xticks(range(len(LOOKS)), list(LOOKS))
            axis.set_xlim(-0.5, len(LOOKS) - 0.5)
            axis.set_title(f"{name}, {spec.unit}" + (" (decides)" if name == settings.measure else ""), fontsize=9)
    return path


def plot_overview(rows: pd.DataFrame, settings: RiskSettings, path: Path) -> Path:
    """Plot histograms of entropy and box plots of confidence by level, and confidence against entropy at the deciding level.

    A level that is not found has no entropy: it is in the box plots alone, and each histogram states its number of studies.
    Boxes span the quartiles, whiskers reach 1.5 times that range (Tukey), circles are the studies beyond. Returns `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entropies = {level: values(rows, "entropy", level).dropna().to_numpy() for level in LEVELS}
    every = np.concatenate(list(entropies.values()))
    edges = np.histogram_bin_edges(every, bins=16) if len(every) else np.linspace(0, 1, 17)
    with figure(path, 9.6, 5.6) as fig:
        grid = fig.add_gridspec(2, 2 * len(LEVELS))
        first = None
        for place, (level, found) in enumerate(entropies.items()):
            axis = first = fig.add_subplot(grid[0, 2 * place : 2 * place + 2], sharex=first, sharey=first)
            axis.hist(found, bins=edges.tolist(), color=COLOURS[0])
            axis.set_title(f"{ROI_NAMES[level]} (n = {len(found)})", fontsize=9)
            axis.set_xlabel(f"entropy, {MEASURES['entropy'].unit}")
            axis.set_ylabel("studies" if place == 0 else "")
        boxes = fig.add_subplot(grid[1, : len(LEVELS)])
        confidences = [values(rows, "confidence", level).dropna().to_numpy() for level in LEVELS]
        boxes.boxplot(
            confidences,
            widths=0.5,
            medianprops={"color": COLOURS[1], "linewidth": 1.5},
            flierprops={"markersize": 3.5, "markeredgecolor": COLOURS[6]},
        )
        boxes.set_xticks(range(1, len(LEVELS) + 1), list(ROI_NAMES.values()))
        boxes.set_title("Confidence by level", fontsize=9)
        boxes.set_ylabel("confidence")
        axis = fig.add_subplot(grid[1, len(LEVELS) :])
        own = rows[(rows["subject"] == settings.level) & rows["metric"].isin(["entropy", "confidence"])]
        pairs = own.pivot_table(index="case_id", columns="metric", values="value")
        pairs = pairs.reindex(columns=["entropy", "confidence"]).dropna()
        known = anatomies(rows)
        for anatomy, (colour, marker) in LOOKS.items():
            dots = pairs[pairs.index.map(known) == anatomy]
            if len(dots):
                label = f"{anatomy} (n = {len(dots)})"
                axis.plot(
                    dots["entropy"], dots["confidence"], marker, color=colour, markersize=4, alpha=0.6, label=label
                )
        if len(pairs):
            axis.legend(fontsize=8)
        axis.set_title(f"{ROI_NAMES[settings.level]}: confidence against entropy", fontsize=9)
        axis.set_xlabel(f"entropy, {MEASURES['entropy'].unit}")
        axis.set_ylabel("confidence")
    return path


def plot_levels(rows: pd.DataFrame, settings: RiskSettings, path: Path) -> Path:
    """Plot the deciding measure along the levels, a line per study by anatomy; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = anatomies(rows)
    with figure(path, 7.2, 3.4) as fig:
        axis = fig.subplots()
        own = rows[(rows["metric"] == settings.measure) & rows["subject"].isin(LEVELS)]
        wide = own.pivot_table(index="case_id", columns="subject", values="value").reindex(columns=list(LEVELS))
        for anatomy, (colour, _) in LOOKS.items():
            lines = wide[wide.index.map(known) == anatomy]
            for number, (_, line) in enumerate(lines.iterrows()):
                label = f"{anatomy} (n = {len(lines)})" if number == 0 else None
                axis.plot(range(len(LEVELS)), line.to_numpy(float), color=colour, linewidth=1, alpha=0.45, label=label)
        axis.set_xticks(range(len(LEVELS)), list(ROI_NAMES.values()))
        axis.set_ylabel(f"{settings.measure}, {MEASURES[settings.measure].unit}")
        axis.legend(fontsize=8)
    return path
