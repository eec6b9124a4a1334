"""The sections of the report, in their order. To add one, write a function from `ReportFacts` to sections and add it to SECTIONS."""

from collections.abc import Callable, Iterable

from med_assets.evaluation.aggregates import INTERVAL
from med_assets.evaluation.replicates import SPREAD
from med_assets.promotion.gate import decision_table
from med_assets.records import Failure
from med_assets.reporting import (
    confidence_sections,
    data_sections,
    evaluation_sections,
    model_sections,
    review_sections,
)
from med_assets.reporting.html import Section
from med_assets.reporting.index import links
from med_assets.reporting.report_facts import ReportFacts


def leaderboard(facts: ReportFacts) -> Iterable[Section]:
    """All evaluated experiments side by side."""
    metric, board = facts.program.primary_metric, facts.leaderboard
    text = f"Sorted by {metric.name} on validation: {metric.meaning}. Mean over cases, in brackets its interval: {INTERVAL}."
    path = facts.ws.reports / facts.program.name / "plots" / "leaderboard_with_champion.png"
    images = list(board.plot(path).values())
    yield Section("Leaderboard", text, board.tables["leaderboard"], images, shown_with_run=True)


def replicates(facts: ReportFacts) -> Iterable[Section]:
    """Trainings that differ in their seed alone."""
    if "replicates" in facts.leaderboard.tables:
        yield Section("Replicates", SPREAD, facts.leaderboard.tables["replicates"])


def experiments(facts: ReportFacts) -> Iterable[Section]:
    """Links to the index, the notebooks and the figures."""
    if found := links(facts.ws, facts.name):
        text = "Every run with its code, data, hardware, scores and command; a notebook and figures for print of each experiment."
        yield Section("Experiments", text, links=found)


def decisions(facts: ReportFacts) -> Iterable[Section]:
    """The newest verdict of the gate on every experiment."""
    if facts.verdicts:
        text = (
            "The newest verdict on every evaluated experiment, by the promotion policy of the program. Difference: paired, challenger "
            "minus reference, turned so that below 0 is better, with its 95 % interval; p: that it is not better by the "
            "margin, and adjusted over all challengers of the decision (Holm), at most 0.025 to be promoted; detectable: the difference that as "
            "many patients would have shown with a chance of 80 %."
        )
        table = decision_table(facts.verdicts).drop(columns="checkpoint")
        yield Section("Decisions of the gate", text, table, folded=True)


def failures(facts: ReportFacts) -> Iterable[Section]:
    """Cases that a model could not be applied to."""
    rows = facts.catalog.frame(Failure)
    if not rows.empty:
        text = "Cases that a model could not be applied to, with the exception; they are in no number of this report."
        yield Section("Failures", text, rows[["stage", "experiment", "case_id", "error"]])


SECTIONS: tuple[Callable[[ReportFacts], Iterable[Section]], ...] = (
    leaderboard,
    replicates,
    experiments,
    model_sections.model,
    model_sections.held_out_cases,
    model_sections.program_tables,
    model_sections.subgroups,
    confidence_sections.confidence,
    model_sections.all_scores,
    model_sections.definitions,
    model_sections.card,
    model_sections.cards,
    model_sections.screening,
    evaluation_sections.cross_validations,
    evaluation_sections.learning_curves,
    evaluation_sections.swept,
    evaluation_sections.analyses,
    evaluation_sections.fine_tuning,
    evaluation_sections.targets,
    decisions,
    model_sections.monitoring,
    data_sections.cases,
    review_sections.reader_decisions,
    review_sections.agreement,
    data_sections.program_tables,
    data_sections.held_out_warnings,
    data_sections.between_cases,
    data_sections.quarantine,
    failures,
)
"""The sections in the order of the report; a function that yields nothing has no section."""
