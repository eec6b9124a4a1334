"""The report for people: which model is used, its cases, what came in, what was refused and why, and the splits."""

from collections.abc import Iterable

from med_assets.catalog import Catalog, export_tables
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analyse, learning_curves, sweeps
from med_assets.evaluation.aggregates import Aggregate, aggregate, cell
from med_assets.program import Metric
from med_assets.promotion.rules import TOO_FEW
from med_assets.records import AggregateScore, Champion, Checkpoint, DatasetCase, Threshold
from med_assets.reporting.html import Highlight, render_report
from med_assets.reporting.report_facts import ReportFacts, ShownModel, gather, report_path
from med_assets.reporting.sections import SECTIONS
from med_assets.requested_records import Fold
from med_assets.settings import Settings
from med_assets.storage.files import digest, file_sha256
from med_assets.storage.provenance import provenance
from med_assets.storage.result import StageResult
from med_assets.storage.versions import versioned

MARK = "synthetic: no number here says anything about patients"
"""Words by which a report of synthetic cases is known."""


def synthetic_parts(ws: Settings, program_name: str) -> dict[str, int]:
    """What of a report is made of synthetic cases, with how many: cases, checkpoints, thresholds, cross-validations."""
    catalog = Catalog(ws, program_name)
    found = {
        "cases": sum(row.synthetic for row in catalog.rows(DatasetCase)),
        "checkpoints": sum(row.synthetic for row in catalog.rows(Checkpoint)),
        "thresholds": len({row.experiment for row in catalog.rows(Threshold) if row.synthetic}),
        "cross-validations": len({row.experiment for row in catalog.rows(Fold) if row.synthetic}),
        "learning curves": learning_curves.synthetic(ws, program_name),
        "sweeps": sum(one.synthetic for one in sweeps.recorded(ws, program_name)),
        "analyses": analyse.synthetic(ws, program_name),
    }
    return {part: n for part, n in found.items() if n}


@versioned("11")
def report(ws: Settings, program_name: str) -> StageResult:
    """Write `reports/<program>/report.html` from what is recorded, and return its path, plots and hash.

    The copy of the tables for DuckDB clients, `catalog.duckdb`, is written anew too. Nothing is predicted or scored: the report counts the cases without scores, and names the command that scores them. Raises
    ConfigurationError for synthetic cases in a report that is not for a demo.
    """
    synthetic = synthetic_parts(ws, program_name)
    if synthetic and ws.purpose != "demo":
        raise ConfigurationError(
            f"{program_name}: expected no synthetic case in a report for {ws.purpose}, got {synthetic}; withdraw them and make "
            "what they were part of again, or set MED_ASSETS_PURPOSE=demo for a home without patients"
        )
    facts = gather(ws, program_name)
    sections = [section for write in SECTIONS for section in write(facts)]
    shown = facts.shown
    path = report_path(ws, program_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    render_report(
        path,
        facts.program.title,
        sections,
        provenance()
        | {
            "dataset_version": facts.dataset_version,
            "checkpoint": shown.checkpoint if shown else None,
            "purpose": ws.purpose,
            "profile": ws.profile,
            "synthetic_cases": synthetic.get("cases", 0),
        },
        subtitle=facts.program.description,
        highlights=_highlights(facts),
        warning=_warning(ws, synthetic, len(facts.cases)),
    )
    export_tables(ws)
    return StageResult(
        data_version=digest(file_sha256(path)),
        counts={"cases": len(facts.cases), "quarantined": len(facts.refused)},
        summary={
            "path": str(path.relative_to(ws.home)),
            "champion": shown.experiment if shown and shown.promoted else None,
        },
        images={image.stem: image for section in sections if section.shown_with_run for image in section.images},
    )


def _highlights(facts: ReportFacts) -> list[Highlight]:
    """The numbers at the top: cases, the model, and its primary metric by split beside that of the baseline."""
    n_refused = len(facts.refused)
    cases = Highlight("Accepted cases", str(len(facts.cases)), f"{n_refused} refused", "warn" if n_refused else "plain")
    if facts.shown is None:
        return [cases, Highlight("Champion", "none", "no experiment has been evaluated", "warn")]
    return [cases, _model(facts, facts.shown), *_primary_metric(facts, facts.shown)]


def _model(facts: ReportFacts, shown: ShownModel) -> Highlight:
    if not isinstance(shown.model, Champion):
        return Highlight("Best candidate", shown.experiment, "the gate has promoted none", "warn")
    if shown.model.reason.startswith(TOO_FEW):
        return Highlight("Champion", shown.experiment, f"{TOO_FEW}: promoted by the demo's policy", "warn")
    return Highlight("Champion", shown.experiment, "promoted by the gate", "good")


def _primary_metric(facts: ReportFacts, shown: ShownModel) -> Iterable[Highlight]:
    metric, baseline = facts.program.primary_metric, facts.program.baseline
    ours = aggregate(facts.name, shown.recorded.rows)
    theirs = facts.catalog.rows(AggregateScore, baseline) if baseline else []
    for split in ("val", "test"):
        mean, _, interval = _cell(ours, split, metric).partition(" ")
        if mean:
            other = _cell(theirs, split, metric).partition(" ")[0]
            against = f"; {baseline}: {other}" if other and baseline != shown.experiment else ""
            label = ", ".join(filter(None, (metric.name, split, metric.shown_unit)))
            yield Highlight(label, mean, f"{interval}{against}")


def _cell(aggregates: Iterable[Aggregate | AggregateScore], split: str, metric: Metric) -> str:
    key = (split, metric.name, metric.subject)
    return next((cell(row) for row in aggregates if (row.split, row.metric, row.subject) == key), "")


def _warning(ws: Settings, synthetic: dict[str, int], total: int) -> str:
    sentences = []
    if cases := synthetic.get("cases"):
        sentences.append(f"{cases} of {total} cases are {MARK}.")
    elif synthetic:
        sentences.append(f"{' and '.join(synthetic)} of this report are {MARK}.")
    if ws.profile != "full":
        sentences.append(f"Trained with the profile {ws.profile}, which is far smaller than the full one.")
    return " ".join(sentences)
