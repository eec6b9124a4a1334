"""What readers decided about the cases, which counts more than what came with them."""

from collections.abc import Sequence
from typing import TypeVar

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.catalog import Catalog
from med_assets.dataset.stage import unlabelled
from med_assets.records import CaseScore, DatasetCase, PreparedCase, ReaderDecision
from med_assets.settings import Settings

S = TypeVar("S", bound=CaseScore)


def decided(ws: Settings, program_name: str) -> dict[str, str]:
    """The newest decision by case, of the version of the case that is in the dataset: a corrected case is read again."""
    versions = current_versions(ws, program_name)
    return {
        row.case_id: row.decision
        for row in Catalog(ws, program_name).rows(ReaderDecision)
        if versions.get(row.case_id) == row.version
    }


def current_versions(ws: Settings, program_name: str) -> dict[str, str]:
    """The version that counts of each case of the dataset, and of those to predict."""
    cases: list[DatasetCase | PreparedCase] = [
        *Catalog(ws, program_name).dataset().cases,
        *unlabelled(ws, program_name),
    ]
    return {case.case_id: case.version for case in cases}


def with_reader_decisions(ws: Settings, program_name: str, scores: Sequence[S]) -> list[S]:
    """The scores with what readers decided in them; as they are in a program without screening."""
    chosen = program.get(program_name)
    if not isinstance(chosen, Screens):
        return list(scores)
    return chosen.screening().with_reader_decisions(scores, decided(ws, program_name))
