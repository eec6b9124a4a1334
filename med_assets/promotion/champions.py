"""The history of champions: the promoted checkpoint, which changes only through a written gate or by a person's rollback.

Every change is kept, oldest first; the last is the champion.
"""

from datetime import UTC, datetime

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.deidentification.audit_trail import Kind
from med_assets.deidentification.audited_rows import write_row
from med_assets.errors import ConfigurationError
from med_assets.evaluation.comparison import SPLIT
from med_assets.evaluation.segmentation_files import IMPORTED
from med_assets.records import AggregateScore, Champion, Checkpoint
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.lake import ANY, Expected
from med_assets.storage.locks import alone

PROMOTED, BY_NAME, ROLLED_BACK = "promoted", "promoted by name", "rolled back"
"""What changed the champion: the gate alone, a person's wish that passed the gate, or a person's rollback."""

ACCEPTED = "scores accepted"
"""A person holds the same champion to its present scores."""


def current(ws: Settings, program_name: str) -> Champion | None:
    """The champion, or None before the first promotion."""
    return Catalog(ws, program_name).champion()


def shown(ws: Settings, program_name: str) -> tuple[Champion | Checkpoint | None, bool]:
    """The checkpoint that people are shown, the champion or else the best candidate, and whether it is the champion."""
    if (champion := current(ws, program_name)) is not None:
        return champion, True
    best = best_candidate(ws, program_name)
    return (Catalog(ws, program_name).checkpoint(best.experiment) if best else None), False


def version(ws: Settings, program_name: str) -> str:
    """Data version of the champion: it changes when the champion does."""
    champion = current(ws, program_name)
    return digest(champion.checkpoint if champion else None)


def rolled_back(ws: Settings, program_name: str) -> dict[str, Champion]:
    """Checkpoints that were rolled back and not promoted again since, each with the rollback."""
    found: dict[str, Champion] = {}
    previous = None
    for row in Catalog(ws, program_name).champions():
        if row.action == ROLLED_BACK and previous is not None:
            found[previous.checkpoint] = row
        found.pop(row.checkpoint, None)
        previous = row
    return found


def candidates(ws: Settings, program_name: str) -> list[AggregateScore]:
    """The evaluated experiments, the baseline and imported predictions aside, best first by the mean of the primary metric on the deciding split."""
    chosen = program.get(program_name)
    metric, sign = chosen.primary_metric, 1 if chosen.primary_metric.lower_is_better else -1
    rows = [
        row
        for row in Catalog(ws, program_name).rows(AggregateScore)
        if (row.split, row.metric, row.subject) == (SPLIT, metric.name, metric.subject)
        and row.mean is not None
        and row.experiment != chosen.baseline
        and not row.checkpoint.startswith(IMPORTED)
    ]
    return sorted(rows, key=lambda row: (sign * (row.mean or 0.0), row.experiment))


def best_candidate(ws: Settings, program_name: str) -> AggregateScore | None:
    """The first of the candidates, or None."""
    return next(iter(candidates(ws, program_name)), None)


def crown(ws: Settings, model: Champion | Checkpoint, action: str, reason: str, decided_on: Expected = ANY) -> None:
    """Make a checkpoint the champion, as a new row of the history. The caller holds the lock.

    `decided_on` is the stamp of the history before it was read. Raises Conflict where another has written it since.
    """
    row = Champion(
        program=model.program,
        experiment=model.experiment,
        checkpoint=model.checkpoint,
        dataset_version=model.dataset_version,
        n_train=model.n_train,
        promoted_at=now(),
        action=action,
        reason=reason,
    )
    write_row(ws, Kind.CHAMPION, row, expected=decided_on)


def now() -> str:
    """The present time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def rollback(ws: Settings, program_name: str, reason: str, to: str | None = None) -> Champion:
    """Make an earlier champion the champion again, as a new row of the history; returns that row.

    Without `to` it is the one before the present champion, those aside that were rolled back themselves. What is rolled
    back stays in the store and in the history, and is not promoted again by itself. Raises ConfigurationError when there is
    no such champion, or no reason; ArtifactCorrupt when its bytes changed.
    """
    if not reason.strip():
        raise ConfigurationError("expected a reason for the rollback, got none; it is kept with the history")
    with alone(ws, f"champion-{program_name}"):
        decided_on = Catalog(ws, program_name).stamp(Champion)
        history, back = Catalog(ws, program_name).champions(), rolled_back(ws, program_name)
        present = history[-1].checkpoint if history else None
        earlier = [row for row in history if row.checkpoint != present]
        allowed = [row for row in earlier if (row.checkpoint == to if to else row.checkpoint not in back)]
        if not allowed:
            known = list(dict.fromkeys(row.checkpoint for row in earlier))
            wanted = f"the checkpoint of an earlier champion, got {to}" if to else "an earlier champion, found none"
            raise ConfigurationError(
                f"expected {wanted}; the champion is {present}, "
                + (
                    f"those promoted before are {known}, name one with --to"
                    if known
                    else "and none was promoted before it"
                )
            )
        chosen = allowed[-1]
        if not ws.store.has(chosen.checkpoint):
            raise ConfigurationError(
                f"expected {chosen.checkpoint} in the store, got nothing; restore it from a backup, or name another with --to"
            )
        ws.store.verify(chosen.checkpoint)
        crown(ws, chosen, ROLLED_BACK, reason.strip(), decided_on)
    return Catalog(ws, program_name).champions()[-1]
