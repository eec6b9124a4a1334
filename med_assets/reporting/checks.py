"""The gate of the report."""

from med_assets.reporting.stage import MARK, report_path, synthetic_parts
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def synthetic_report(ws: Settings, program_name: str) -> CheckOutcome:
    """No synthetic case among what the report was made of, or the report says so and is of a demo."""
    parts = synthetic_parts(ws, program_name)
    path = report_path(ws, program_name)
    marked = path.is_file() and MARK in path.read_text(encoding="utf-8")
    counts = ", ".join(f"{name}: {n}" for name, n in parts.items()) or "nothing synthetic"
    reason = f"{counts}; the report is {'' if marked else 'not '}marked; purpose is {ws.purpose}"
    return CheckOutcome(not parts or (marked and ws.purpose == "demo"), reason, metadata={"synthetic": parts})
