"""Figure of a metric by subgroup."""

from collections.abc import Sequence
from pathlib import Path

from med_assets.evaluation.subgroups import SubgroupAggregate
from med_assets.program import Metric
from med_assets.reporting.style import INK, MUTED, colour, figure


def plot_subgroups(path: Path, rows: Sequence[SubgroupAggregate], *, metric: Metric, split: str) -> Path:
    """Plot the mean of a metric in each subgroup with its interval, in the order of `rows`, one colour a fact; return `path`.

    A subgroup without a score is listed with the reason. Raises ValueError where there are no rows.
    """
    if not rows:
        raise ValueError("expected at least one subgroup, got none")
    facts = list(dict.fromkeys(row.fact for row in rows))
    with figure(path, 8.0, 1.3 + 0.42 * len(rows)) as fig:
        axis = fig.subplots()
        for place, row in enumerate(reversed(rows)):
            if row.mean is None:
                text = row.note or "undefined"
                axis.text(
                    0.5,
                    place,
                    text,
                    transform=axis.get_yaxis_transform(),
                    color=MUTED,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                )
                continue
            tone = colour(facts.index(row.fact))
            if row.low is not None and row.high is not None:
                axis.plot([row.low, row.high], [place, place], color=tone, linewidth=2.4, solid_capstyle="butt")
            axis.plot(row.mean, place, marker="o", markersize=7, color=tone)
            axis.annotate(
                f"{row.mean:.3g}   n={row.n}", (row.mean, float(place)), xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=8, color=INK,
            )  # fmt: skip
        axis.set_yticks(range(len(rows)), [f"{row.fact}: {row.subgroup}" for row in reversed(rows)])
        axis.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
        axis.set_ylim(-0.6, len(rows) - 0.2)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.12)
        better = "lower is better" if metric.lower_is_better else "higher is better"
        axis.set_xlabel(f"{metric.label}, {split}: mean and 95% interval; {better}")
    return path
