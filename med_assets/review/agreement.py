"""How far the readers of a program agree: on keeping cases, and on the finding."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from med_assets.catalog import Catalog
from med_assets.metrics.agreement import Agreement, kappa
from med_assets.records import ACCEPT, COMMENT, CORRECT, EXCLUDE, CaseVersion, ReaderDecision

USE, FINDING = "accept or exclude", "finding"
"""The two questions that readers answer."""


@dataclass(frozen=True)
class Reading:
    """The newest answer of each reader to one question, about the same images of a case."""

    question: str
    case_id: str
    patient_id: str
    answers: Mapping[str, str]

    @property
    def is_disputed(self) -> bool:
        """Whether its readers differ."""
        return len(set(self.answers.values())) > 1


@dataclass(frozen=True)
class ReaderAgreement:
    """The agreement of some readers on one question."""

    question: str
    readers: tuple[str, ...]
    agreement: Agreement


def readings(catalog: Catalog) -> list[Reading]:
    """What readers answered, newest first for each of them; decisions without a reader, of earlier versions, are left out."""
    decisions = catalog.rows(ReaderDecision)
    read = sorted({row.case_id for row in decisions})
    sent = {(row.case_id, row.version): row for row in catalog.rows(CaseVersion, where={"case_id": read})}
    answers: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    patients: dict[str, str] = {}
    for row in decisions:
        version = sent.get((row.case_id, row.version))
        if row.reader is None or row.decision in (COMMENT, CORRECT) or version is None:
            continue
        question = USE if row.decision in (ACCEPT, EXCLUDE) else FINDING
        answers[question, row.case_id, version.images_hash or row.version][row.reader] = row.decision
        patients[row.case_id] = version.patient_id
    return [
        Reading(question, case_id, patients[case_id], given)
        for (question, case_id, _), given in sorted(answers.items())
    ]


def agreements(found: list[Reading]) -> list[ReaderAgreement]:
    """Of each question the agreement of every two readers with a case in common, and of all where they are more than two."""
    result = []
    for question in (USE, FINDING):
        own = [reading for reading in found if reading.question == question]
        readers = sorted({reader for reading in own for reader in reading.answers})
        sets = [*combinations(readers, 2), *([tuple(readers)] if len(readers) > 2 else [])]
        for chosen in sets:
            common = [reading for reading in own if set(chosen) <= reading.answers.keys()]
            if common or len(chosen) > 2:
                rows = [[reading.answers[reader] for reader in chosen] for reading in common]
                agreement = kappa(rows, [reading.patient_id for reading in common], readers=len(chosen))
                result.append(ReaderAgreement(question, chosen, agreement))
    return result


def agreement_table(found: list[ReaderAgreement]) -> pd.DataFrame:
    """A row for each agreement, for people."""
    return pd.DataFrame(
        [
            {
                "question": one.question,
                "readers": ", ".join(one.readers),
                "statistic": one.agreement.statistic,
                "kappa": one.agreement.value,
                "low": one.agreement.low,
                "high": one.agreement.high,
                "n": one.agreement.n,
                "agreed": one.agreement.observed,
                "note": one.agreement.note,
            }
            for one in found
        ]
    )
