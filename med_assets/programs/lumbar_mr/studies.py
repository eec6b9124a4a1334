"""Tables of studies: the measures of each, who should be read first, and what the thresholds promise and keep."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from med_assets.program import ReportTable
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.measures import MEASURES, PUBLISHED, TRANSITIONAL, Table
from med_assets.programs.lumbar_mr.tables import number, values
from med_assets.programs.lumbar_mr.thresholds import (
    Risk,
    RiskSettings,
    Thresholds,
    fit_threshold,
    normal_cases,
    tables_of,
)
from med_assets.programs.lumbar_mr.uncertainty import shifted_levels
from med_assets.records import Threshold

if TYPE_CHECKING:
    import pandas as pd

SHIFTED = "count may be shifted at"
"""Column of the levels with a strong second peak about one level away."""

RISKS: tuple[Risk, ...] = get_args(Risk)
"""Risks of a study in the order of the dashboard."""

FLAGGED = RISKS[:2]


def wide(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row per case: case_id, then `LEVEL_MEASURE` for each level, the published measures first; NaN if undefined."""
    found = rows[rows["subject"].isin(LEVELS) & rows["metric"].isin(list(MEASURES))]
    names = [f"{level}_{name}" for level in LEVELS for name in PUBLISHED]
    names += [f"{level}_{name}" for level in LEVELS for name in MEASURES if name not in PUBLISHED]
    flat = found.assign(column=found["subject"].astype(str) + "_" + found["metric"].astype(str))
    table = flat.pivot_table(index="case_id", columns="column", values="value", dropna=False)
    return table.reindex(columns=names).rename_axis(columns=None).reset_index()


def dashboard(rows: "pd.DataFrame", settings: RiskSettings, record: Thresholds | None) -> ReportTable:
    """How many studies there are, how many of each risk, and the share that is flagged: High or Medium, of all studies.

    Studies without a risk stay in the denominator. Without thresholds no study can be flagged, and the share is undefined.
    """
    import pandas as pd

    risks: list[Risk] = [record.risk(own) if record else "Unknown" for own in tables_of(rows).values()]
    counts = {risk: risks.count(risk) for risk in RISKS}
    n, flagged = len(risks), sum(counts[risk] for risk in FLAGGED)

    def part(count: int) -> str:
        return number(100 * count / n if n else None, 1)

    table = [{"studies": "all", "number": n, "share, %": part(n)}]
    table += [{"studies": risk, "number": count, "share, %": part(count)} for risk, count in counts.items()]
    if record:
        table.append({"studies": "flagged (detection rate)", "number": flagged, "share, %": part(flagged)})
    text = (
        f"Risks by {settings.measure} at {settings.level}; {' and '.join(FLAGGED)} are flagged. The share is that of studies that the "
        f"thresholds call uncertain, not that of transitional vertebrae: only a reader finds those. {promise(record)}"
    )
    return ReportTable("Statistics dashboard", text, pd.DataFrame(table))


def statistics(rows: "pd.DataFrame") -> ReportTable:
    """Mean and standard deviation of each measure by level, and how many studies have no value."""
    import pandas as pd

    table = []
    for name, spec in MEASURES.items():
        row: dict[str, Any] = {"measure": name, "unit": spec.unit}
        undefined = 0
        for level in LEVELS:
            found = values(rows, name, level)
            known = found.dropna()
            undefined += len(found) - len(known)
            spread = number(float(known.std()) if len(known) > 1 else None, 3)
            row[level] = number(float(known.mean()) if len(known) else None, 3) + (f" ± {spread}" if spread else "")
        table.append(row | {"without a value": undefined})
    meanings = "; ".join(f"{name}: {spec.meaning}" for name, spec in MEASURES.items())
    text = (
        "Mean and standard deviation over studies, whatever their anatomy. A level that is not found has a confidence and nothing "
        f"else, so it is missing in the histograms. Boxes span the quartiles, whiskers 1.5 times that range.\n\n{meanings}."
    )
    return ReportTable("Uncertainty by level", text, pd.DataFrame(table))


def ordered(rows: "pd.DataFrame", settings: RiskSettings) -> list[tuple[str, Table, float | None]]:
    """Return each case with its uncertainty table and its deciding value, the least certain first.

    A case whose level is not found comes before all others, since nothing at all is known of it.
    """
    name, level = settings.measure, settings.level
    sign = 1 if MEASURES[name].high_is_unsure else -1
    found = [(case, table, table[level][name]) for case, table in tables_of(rows).items()]
    return sorted(found, key=lambda one: (-math.inf if one[2] is None else -sign * one[2], one[0]))


def anatomies(rows: "pd.DataFrame") -> dict[str, str]:
    """Return what is known of each case's lumbosacral transition: normal, transitional or unknown."""
    known = rows[rows["metric"] == TRANSITIONAL]
    words = {0.0: "normal", 1.0: "transitional"}
    return {
        str(case): words.get(value, "unknown") for case, value in zip(known["case_id"], known["value"], strict=True)
    }


