"""The analyses of rt_dose; what each does is imported when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.analysis import Analysis

if TYPE_CHECKING:
    from med_assets.program import ReportTable
    from med_assets.settings import Workspace


def _gamma_by_region(ws: "Workspace", out: Path) -> "Sequence[ReportTable]":
    from med_assets.programs.rt_dose.gamma_by_region import gamma_by_region

    return gamma_by_region(ws, out)


ANALYSES = (
    Analysis(
        "gamma_by_region",
        "Gamma by region",
        "Gamma passing rates of all evaluated experiments near targets, in organs at risk and elsewhere, with intervals.",
        ("evaluation",),
        "1",
        _gamma_by_region,
    ),
)
