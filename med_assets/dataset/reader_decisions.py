"""What readers decided about the cases, which counts more than what came with them."""

from collections.abc import Sequence
from typing import TypeVar

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.catalog import Catalog
from med_assets.dataset.stage import unlabelled
from med_assets.records import COMMON_DECISIONS, CaseScore, DatasetCase, PreparedCase, ReaderDecision
from med_assets.settings import Settings

S = TypeVar("S", bound=CaseScore)


def decided(ws: Settings, program_name: str) -> dict[str, str]:
    """The newest answer by case that was given on the images that the case has now, in the dataset or among those to predict.

    That a case was accepted, excluded or commented on is no answer.
    A case that was prepared, labelled or sent anew with the same pixels and positions keeps its decision; one with other images is read again.
    """
    catalog = Catalog(ws, program_name)
    decisions = [row for row in catalog.rows(ReaderDecision) if row.decision not in COMMON_DECISIONS]
    if not decisions:
        return {}
    images = {(row.case_id, row.version): row.images_hash for row in catalog.case_versions() if row.images_hash}
    versions = current_versions(ws, program_name)
    return {
        row.case_id: row.decision
        for row in decisions
        if (now := versions.get(row.case_id)) is not None
        # A version of an earlier home has no hash of its images, and is the same where it is the same version.
        and images.get((row.case_id, row.version), row.version) == images.get((row.case_id, now), now)
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
