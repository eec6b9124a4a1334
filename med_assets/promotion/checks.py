"""What the gate of promotion answered last."""

from med_assets.promotion.gate import deciding_verdict, decisions
from med_assets.settings import Workspace
from med_assets.storage.result import CheckOutcome


def champion_regression(ws: Workspace, program_name: str) -> CheckOutcome:
    """The last challenger was not refused by the gate."""
    last = deciding_verdict(decisions(ws, program_name))
    if last is None:
        return CheckOutcome(True, "no challenger yet")
    names = (
        "challenger",
        "reference",
        "improved",
        "regressed",
        "matches_reference",
        "mean",
        "low",
        "high",
        "n",
        "n_patients",
        "p",
        "p_adjusted",
        "challengers",
        "detectable",
        "guards",
    )
    values = last.row()
    return CheckOutcome(not last.refused, str(last.reason), "warn", {name: values[name] for name in names})
