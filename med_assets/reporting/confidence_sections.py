"""Section about whether predictions of the model that the report shows are to be trusted."""

from collections.abc import Iterable

import pandas as pd

from med_assets.evaluation.confidence import confidence_table, curves
from med_assets.records import Calibration, CaseConfidence
from med_assets.reporting.confidence_plots import plot_risk_coverage
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import ReportFacts


def confidence(facts: ReportFacts) -> Iterable[Section]:
    """How well the model's confidence sorts its cases, how it was calibrated, and the cases that are flagged."""
    if (shown := facts.shown) is None:
        return
    known = [row for row in facts.catalog.rows(Calibration, shown.experiment) if row.checkpoint == shown.checkpoint]
    rows = [row for row in facts.catalog.rows(CaseConfidence, shown.experiment) if row.checkpoint == shown.checkpoint]
    if not known:
        return
    calibration, metric = known[0], facts.program.primary_metric
    found = curves(facts.name, shown.recorded.rows, rows)
    agreed = curves(facts.name, shown.recorded.rows, rows, "agreement")
    limit = (
        ""
        if calibration.acceptable is None
        else f" A prediction is acceptable from {metric.name} {calibration.acceptable:g}{metric.after}."
    )
    apart = (
        ""
        if calibration.agreement_definition is None
        else f" Agreement: {calibration.agreement_definition}; {calibration.agreement_note}."
    )
    far = (
        f"A case is out of distribution beyond the distance of {calibration.distance_limit:.3g} SD from its nearest training cases."
        if calibration.distance_limit is not None
        else f"Whether a case is out of distribution is undefined: {calibration.n_train} training cases with facts are too few."
    )
    text = (
        f"Confidence: {calibration.definition}. {calibration.note[0].upper()}{calibration.note[1:]}.{apart}{limit} {far}\n\nAURC: area under the "
        "risk-coverage curve, the mean loss of the k surest cases, averaged over k, with its 95 % interval over patients; below the mean loss the confidence "
        "sorts the cases. The validation cases were calibrated on; the other splits took no part."
    )
    images, captions = [], []
    if found:
        path = facts.folder / "plots" / "risk_coverage.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append(
            plot_risk_coverage(
                path, found | {f"{split}, agreement": curve for split, curve in agreed.items()}, metric=metric
            )
        )
        captions.append(f"Mean loss of {shown.experiment} over the share of cases that it is surest of.")
    yield Section("Confidence", text, confidence_table(rows, found, agreed), images, captions)
    if flagged := [row for row in rows if row.flags]:
        table = pd.DataFrame([{"case": row.case_id, "split": row.split, "do not trust": row.flags} for row in flagged])
        yield Section(
            "Cases not to trust", f"{len(flagged)} of {len(rows)} held-out cases are flagged.", table, folded=True
        )
