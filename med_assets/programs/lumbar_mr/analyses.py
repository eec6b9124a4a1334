"""The analyses of lumbar_mr; what each does is imported when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.evaluation.analysis import Analysis
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    from med_assets.program import ReportTable
    from med_assets.settings import Settings


@versioned("1")
def morphometrics(ws: "Settings", out: Path) -> "Sequence[ReportTable]":
    """Disc heights and squareness; the version is also that of what is measured of each case."""
    from med_assets.programs.lumbar_mr.morphometrics import morphometrics

    return morphometrics(ws)


ANALYSES = (
    Analysis(
        "morphometrics",
        "Disc heights and squareness",
        "Ratio of disc heights and squareness of the last vertebrae, of cases whose endplates are marked.",
        ("dataset",),
        morphometrics,
    ),
)
