"""The audit of a dataset as a record for machines: pairs of image and label, what was left out, and facts with their flags.

A fact is flagged where its value fails an expectation of the audit: a warning for a case of the dataset, an error for a case that
was refused for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from med_assets import program
from med_assets.capabilities import AuditSections
from med_assets.catalog import Case, Catalog, FactValue
from med_assets.preparation.audit import facts_flagged
from med_assets.program import Fact
from med_assets.settings import Settings


@dataclass(frozen=True)
class FactAudit:
    """One fact over the cases of a dataset."""

    unit: str
    values: Mapping[str, float] | Mapping[str, int]
    """`least`, `median` and `greatest` of a number, else how many cases have each value; empty where it is of one case only."""
    unknown: int
    """Cases of which it is not known."""
    flagged: int
    """Cases of the dataset whose value fails an expectation that warns."""
    refused: int
    """Cases that are not in the dataset because of it."""


@dataclass(frozen=True)
class DataAudit:
    """The audit of a dataset."""

    pairs: int
    """Cases with a label that are in it."""
    skipped: Mapping[str, int]
    """Those that are not, by the code of the reason."""
    sections: Mapping[str, Mapping[str, FactAudit]]
    """Facts by section and name, as the program's `audit_sections` say."""

    def fields(self) -> dict[str, object]:
        """The fields of `data_audit` in a record: each section is one."""
        facts = {name: {fact: asdict(one) for fact, one in section.items()} for name, section in self.sections.items()}
        return {"pairs": self.pairs, "skipped": dict(self.skipped), **facts}


def data_audit(ws: Settings, program_name: str) -> DataAudit:
    """The audit of a program's present dataset."""
    catalog, chosen = Catalog(ws, program_name), program.get(program_name)
    cases, refused = catalog.described(), catalog.quarantined()
    own = {case.artifact for case in cases}
    warned = Counter(
        name for row in catalog.prepared() if row.artifact in own for name in facts_flagged(row.warnings or "")
    )
    missed = Counter(name for row in refused for name in facts_flagged(row.reason or ""))
    sections = chosen.audit_sections if isinstance(chosen, AuditSections) else {}
    return DataAudit(
        len(cases),
        dict(sorted(Counter(str(row.reason_code) for row in refused).items())),
        {
            section: {name: _audit(chosen.facts[name], cases, name, warned[name], missed[name]) for name in names}
            for section, names in sections.items()
        },
    )


def _audit(fact: Fact, cases: Sequence[Case], name: str, flagged: int, refused: int) -> FactAudit:
    known = [value for case in cases if (value := case.facts.get(name)) is not None and value == value]
    return FactAudit(fact.unit, _values(fact, known), len(cases) - len(known), flagged, refused)


def _values(fact: Fact, known: Sequence[FactValue]) -> Mapping[str, float] | Mapping[str, int]:
    if not known or fact.of_one_case:
        return {}
    if fact.type in (int, float):
        numbers = sorted(float(value) for value in known if value is not None)
        return {"least": numbers[0], "median": median(numbers), "greatest": numbers[-1]}
    return dict(sorted(Counter(str(value).lower() if fact.type is bool else str(value) for value in known).items()))
