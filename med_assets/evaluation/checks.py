"""What an evaluation warns of."""

from med_assets import program
from med_assets.capabilities import Doubts
from med_assets.catalog import Catalog
from med_assets.evaluation.finetuning import recorded
from med_assets.evaluation.stage import NO_CASE
from med_assets.records import CaseScore, EpochMetric
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def doubts(ws: Settings, program_name: str, name: str) -> CheckOutcome:
    """Warn where a program knows that the scores of an experiment mean less than they seem to."""
    catalog = Catalog(ws, program_name)
    scores, history = catalog.rows(CaseScore, name), catalog.rows(EpochMetric, name)
    chosen = program.get(program_name)
    reasons = chosen.doubts(scores, history) if isinstance(chosen, Doubts) else []
    reasons = reasons if scores else [NO_CASE]
    return CheckOutcome(
        not reasons, "; ".join(reasons) or "nothing known makes these scores doubtful", "warn", {"doubts": reasons}
    )


def fine_tuning(ws: Settings, program_name: str, name: str) -> CheckOutcome:
    """Whether an experiment is better than its initial weights, and reaches what others reached with its recipe."""
    record = recorded(ws, program_name, name)
    if record is None:
        return CheckOutcome(True, "its initial weights are random, so there is nothing to compare it with")
    reasons = [
        f"expected {check.field} of at least {check.expected_at_least:g}, got {'none' if check.got is None else format(check.got, '.4g')}"
        for check in record.checks
        if not check.passed
    ]
    measured, found = "its initial weights can't be scored here", record.improvement
    if found is not None:
        ends = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
        measured = f"formal improvement {found.mean:+.4f}{ends}, n = {found.n}"
        if record.same_weights:
            reasons.append("no epoch was better than the initial weights: its weights are those")
        elif record.recommended != record.checkpoint:
            reasons.append(f"not better than its initial weights: {measured}")
    if record.every_epoch_worse:
        reasons.append("every epoch of training was worse than the initial weights")
    return CheckOutcome(not reasons, "; ".join(reasons) or measured, "warn", dict(record.output))
