"""Sections about more than one model or case: cross-validations, learning curves, analyses and fine-tuning."""

from collections.abc import Iterable

import pandas as pd

from med_assets.evaluation import analysis, crossvalidation, finetuning, sweeps
from med_assets.evaluation import learning_curves as curves
from med_assets.evaluation import targets as target_comparisons
from med_assets.evaluation.analyse import artifact_key, read_tables
from med_assets.records import AnalysisResult, FoldScore
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import ReportFacts
from med_assets.requested_records import CurvePoint, Fold


def cross_validations(facts: ReportFacts) -> Iterable[Section]:
    """Every experiment that was cross-validated."""
    for (name,) in facts.catalog.keys(Fold):
        folds, scores = facts.catalog.rows(Fold, name), facts.catalog.frame(FoldScore, name)
        n_cases, n_patients = scores["case_id"].nunique(), scores["patient_id"].nunique()
        stale = "" if folds[0].dataset_version == facts.dataset_version else " The dataset has changed since."
        text = f"{n_cases} cases of {n_patients} patients in {len(folds)} folds. {crossvalidation.rule(folds)}.{stale}"
        yield Section(f"Cross-validation of {name}", text, crossvalidation.fold_table(folds))
        for table in crossvalidation.tables_of(facts.ws, facts.name, scores):
            title = f"{name}, cross-validated: {table.title.lower()}"
            yield Section(title, table.text, table.rows, table.images)


def learning_curves(facts: ReportFacts) -> Iterable[Section]:
    """Scores against the number of training patients."""
    for (name,) in facts.catalog.keys(CurvePoint):
        table, law, image = curves.recorded_curve(facts.ws, facts.name, name)
        versions = {point.dataset_version for point in facts.catalog.rows(CurvePoint, name)}
        stale = "" if versions == {facts.dataset_version} else " The dataset has changed since."
        text = f"{curves.answer(facts.name, law)}.{stale}\n\n{curves.RULE}. {curves.INTERVAL}."
        yield Section(f"Learning curve of {name}", text, table, [image])


def swept(facts: ReportFacts) -> Iterable[Section]:
    """Every sweep, best combination first."""
    for one in sweeps.recorded(facts.ws, facts.name):
        stale = "" if one.current else " The dataset has changed since."
        yield Section(f"Sweep of {one.experiment}: {one.fields}", f"{sweeps.RULE}.{stale}", one.rows)


def analyses(facts: ReportFacts) -> Iterable[Section]:
    """Every analysis that was made, and whether what it was made of has changed since."""
    for name, chosen in analysis.of(facts.name).items():
        for result in facts.catalog.rows(AnalysisResult, name):
            yield from _analysis(facts, chosen, result)


def _analysis(facts: ReportFacts, chosen: analysis.Analysis, result: AnalysisResult) -> Iterable[Section]:
    again = f"`med-assets analyse {facts.name} {chosen.name}` makes it again."
    if not facts.ws.store.has(result.artifact):
        yield Section(chosen.title, f"What it found is no longer in the store; {again}")
        return
    stale = ""
    if result.dataset_version != facts.dataset_version:
        stale = f"The dataset has changed since; {again}"
    elif result.artifact != artifact_key(facts.ws, facts.name, chosen):
        stale = f"Evaluations, settings or code have changed since; {again}"
    left_out = f"{result.failed} cases could not be measured; see Failures." if result.failed else ""
    for number, table in enumerate(read_tables(facts.ws.store.fetch(result.artifact))):
        title = table.title if table.title.startswith(chosen.title) else f"{chosen.title}: {table.title}"
        paragraphs = [*([] if number else [stale, left_out]), table.text]
        yield Section(title, "\n\n".join(filter(None, paragraphs)), table.rows, table.images, table.captions)


def targets(facts: ReportFacts) -> Iterable[Section]:
    """The scores, time and memory of every evaluated experiment, beside what they are held against."""
    tables = []
    for line in facts.leaderboard.lines:
        table = target_comparisons.table(target_comparisons.comparisons(facts.ws, facts.name, line.experiment))
        table.insert(0, "experiment", line.experiment)
        tables.append(table)
    if found := [table for table in tables if not table.empty]:
        yield Section("Targets", target_comparisons.ABOUT, pd.concat(found, ignore_index=True))


def fine_tuning(facts: ReportFacts) -> Iterable[Section]:
    """Experiments whose initial weights are those of another."""
    table = finetuning.table(facts.ws, facts.name)
    if not table.empty:
        yield Section("Fine-tuning", finetuning.ABOUT, table)
    published = finetuning.published_table(facts.ws, facts.name)
    if not published.empty:
        yield Section("Published runs", finetuning.PUBLISHED, published)
