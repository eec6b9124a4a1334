"""What readers decided, in the report: which cases left the dataset or entered it again, by whom and when, and how far they agree."""

from collections.abc import Iterable

import pandas as pd

from med_assets.records import COMMENT, ReaderDecision
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import ReportFacts
from med_assets.review.agreement import agreement_table, agreements, readings
from med_assets.review.decisions import answers_of, is_excluded

LEFT, ENTERED = "left the dataset", "entered it again"


def effects(facts: ReportFacts) -> list[tuple[ReaderDecision, str]]:
    """Every decision that moved a case out of the dataset or into it again, newest first, and what it did."""
    answers = answers_of(facts.name)
    before: dict[str, list[ReaderDecision]] = {}
    found = []
    for row in facts.catalog.rows(ReaderDecision):
        earlier = before.setdefault(row.case_id, [])
        was, now = is_excluded(earlier), is_excluded([*earlier, row])
        if (row.decision in answers and answers[row.decision].withdraws) or (now and not was):
            found.append((row, LEFT))
        elif was and not now:
            found.append((row, ENTERED))
        earlier.append(row)
    return sorted(found, key=lambda one: one[0].read_at, reverse=True)


def reader_decisions(facts: ReportFacts) -> Iterable[Section]:
    """Which cases left the dataset or entered it again, by whom and when, and what is decided beside."""
    rows = [row for row in facts.catalog.rows(ReaderDecision) if row.decision != COMMENT]
    if not rows:
        return
    moved = effects(facts)
    out = facts.catalog.excluded()
    scored = {row.case_id for row in facts.shown.recorded.rows} if facts.shown else set[str]()
    counts = pd.Series([row.decision for row in rows]).value_counts()
    text = (
        f"{len(rows)} decisions on {len({row.case_id for row in rows})} cases by {len({row.reader or '' for row in rows})} readers: "
        f"{', '.join(f'{n} {decision}' for decision, n in counts.items())}. Excluded now: {len(out)}; they are in no dataset, and in the scores of "
        f"no model that is evaluated from then on. In the scores of this report, which follow with the next evaluation: {len(out & scored)} of them."
    )
    table = pd.DataFrame(
        [
            {
                "case": row.case_id,
                "what happened": what,
                "decision": row.decision,
                "reader": row.reader or "unknown",
                "time": row.read_at,
                "reason": row.note,
            }
            for row, what in moved
        ]
    )
    yield Section("Reader decisions", text, table if len(table) else None)


def agreement(facts: ReportFacts) -> Iterable[Section]:
    """How far readers agree."""
    if found := agreements(readings(facts.catalog)):
        text = (
            "Agreement beyond chance between readers on the same images, the newest answer of each: Cohen's kappa of two, Fleiss' kappa of more; "
            "1 is full agreement, 0 that of chance. Intervals of 95 % are by bootstrap over patients. Agreed: share of pairs of readers with one answer."
        )
        yield Section("Agreement between readers", text, agreement_table(found))
