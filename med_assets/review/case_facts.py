"""What the page of a case shows, read from the tables: what it is, its facts, scores, provenance and history."""

from collections.abc import Sequence
from dataclasses import dataclass

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.promotion.champions import shown
from med_assets.records import CaseScore, CaseVersion, DatasetCase, PreparedCase, SplitAssignment
from med_assets.review.explain import history


@dataclass(frozen=True)
class FactLine:
    """A measured fact for people: name, value with its unit, and meaning."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class ScoreLine:
    """A score of a case for people."""

    experiment: str
    metric: str
    subject: str
    value: str
    convention: str
    passed: bool | None


@dataclass(frozen=True)
class CaseFacts:
    """A case as it is now; `prepared` and `member` are None where it was not prepared, or is not in the dataset."""

    program: str
    title: str
    case_id: str
    versions: Sequence[CaseVersion]
    prepared: PreparedCase | None
    member: DatasetCase | None
    assignment: SplitAssignment | None
    facts: Sequence[FactLine]
    scores: Sequence[ScoreLine]
    model: str
    """The experiment whose scores are shown first: the champion's, else the best candidate's; empty for none."""
    history: Sequence[str]

    @property
    def newest(self) -> CaseVersion:
        """What was sent last."""
        return self.versions[-1]

    @property
    def provenance(self) -> dict[str, str]:
        """What the case is made of, by what it is."""
        newest, prepared, member = self.newest, self.prepared, self.member
        found = {
            "patient (pseudonym)": newest.patient_id,
            "batch": newest.batch,
            "version sent last": newest.version,
            "version in the dataset": member.version if member else "",
            "DICOM instances": str(newest.n_instances),
            "content hash": newest.content_hash,
            "de-identified files": newest.artifact,
            "profile of de-identification": newest.deidentified_by or "",
            "prepared arrays": prepared.artifact if prepared else "",
            "split that its sender gave": newest.given_split or "",
        }
        return {what: text for what, text in found.items() if text}


def case_facts(catalog: Catalog, case_id: str) -> CaseFacts | None:
    """All that the page of a case shows; None for a case that is unknown."""
    of_case = {"case_id": [case_id]}
    versions = sorted(catalog.rows(CaseVersion, where=of_case), key=lambda row: row.batch)
    if not versions:
        return None
    prepared = catalog.rows(PreparedCase, versions[-1].batch, where=of_case)
    member = next(iter(catalog.rows(DatasetCase, where=of_case)), None)
    model, _ = shown(catalog.ws, catalog.program)
    return CaseFacts(
        program=catalog.program,
        title=program.get(catalog.program).title,
        case_id=case_id,
        versions=versions,
        prepared=prepared[-1] if prepared else None,
        member=member,
        assignment=next(iter(catalog.rows(SplitAssignment, where={"patient_id": [versions[-1].patient_id]})), None),
        facts=_facts(catalog, case_id),
        scores=_scores(catalog, case_id, model.experiment if model else ""),
        model=model.experiment if model else "",
        history=history(catalog, case_id),
    )


def _facts(catalog: Catalog, case_id: str) -> list[FactLine]:
    found = sorted((row for row in catalog.facts() if row.case_id == case_id), key=lambda row: row.batch)
    if not found:
        return []
    values, specs = found[-1].values, program.get(catalog.program).facts
    return [FactLine(name, spec.written(values[name]), spec.meaning) for name, spec in specs.items()]


def _scores(catalog: Catalog, case_id: str, model: str) -> list[ScoreLine]:
    """The scores of a case, those of `model` first."""
    rows = catalog.rows(CaseScore, where={"case_id": [case_id]})
    rows.sort(key=lambda row: (row.experiment != model, row.experiment))
    return [
        ScoreLine(
            row.experiment,
            row.metric,
            row.subject,
            "undefined" if row.value is None else f"{row.value:.4g} {row.unit if row.unit != '1' else ''}".strip(),
            row.convention,
            row.passed,
        )
        for row in rows
    ]
