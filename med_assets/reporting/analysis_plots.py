"""Pictures of analyses: intervals of many models side by side, and bands along a distance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from med_assets.metrics.bootstrap import Interval
from med_assets.reporting.style import INK, colour, figure


def plot_intervals(
    path: Path,
    table: pd.DataFrame,
    *,
    series: str,
    panel: str,
    panels: Sequence[str],
    label: str,
    line: float | None = None,
) -> Path:
    """Plot means with intervals, a panel for each of `panels` and a line of it for each of `series`; return `path`.

    `table` has the columns `series`, `panel`, `mean`, `low`, `high` and `n`; rows without a mean are left out. `line` is drawn
    across, where a value means something. Raises ValueError when there is nothing to plot.
    """
    names = list(dict.fromkeys(table[series]))
    if not names or not panels:
        raise ValueError(f"expected rows with {series} and {panel}, got none")
    with figure(path, 2.0 + 2.5 * len(panels), 1.1 + 0.36 * len(names)) as fig:
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, title in zip(axes, panels, strict=True):
            of_panel = table[table[panel] == title]
            for _, row in of_panel[of_panel["mean"].notna()].iterrows():
                index = len(names) - 1 - names.index(row[series])
                if pd.notna(row["low"]) and pd.notna(row["high"]):
                    axis.plot([row["low"], row["high"]], [index, index], color=colour(0), linewidth=2.2)
                axis.plot(row["mean"], index, marker="o", markersize=6.5, color=colour(0))
                axis.annotate(
                    f"{row['mean']:.3g} (n={int(row['n'])})", (row["mean"], float(index)), xytext=(0, 6),
                    textcoords="offset points", ha="center", fontsize=7.5, color=INK,
                )  # fmt: skip
            if line is not None:
                axis.axvline(line, color=colour(1), linewidth=1.2, linestyle="--")
            axis.set(title=title, xlabel=label)
            axis.grid(axis="y", visible=False)
            axis.margins(x=0.2)
        axes[0].set_yticks(range(len(names)), list(reversed(names)))
        axes[0].tick_params(axis="y", length=0, labelcolor=INK)
        axes[0].set_ylim(-0.6, len(names) - 0.3)
    return path


def plot_bands(path: Path, bands: Mapping[str, pd.DataFrame], *, x: str, label: str, unit: str) -> Path:
    """Plot a mean and its band along `x` for each entry of `bands`, whose tables have `x`, `mean`, `low` and `high`; return `path`."""
    with figure(path, 7.2, 4.0) as fig:
        axis = fig.subplots()
        for number, (name, rows) in enumerate(bands.items()):
            axis.fill_between(rows[x], rows["low"], rows["high"], color=colour(number), alpha=0.18, linewidth=0)
            axis.plot(rows[x], rows["mean"], color=colour(number), linewidth=1.8, marker="o", markersize=4, label=name)
        axis.set(xlabel=label, ylabel=unit)
        axis.set_ylim(bottom=0)
        if bands:
            axis.legend()
    return path


def plot_lines(
    path: Path,
    lines: Mapping[str, pd.DataFrame],
    *,
    reference: tuple[str, pd.DataFrame],
    label: str,
    unit: str,
    title: str,
) -> Path:
    """Plot lines of tables with `x` and `y`, and one dashed reference to read them by; return `path`."""
    with figure(path, 7.2, 4.0) as fig:
        axis = fig.subplots()
        name, rows = reference
        axis.plot(rows["x"], rows["y"], color=INK, linewidth=2, linestyle="--", label=name)
        for number, (name, rows) in enumerate(lines.items()):
            axis.plot(rows["x"], rows["y"], color=colour(number), linewidth=1.8, marker="o", markersize=4, label=name)
        axis.set(xlabel=label, ylabel=unit, title=title)
        axis.set_ylim(bottom=0)
        axis.legend()
    return path


def plot_learning_curve(
    path: Path,
    table: pd.DataFrame,
    *,
    label: str,
    logarithmic: bool,
    line: Sequence[tuple[float, float]] = (),
    twice: tuple[int, Interval] | None = None,
) -> Path:
    """Plot the score against the number of training patients with intervals, the fitted line and its prediction; return `path`.

    `table` has the columns `n_patients`, `mean`, `low`, `high`; `twice` is the number of patients predicted for, and the prediction.
    """
    with figure(path, 6.4, 4.0) as fig:
        axis = fig.subplots()
        axis.set_xscale("log", base=2)
        if logarithmic:
            axis.set_yscale("log")
        if line:
            axis.plot(*zip(*line, strict=True), color=colour(1), linewidth=1.4, linestyle="--", label="power law")
        rows = table[table["mean"].notna()]
        for _, row in rows[rows["low"].notna() & rows["high"].notna()].iterrows():
            axis.plot([row["n_patients"]] * 2, [row["low"], row["high"]], color=colour(0), linewidth=2)
        axis.plot(rows["n_patients"], rows["mean"], color=colour(0), marker="o", linewidth=1, label="measured")
        ticks = [int(one) for one in rows["n_patients"]]
        n, found = twice or (0, None)
        if found is not None and found.mean is not None:
            if found.low is not None and found.high is not None:
                axis.plot([n, n], [found.low, found.high], color=colour(1), linewidth=2)
            axis.plot([n], [float(found.mean)], color=colour(1), marker="D", linestyle="", label=f"predicted for {n}")
            ticks.append(n)
        axis.set_xticks(ticks, [str(one) for one in ticks])
        axis.minorticks_off()
        if logarithmic and len(rows):
            from matplotlib.ticker import MaxNLocator, ScalarFormatter

            axis.yaxis.set_major_locator(MaxNLocator(6))
            axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.set(xlabel="training patients", ylabel=label)
        axis.legend()
    return path
