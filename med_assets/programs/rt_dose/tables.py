"""Tables of the report: clinical limits, DVH errors and gamma rates of one model over the cases of one split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from med_assets.metrics.bootstrap import SEED, mean_with_interval
from med_assets.program import ReportTable
from med_assets.storage.record import values_of

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.catalog import Case

SHOWN_DVH = ("D99", "D95", "D1", "Dmean", "D0.1cc")
"""DVH criteria of the table; all others are in the folded table of all scores and in the lake."""

BEAM_FACTS = {
    "beams": "treatment beams",
    "arcs": "arcs among them",
    "control_points": "control points",
    "meterset_mu": "monitor units of a fraction",
    "mu_per_gy": "monitor units / prescribed dose of a fraction, MU/Gy",
    "mlc_leaf_pairs": "leaf pairs",
    "mean_aperture_cm2": "mean open area, cm2",
}
"""Facts that the table of beams sums up, and what it calls them."""


def limits(rows: "pd.DataFrame") -> ReportTable:
    """How many planned and predicted doses keep each clinical limit of the site."""
    import pandas as pd

    found = rows[rows["metric"].str.startswith("limit_")]
    table = [
        {
            "structure": subject,
            "limit": str(group["convention"].iloc[0]).partition(";")[0],
            "planned keeps it": _kept(group["passed_truth"]),
            "predicted keeps it": _kept(group["passed"]),
            "same verdict": _kept(_same(group)),
        }
        for (_, subject), group in found.groupby(["metric", "subject"], sort=False)
    ]
    text = "Cases whose dose keeps the limit, of those with the structure: the plan that was made, and the prediction."
    columns = ["structure", "limit", "planned keeps it", "predicted keeps it", "same verdict"]
    return ReportTable("Clinical limits", text, pd.DataFrame(table, columns=columns))


def _kept(verdicts: "pd.Series") -> str:
    defined = verdicts.dropna()
    return f"{int(defined.astype(bool).sum())} of {len(defined)}"


def _same(group: "pd.DataFrame") -> "pd.Series":
    both = group.dropna(subset=["passed", "passed_truth"])
    return both["passed"].astype(bool) == both["passed_truth"].astype(bool)


def dvh_errors(rows: "pd.DataFrame") -> ReportTable:
    """Mean of predicted minus planned, with its interval, by structure and criterion."""
    import pandas as pd

    found = rows[rows["metric"].isin([f"dvh_{name}" for name in SHOWN_DVH])]
    table: dict[str, dict[str, str]] = {}
    for (metric, subject), group in found.groupby(["metric", "subject"], sort=False):
        text = with_interval(group)
        if text:
            table.setdefault(str(subject), {"structure": str(subject)})[f"{str(metric)[4:]}, Gy"] = text
    columns = ["structure", *(f"{name}, Gy" for name in SHOWN_DVH)]
    text = (
        "Mean over cases of predicted minus planned, in brackets its 95 % bootstrap interval over patients: below zero, "
        "the model predicts too little dose."
    )
    return ReportTable("DVH errors", text, pd.DataFrame(list(table.values()), columns=columns).fillna(""))


def gamma_rates(rows: "pd.DataFrame") -> ReportTable:
    """Mean gamma passing rate by criterion and region, with its interval."""
    import pandas as pd

    found = rows[rows["metric"].str.startswith("gamma_")]
    table = [
        {"criterion": str(metric), "region": str(subject), "cases": int(group["value"].notna().sum())}
        | {"passing, %": with_interval(group)}
        for (metric, subject), group in found.groupby(["metric", "subject"], sort=False)
    ]
    conventions = "; ".join(str(one) for one in found["convention"].unique()) or "no case has one"
    text = f"Mean over cases, in brackets its 95 % bootstrap interval over patients. Of each case: {conventions}."
    return ReportTable("Gamma", text, pd.DataFrame(table, columns=["criterion", "region", "cases", "passing, %"]))


FALLOFF = ("gradient_measure", "R50", "gradient_mae", "gradient_mean_error", "steep_gradients")
"""Metrics of the table of the falloff, with the errors of the layer in which dose builds up."""


def falloff(rows: "pd.DataFrame") -> ReportTable:
    """How predicted doses fall off beside the planned ones, with intervals."""
    import pandas as pd

    found = rows[rows["metric"].isin(FALLOFF) | rows["subject"].str.startswith("build_up_")]
    table = [
        {
            "metric": f"{metric}, {group['unit'].iloc[0]}",
            "region": str(subject),
            "planned": _mean(group["truth"]),
            "predicted": _mean(group["prediction"]),
            "error": with_interval(group),
            "cases": int(group["value"].notna().sum()),
            "definition": str(group["convention"].iloc[0]),
        }
        for (metric, subject), group in found.groupby(["metric", "subject"], sort=False)
    ]
    text = (
        "A dose with the right volumes can still fall off as no beam makes it: too slowly, too steeply, or with spots. Mean over cases; in brackets "
        "the 95 % bootstrap interval of the error over patients."
    )
    columns = ["metric", "region", "planned", "predicted", "error", "cases", "definition"]
    return ReportTable("Falloff and build-up", text, pd.DataFrame(table, columns=columns))


def _mean(values: "pd.Series") -> str:
    defined = values.dropna().astype(float)
    return f"{defined.mean():.3g}" if len(defined) else ""


def with_interval(group: "pd.DataFrame") -> str:
    import pandas as pd

    values = [None if pd.isna(value) else float(value) for value in group["value"]]
    found = mean_with_interval(values, SEED, groups=list(group["patient_id"]))
    if found.mean is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def beams(cases: "Sequence[Case]") -> list[ReportTable]:
    """What the plans of the dataset are like: median and range of each measure of their beams; no table where no plan has beams."""
    import pandas as pd

    rows, facts = [], values_of([case.facts for case in cases], BEAM_FACTS)
    for name, fact in BEAM_FACTS.items():
        values = [value for value in facts[name] if value is not None]
        if values:
            column = pd.Series(values, dtype=float)
            shown = {"median": column.median(), "lowest": column.min(), "highest": column.max()}
            rows.append(
                {"measure": fact, **{key: f"{value:.4g}" for key, value in shown.items()}, "cases": len(values)}
            )
    if not rows:
        return []
    text = "Treatment beams of the plans, as their RTPLAN states them; angles, energies and the rest are facts of each case, leaf positions in its control_points.npy."
    return [ReportTable("Beams", text, pd.DataFrame(rows))]
