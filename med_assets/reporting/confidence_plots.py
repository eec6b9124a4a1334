"""Figure of risk against coverage."""

from collections.abc import Mapping
from pathlib import Path

from med_assets.metrics.risk_coverage import RiskCoverage
from med_assets.program import Metric
from med_assets.reporting.style import MUTED, colour, figure


def plot_risk_coverage(path: Path, curves: Mapping[str, RiskCoverage], *, metric: Metric) -> Path:
    """Plot the mean loss of the surest cases over the share of them, a line per split, with the mean of all; return `path`.

    Raises ValueError where no split has a curve.
    """
    if not curves:
        raise ValueError("expected the curve of at least one split, got none")
    with figure(path, 6.4, 3.8) as fig:
        axis = fig.subplots()
        for number, (split, curve) in enumerate(curves.items()):
            found = curve.aurc
            ends = "" if found.low is None or found.high is None else f" [{found.low:.3g}, {found.high:.3g}]"
            label = f"{split}: AURC {found.mean:.3g}{ends}, n = {found.n}"
            axis.step(curve.coverage, curve.risk, where="post", color=colour(number), linewidth=1.8, label=label)
            if curve.mean_loss is not None:
                axis.axhline(curve.mean_loss, color=colour(number), linewidth=1, linestyle=":")
        axis.plot([], [], color=MUTED, linewidth=1, linestyle=":", label="mean of all cases")
        unit = f" ({metric.shown_unit})" if metric.shown_unit else ""
        what = metric.name if metric.lower_is_better else f"{metric.range.high or 0:g} - {metric.name}"
        axis.set(xlabel="share of cases, the surest first", ylabel=f"mean loss: {what}{unit}", xlim=(0, 1.01))
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    return path
