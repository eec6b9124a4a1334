"""Promotion: the gate is asked, every verdict that is new is kept, and the best challenger that passes becomes the champion,
whose deciding scores are kept."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

from med_assets import program
from med_assets.catalog import Catalog, decided_anew
from med_assets.errors import ArtifactMissing
from med_assets.promotion.champions import BY_NAME, PROMOTED, crown, current, now, version
from med_assets.promotion.gate import decide, deciding_verdict, decision_table
from med_assets.promotion.regression import record_scores
from med_assets.records import AggregateScore, Champion, Checkpoint, Verdict
from med_assets.settings import Settings
from med_assets.storage.locks import alone
from med_assets.storage.result import StageResult
from med_assets.storage.versions import versioned


@versioned("5")
def champion(ws: Settings, program_name: str, named: str | None = None) -> StageResult:
    """Promote the best challenger, or the named one, if the gate lets it; every verdict that is new is kept."""
    catalog = Catalog(ws, program_name)
    with alone(ws, f"champion-{program_name}"):
        verdicts, decision = decided_anew(ws, partial(_decide, ws, program_name, named))
        promoted = decision is not None and decision.promoted
        present = current(ws, program_name)
        if present is not None:
            with suppress(ArtifactMissing):  # the check of the champion says so
                record_scores(ws, present)
    return StageResult(
        data_version=version(ws, program_name),
        counts={"promoted": int(promoted), "evaluated": len(verdicts)},
        summary={
            "champion": present.experiment if present else None,
            "checkpoint": present.checkpoint if present else None,
            "decision": _shown(decision) if decision else {"reason": _nothing_to_decide(ws, program_name)},
        },
        tables={"history": catalog.frame(Champion), "decisions": decision_table(verdicts)},
    )


def _decide(ws: Settings, program_name: str, named: str | None) -> tuple[list[Verdict], Verdict | None]:
    """The verdicts, and the one that decides, whose challenger is the champion by now where it says so.

    Raises Conflict where another machine made a champion meanwhile.
    """
    catalog = Catalog(ws, program_name)
    decided_on = catalog.stamp(Champion)
    verdicts = decide(ws, program_name, named)
    history = catalog.rows(Verdict)
    newest = {verdict.challenger: replace(verdict, decided_at=None) for verdict in history}
    changed = [verdict for verdict in verdicts if not _stands(newest.get(verdict.challenger), verdict)]
    if changed or not history:
        catalog.append(Verdict, [replace(verdict, decided_at=now()) for verdict in changed])
    decision = deciding_verdict(verdicts)
    if decision is not None and decision.promoted:
        [newest_checkpoint] = catalog.rows(Checkpoint, decision.challenger)
        model = replace(newest_checkpoint, checkpoint=decision.checkpoint)
        crown(ws, model, BY_NAME if named else PROMOTED, decision.reason or "", decided_on)
    return verdicts, decision


def _stands(before: Verdict | None, verdict: Verdict) -> bool:
    """Whether the last verdict on an experiment holds: nothing changed, or it made this champion, before which nobody new came since.

    A gate that is asked once more, as after a run that died at its end, would else have another history than one that was asked once.
    """
    if before is None or verdict == before:
        return before is not None
    return before.promoted and before.checkpoint == verdict.checkpoint and verdict.challengers == 0


def _shown(decision: Verdict) -> dict[str, str | float | int | bool | None]:
    """A decision as metadata; its time is in the history."""
    return {name: value for name, value in decision.row().items() if name != "decided_at"}


def _nothing_to_decide(ws: Settings, program_name: str) -> str:
    """Why no experiment was put before the gate."""
    baseline = program.get(program_name).baseline
    if baseline and Catalog(ws, program_name).rows(AggregateScore, baseline):
        return f"only the baseline {baseline} is evaluated, which others are compared with; train and evaluate another experiment"
    return "no experiment has a validation score yet"
