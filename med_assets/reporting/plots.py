"""Pictures of trainings and of experiments side by side; those of dose are re-exported from `dose_plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from med_assets.reporting.dose_plots import plot_dose, plot_dvh
from med_assets.reporting.style import INK, MUTED, colour, figure

__all__ = ["plot_cases", "plot_dose", "plot_dvh", "plot_leaderboard", "plot_training", "plot_trend"]

LEGEND_COLUMNS = 2


def plot_training(
    path: Path,
    history: pd.DataFrame,
    panels: Mapping[str, Sequence[str]],
    *,
    step: str = "epoch",
    best: float | None = None,
    title: str = "",
    logarithmic: bool = False,
) -> Path:
    """Plot columns of a training history over `step`, one panel per entry of `panels` (label: columns); return `path`.

    Columns that the history lacks are left out, and a panel without columns too. `best` marks the chosen epoch.
    With `logarithmic` a panel whose values are all above 0 has a logarithmic axis.
    Raises ValueError when nothing is left to plot.
    """
    drawn = {label: [name for name in names if name in history] for label, names in panels.items()}
    drawn = {label: names for label, names in drawn.items() if names}
    if not drawn or step not in history:
        raise ValueError(f"expected columns {step!r} and some of {dict(panels)}, got {list(history.columns)}")
    # The legend stands below its panel, where no line can run through it.
    lines = max(len(names) for names in drawn.values()) + (best is not None)
    with figure(path, 4.6 * len(drawn) + 0.4, 3.2 + 0.21 * -(-lines // LEGEND_COLUMNS)) as fig:
        axes = fig.subplots(1, len(drawn), squeeze=False)[0]
        for axis, (label, names) in zip(axes, drawn.items(), strict=True):
            for number, name in enumerate(names):
                rows = history[[step, name]].dropna()
                marker = "o" if len(rows) <= 40 else None
                axis.plot(
                    rows[step],
                    rows[name],
                    color=colour(number),
                    linewidth=1.8,
                    marker=marker,
                    markersize=3.5,
                    label=name,
                )
            if best is not None:
                axis.axvline(best, color=MUTED, linewidth=1, linestyle=":", label=f"kept ({step} {best:g})")
            axis.set(title=label, xlabel=step)
            if logarithmic and bool((history[names].min() > 0).all()):
                axis.set_yscale("log")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(
                fontsize=8, ncols=LEGEND_COLUMNS, loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0, columnspacing=1.2
            )  # fmt: skip
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return path


def plot_leaderboard(
    path: Path,
    table: pd.DataFrame,
    *,
    label: str = "experiment",
    unit: str = "",
    metric: str = "",
    lower_is_better: bool = True,
    champion: str | None = None,
) -> Path:
    """Plot means with their intervals, best on top; return `path`.

    `table` has the columns `label`, `mean`, `low`, `high`, `n`; a row without interval is plotted as a point, and one
    without mean is listed as undefined. Raises ValueError for an empty table.
    """
    if table.empty:
        raise ValueError("expected at least one evaluated experiment, got an empty leaderboard")
    rows = table.sort_values("mean", ascending=lower_is_better, na_position="last").iloc[::-1].reset_index(drop=True)
    names = [f"{row[label]}  *" if row[label] == champion else str(row[label]) for _, row in rows.iterrows()]
    with figure(path, 8.0, 1.4 + 0.5 * len(rows)) as fig:
        axis = fig.subplots()
        for index, (_, row) in enumerate(rows.iterrows()):
            tone = colour(0) if row[label] == champion else colour(6)
            if pd.isna(row["mean"]):
                continue
            if pd.notna(row["low"]) and pd.notna(row["high"]):
                axis.plot([row["low"], row["high"]], [index, index], color=tone, linewidth=2.4, solid_capstyle="butt")
            axis.plot(row["mean"], index, marker="o", markersize=8, color=tone)
            axis.annotate(
                f"{row['mean']:.3g}   n={int(row['n'])}", (row["mean"], float(index)), xytext=(0, 8),
                textcoords="offset points", ha="center", fontsize=8.5, color=INK,
            )  # fmt: skip
        undefined = [index for index, (_, row) in enumerate(rows.iterrows()) if pd.isna(row["mean"])]
        for index in undefined:
            axis.text(0.5, float(index), "undefined", transform=axis.get_yaxis_transform(), color=MUTED, ha="center")
        axis.set_yticks(range(len(rows)), names)
        axis.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10)
        axis.set_ylim(-0.6, len(rows) - 0.3)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.12)
        arrow = "lower is better" if lower_is_better else "higher is better"
        axis.set_xlabel(f"{metric or 'mean'}{f' ({unit})' if unit else ''}, mean and 95% interval; {arrow}")
        if champion is not None:
            axis.set_title("* champion", fontweight="normal", color=MUTED, fontsize=9)
    return path


def plot_cases(path: Path, values: Mapping[str, Sequence[float | None]], *, unit: str = "", title: str = "") -> Path:
    """Plot every case as a dot per group (an experiment, a structure), with the median; return `path`.

    Undefined values (None or NaN) are left out, and the label of the group counts what is plotted.
    """
    import numpy as np

    defined = {name: [float(v) for v in group if v is not None and not pd.isna(v)] for name, group in values.items()}
    with figure(path, max(5.0, 0.95 * len(defined) + 1.5), 3.6) as fig:
        axis = fig.subplots()
        generator = np.random.default_rng(0)
        for index, group in enumerate(defined.values()):
            jitter = generator.uniform(-0.14, 0.14, len(group))
            axis.scatter(index + jitter, group, s=20, color=colour(0), alpha=0.65, linewidth=0)
            if group:
                middle = float(np.median(group))
                axis.plot([index - 0.26, index + 0.26], [middle, middle], color=colour(1), linewidth=2.2)
        labels = [f"{name}\nn={len(group)}" for name, group in defined.items()]
        axis.set_xticks(range(len(defined)), labels, fontsize=8.5)
        axis.set_xlim(-0.6, len(defined) - 0.4)
        axis.grid(axis="x", visible=False)
        axis.set(ylabel=unit, title=title)
    return path


def plot_trend(path: Path, table: pd.DataFrame, *, metric: str = "", unit: str = "") -> Path:
    """Plot a metric over intake batches, with intervals and control limits; return `path`.

    `table` has a row per batch in its order, with `batch`, `mean`, `low`, `high`, `n`, `lower`, `upper` (the limits) and
    `beyond`; what is None or NaN is not plotted. Raises ValueError for an empty table.
    """
    if table.empty:
        raise ValueError("expected at least one batch with a score, got none")
    rows = table.reset_index(drop=True)
    with figure(path, max(6.0, min(16.0, 0.42 * len(rows) + 2.5)), 3.6) as fig:
        axis = fig.subplots()
        limited = rows["lower"].notna()
        axis.plot(rows.index, rows["mean"].astype(float), color=colour(0), linewidth=1.2, alpha=0.6, zorder=1)
        for index, (_, row) in enumerate(rows.iterrows()):
            tone = colour(1) if row["beyond"] else colour(0) if pd.notna(row["lower"]) else colour(6)
            if pd.notna(row["low"]) and pd.notna(row["high"]):
                axis.plot([index, index], [row["low"], row["high"]], color=tone, linewidth=1.8, alpha=0.8)
            axis.plot(index, row["mean"], marker="o", markersize=6, color=tone, zorder=3)
        for side in ("lower", "upper"):
            label = "control limits" if side == "lower" and limited.any() else ""
            axis.hlines(
                rows.loc[limited, side].astype(float), rows.index[limited] - 0.4, rows.index[limited] + 0.4,
                color=MUTED, linewidth=1.3, linestyle="--", label=label,
            )  # fmt: skip
        for number, label, wanted in ((6, "baseline", ~limited), (1, "beyond the limits", rows["beyond"].astype(bool))):
            if wanted.any():
                axis.plot([], [], marker="o", linestyle="", color=colour(number), label=label)
        step = max(1, -(-len(rows) // 24))
        shown = rows.iloc[::step]
        axis.set_xticks(shown.index, [f"{row['batch'][:10]}\nn={row['n']}" for _, row in shown.iterrows()])
        axis.tick_params(axis="x", labelsize=7.5, labelrotation=90 if len(rows) > 8 else 0)
        axis.set(ylabel=unit, title=f"{metric} of the champion per batch: mean and 95% interval")
        axis.set_xlim(-0.7, len(rows) - 0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return path