def candidates(rows: "pd.DataFrame", settings: RiskSettings, record: Thresholds | None, most: int = 20) -> ReportTable:
    """The cases that a radiologist should see first: by the settings' measure and level, the least certain first."""
    import pandas as pd

    name, level = settings.measure, settings.level
    known = anatomies(rows)
    others = [measure for measure in PUBLISHED if measure != name]
    table = [
        {
            "rank": rank,
            "case": case,
            "risk": record.risk(own) if record else "Unknown",
            "anatomy": known.get(case, "unknown"),
        }
        | {name: number(value, 3)}
        | {f"{level} {measure}": number(own[level][measure], 3) for measure in others}
        | {SHIFTED: " ".join(shifted_levels(own))}
        for rank, (case, own, value) in enumerate(ordered(rows, settings)[:most], 1)
    ]
    text = f"The {len(table)} least certain studies by {name} at {level}: {MEASURES[name].meaning}. {promise(record)}"
    columns = ["rank", "case", "risk", "anatomy", name, *(f"{level} {measure}" for measure in others), SHIFTED]
    return ReportTable("Candidates for a radiologist", text, pd.DataFrame(table, columns=columns))


def promise(record: Thresholds | None) -> str:
    """Say what the risks rest on."""
    if record is None:
        return "There are no thresholds, since no held-out case is known to be normal: every risk is unknown."
    settings, presumed = record.settings, f", {record.presumed} of them presumed so" if record.presumed else ""
    text = (
        f"High and Medium are beyond thresholds fitted on {len(record.case_ids)} normal cases{presumed} to false-alarm rates of "
        f"{settings.high_rate:g} and {settings.medium_rate:g} (record {record.version[:12]}); so few can promise no rate below "
        f"{record.achievable_rate:.3f}."
    )
    lost = [
        word
        for word, rate in (("High", settings.high_rate), ("Medium", settings.medium_rate))
        if rate < record.achievable_rate
    ]
    return text + (f" So no study is called {' or '.join(lost)}, whatever its value." if lost else "")


def thresholds_table(fitted: Sequence[Threshold], settings: RiskSettings) -> "pd.DataFrame":
    """The thresholds at the deciding level, and how many normal test cases, which chose nothing, are beyond them."""
    import pandas as pd

    rows = []
    for one in fitted:
        if one.subject != settings.level:
            continue
        rows.append(
            {"measure": f"{one.measure}, {one.unit}", "decides": "yes" if one.measure == settings.measure else ""}
            | {"rate asked": one.rate, "threshold": number(one.value, 3) or "none"}
            | {"rate promised": number(one.promised_rate, 3), "normals": one.n}
            | {
                "false alarms, test normals": ""
                if one.flagged is None or not one.tested
                else f"{one.flagged} of {one.tested}"
            }
        )
    return pd.DataFrame(rows)


def by_level(rows: "pd.DataFrame", settings: RiskSettings) -> "pd.DataFrame":
    """Median and quartiles of the deciding measure at each level, for normal and transitional anatomy."""
    import pandas as pd

    known, table = anatomies(rows), []
    for anatomy in ("normal", "transitional", "unknown"):
        own = rows[rows["case_id"].map(known) == anatomy]
        for level in LEVELS:
            found = values(own, settings.measure, level)
            if found.empty:
                continue
            low, middle, high = (number(float(found.quantile(part)), 3) for part in (0.25, 0.5, 0.75))
            table.append(
                {"anatomy": anatomy, "level": level, "studies": len(found), "not found": int(found.isna().sum())}
                | {f"median {settings.measure}": middle, "quartiles": f"{low} to {high}" if low else ""}
            )
    return pd.DataFrame(table)


def false_alarms(rows: "pd.DataFrame", settings: RiskSettings) -> ReportTable:
    """How many normal cases are flagged by thresholds fitted on the normal cases of the other folds.

    Source: cross-conformal prediction, Vovk, Annals of Mathematics and Artificial Intelligence 74 (2015).
    """
    import pandas as pd

    normals, presumed = normal_cases(rows, settings)
    measured = tables_of(rows[rows["case_id"].isin(normals)])
    folds = {str(case): fold for case, fold in zip(rows["case_id"], rows["fold"], strict=True)}
    table = []
    for name, rate in [(name, rate) for name in MEASURES for rate in (settings.high_rate, settings.medium_rate)]:
        flags: list[bool | None] = []
        for case in normals:
            others = [measured[other][settings.level][name] for other in normals if folds[other] != folds[case]]
            flags.append(fit_threshold(name, settings.level, others, rate).flags(measured[case][settings.level][name]))
        defined = [flag for flag in flags if flag is not None]
        table.append(
            {"measure": name, "decides": "yes" if name == settings.measure else "", "rate asked for": rate}
            | {"normal cases": len(normals), "flagged": f"{sum(defined)} of {len(defined)}" if defined else ""}
            | {"share": number(sum(defined) / len(defined) if defined else None, 3)}
        )
    least = f"{1 / (len(normals) - max(_sizes(normals, folds), default=0) + 1):.3f}" if normals else "none"
    text = (
        f"Each normal case at {settings.level} against thresholds fitted on the normal cases of the other folds, each predicted by a "
        f"model that had not seen it; a level that is not found counts as flagged. {len(normals)} normal cases, {len(presumed)} of "
        f"them presumed so, since no reader labelled them; the lowest rate that can be promised in every fold is {least}."
    )
    return ReportTable("False alarms on held-out normal cases", text, pd.DataFrame(table))


def _sizes(cases: list[str], folds: Mapping[str, Any]) -> list[int]:
    return [sum(folds[case] == fold for case in cases) for fold in set(folds.values())]
