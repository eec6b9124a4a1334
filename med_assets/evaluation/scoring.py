"""Scores of cases under one checkpoint: each is kept in the store by what it was made of, and made once."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.errors import CaseRejected, DiskFull, ReaderFailed, RemoteFailed, ScoringFailed
from med_assets.evaluation.predicting import PredictedCases, PreparedArrays, predict_cases
from med_assets.experiments import policies
from med_assets.intake.reader import CRASHED, RetryAlone
from med_assets.intake.reading import OUT_OF_MEMORY
from med_assets.intake.workers import Workers, side_by_side, workers_of
from med_assets.launch.ensembles import verify_model
from med_assets.launch.training import Launch, NamedModel, stored_checkpoint
from med_assets.metrics.score import Score
from med_assets.records import CaseScore, Failure
from med_assets.settings import Settings
from med_assets.storage.files import canonical_json, digest, disk_full_guard, read_json, write_json
from med_assets.storage.provenance import cases_used_by
from med_assets.storage.versions import part_of

HELD_OUT = ("val", "test", "external")
"""Splits that evaluation scores, the deciding one first."""

FILE = "scores.json"

STARTING_S = 3.0
"""Seconds that a process takes until it scores its first case, for its imports."""

ENDED = "expected scores, the process that computes them ended, also alone with all of MED_ASSETS_INTAKE_MEMORY_GB"
"""Why a case has no scores that crashes or takes more memory than there is."""


def evaluated_splits(program_name: str) -> tuple[str, ...]:
    """The splits that experiments are scored on: by the policy, test and external are left to the monitoring of a champion."""
    return HELD_OUT if policies.of(program_name).evaluation.test == "every" else HELD_OUT[:1]


def score_key(ws: Settings, program_name: str, checkpoint: str, prepared: str) -> str:
    """Key of one case's scores: the checkpoint, the prepared case, the settings and the code."""
    return score_keys(ws, program_name, checkpoint, [prepared])[prepared]


def score_keys(ws: Settings, program_name: str, checkpoint: str, prepared: Iterable[str]) -> dict[str, str]:
    """Keys of the scores of many cases by their prepared arrays, see `score_key`; the settings are read once."""
    chosen = program.get(program_name)
    settings = canonical_json(chosen.evaluation_settings(ws)).encode(errors="surrogateescape")
    versions = [chosen.code_versions[stage] for stage in ("predict", "evaluate")]
    return {key: "score/" + digest(checkpoint, key, settings, versions) for key in prepared}


def score_cases(
    ws: Settings,
    program_name: str,
    checkpoint: str,
    cases: Sequence[PreparedArrays],
    launch: Launch | None = None,
) -> tuple[dict[str, list[Score]], dict[str, int], dict[str, str]]:
    """Scores by case id, counts, and failures by case id. Cases that have no prediction yet are predicted first, see `predict_cases`."""
    predicted = predict_unscored(ws, program_name, checkpoint, cases, launch)
    return score_predicted(ws, program_name, checkpoint, cases, predicted)


def predict_unscored(
    ws: Settings,
    program_name: str,
    checkpoint: str,
    cases: Iterable[PreparedArrays],
    launch: Launch | None = None,
) -> PredictedCases:
    """Predict those of the cases that have neither scores nor a prediction, all in one job. Raises what `predict_cases` does."""
    cases = list(cases)
    keys = score_keys(ws, program_name, checkpoint, (case.artifact for case in cases))
    unscored = [case for case in cases if not ws.store.has(keys[case.artifact])]
    return predict_cases(ws, program_name, checkpoint, unscored, launch)


@part_of("evaluate")
def score_predicted(
    ws: Settings,
    program_name: str,
    checkpoint: str,
    cases: Iterable[PreparedArrays],
    predicted: PredictedCases,
) -> tuple[dict[str, list[Score]], dict[str, int], dict[str, str]]:
    """What `score_cases` gives, of what was predicted of the cases that have no scores yet."""
    cases = list(cases)
    by_arrays = score_keys(ws, program_name, checkpoint, (case.artifact for case in cases))
    keys = {case.case_id: by_arrays[case.artifact] for case in cases}
    fresh = {case.case_id: case.artifact for case in cases if not ws.store.has(keys[case.case_id])}
    failed = {
        case_id: predicted.failures[artifact] for case_id, artifact in fresh.items() if artifact in predicted.failures
    }
    failed |= _score(
        ws,
        program_name,
        [
            Unscored(case_id, artifact, predicted.keys[artifact], keys[case_id])
            for case_id, artifact in fresh.items()
            if case_id not in failed
        ],
    )
    scores = {case_id: _stored(ws, key) for case_id, key in keys.items() if case_id not in failed}
    n_new = sum(case_id in scores for case_id in fresh)
    failures = {case_id: failed[case_id] for case_id in keys if case_id in failed}
    return scores, {"new": n_new, "reused": len(scores) - n_new}, failures


@dataclass(frozen=True)
class Unscored:
    """A case to score: keys of its prepared arrays, of its prediction, and of the scores to come."""

    case_id: str
    prepared: str
    prediction: str
    scores: str


def _score(ws: Settings, program_name: str, cases: Sequence[Unscored]) -> dict[str, str]:
    """Put the scores of cases into the store; failures by case id.

    They are scored in this process until that took as long as other processes take to start, and the rest by several.
    """
    failures: dict[str, str] = {}
    begun = time.monotonic()
    for place, case in enumerate(cases):
        rest = cases[place:]
        if time.monotonic() - begun >= STARTING_S and len(rest) > 1 and workers_of(ws) > 1:
            texts = side_by_side(ws, rest, partial(_score_in_process, ws, program_name), "scoring")
            return failures | {case.case_id: text for case, text in zip(rest, texts, strict=True) if text}
        if text := _score_case(ws, program_name, case, lambda work: work()):
            failures[case.case_id] = text
    return failures


def _score_in_process(ws: Settings, program_name: str, workers: Workers, case: Unscored) -> str:
    def call(work: Callable[[], None]) -> None:
        with workers.borrow() as readers:
            readers.call(work, f"case {case.case_id}")

    return _score_case(ws, program_name, case, call)


def _score_case(ws: Settings, program_name: str, case: Unscored, call: Callable[[Callable[[], None]], object]) -> str:
    """Put the scores of a case into the store; why it has none, or nothing. `call` does the work, here or in another process."""
    try:
        with ws.store.create(case.scores) as folder:
            prepared, prediction = ws.store.fetch(case.prepared), ws.store.fetch(case.prediction)
            call(partial(write_scores, replace(ws), program_name, prepared, prediction, folder))
    except (DiskFull, RemoteFailed, ReaderFailed, RetryAlone):  # no fault of the case
        raise
    except CaseRejected as rejected:
        return ENDED if rejected.code == CRASHED else rejected.message
    except Exception as error:  # one bad case never stops a batch; it is reported, and missing from n
        return f"{type(error).__name__}: {error}"
    return ""


@part_of("evaluate")
def write_scores(ws: Settings, program_name: str, prepared: Path, prediction: Path, folder: Path) -> None:
    """Write the scores of a case into a folder. Raises CaseRejected with the exception for one that can't be scored, and DiskFull."""
    try:
        found = program.get(program_name).score(ws, prepared, prediction)
        with disk_full_guard(folder):
            write_json(folder / FILE, [vars(score) for score in found])
    except (DiskFull, RemoteFailed):  # no fault of the case
        raise
    except Exception as error:
        code = OUT_OF_MEMORY if isinstance(error, MemoryError) else "not_scored"
        raise CaseRejected(code, f"{type(error).__name__}: {error}") from None


def _stored(ws: Settings, key: str) -> list[Score]:
    return [Score(**score) for score in read_json(ws.store.fetch(key) / FILE)]


def stored_scores(
    ws: Settings, program_name: str, checkpoint: str, cases: Iterable[PreparedArrays]
) -> dict[str, list[Score]]:
    """Scores by case id of those cases that the store has scores of. Nothing is predicted."""
    cases = list(cases)
    by_arrays = score_keys(ws, program_name, checkpoint, (case.artifact for case in cases))
    keys = {case.case_id: by_arrays[case.artifact] for case in cases}
    return {case_id: _stored(ws, key) for case_id, key in keys.items() if ws.store.has(key)}


def scores_of(
    ws: Settings, program_name: str, name: str, checkpoint: str, launch: Launch | None = None
) -> tuple[list[CaseScore], dict[str, int], dict[str, str]]:
    """Scores of all held-out cases by one checkpoint of experiment `name`; counts, and failures by case id.

    What is in the store is reused. Cases that the checkpoint was trained on are left out, whatever their split is now, and
    so are those of splits that the policy does not open to every experiment.
    """
    model = NamedModel(name, checkpoint)
    cases = _held_out(ws, program_name, model, evaluated_splits(program_name))
    verify_model(ws, checkpoint)
    scores, counts, failures = score_cases(ws, program_name, checkpoint, cases, launch)
    return case_scores(ws, program_name, model, cases, scores), counts, failures


@dataclass(frozen=True)
class RecordedScores:
    """The scores of a checkpoint that the store has, and how many held-out cases have none without having failed."""

    rows: list[CaseScore]
    missing: int


def recorded_scores(
    ws: Settings, program_name: str, name: str, checkpoint: str, *, champion: bool = False
) -> RecordedScores:
    """What `scores_of` gives, of the cases that the store has scores of; of a champion on all held-out splits.

    Nothing is predicted, scored or written.
    """
    model = NamedModel(name, checkpoint)
    cases = _held_out(ws, program_name, model, HELD_OUT if champion else evaluated_splits(program_name))
    scores = stored_scores(ws, program_name, checkpoint, cases)
    rows = case_scores(ws, program_name, model, cases, scores)
    return RecordedScores(rows, unscored(ws, program_name, checkpoint, cases, scores))


def unscored(
    ws: Settings, program_name: str, checkpoint: str, cases: Iterable[PreparedArrays], scored: Collection[str]
) -> int:
    """How many cases are not among the scored ones, those aside that a stage recorded as failed under the checkpoint."""
    failed = {row.case_id for row in Catalog(ws, program_name).rows(Failure) if row.checkpoint == checkpoint}
    return sum(case.case_id not in scored and case.case_id not in failed for case in cases)


def _held_out(ws: Settings, program_name: str, model: NamedModel, splits: Sequence[str]) -> list[Case]:
    """The cases that a checkpoint is scored on. Raises ArtifactMissing."""
    stored_checkpoint(ws, program_name, model)
    learned = {case.case_id for case in cases_used_by(ws.store, model.checkpoint) if case.split == "train"}
    cases = Catalog(ws, program_name).cases(*splits)
    return [case for case in cases if case.case_id not in learned]


def case_scores(
    ws: Settings, program_name: str, model: NamedModel, cases: Sequence[Case], scores: Mapping[str, Sequence[Score]]
) -> list[CaseScore]:
    """Scores by case id as records, with what readers decided in them."""
    from med_assets.dataset.reader_decisions import with_reader_decisions

    rows = [
        CaseScore(
            program=program_name,
            experiment=model.experiment,
            checkpoint=model.checkpoint,
            case_id=case.case_id,
            patient_id=case.patient_id,
            split=str(case.split),
            **vars(score),
        )
        for case in cases
        for score in scores.get(case.case_id, [])
    ]
    return with_reader_decisions(ws, program_name, rows)


def record_failures(
    ws: Settings, program_name: str, stage: str, name: str, checkpoint: str, failures: Mapping[str, str]
) -> None:
    """Record the cases that a stage could not score, with their exceptions, over those of the stage's last run."""
    rows = [
        Failure(program=program_name, stage=stage, experiment=name, checkpoint=checkpoint, case_id=case_id, error=error)
        for case_id, error in sorted(failures.items())
    ]
    Catalog(ws, program_name).replace(Failure, rows, stage, name)


def demand_scores(scored: Collection[object], failures: Mapping[str, str], program_name: str) -> None:
    """Raise ScoringFailed where all cases failed, as there is no number then."""
    if failures and not scored:
        case, error = sorted(failures.items())[0]
        raise ScoringFailed(
            f'expected scores of {len(failures)} cases, all of them failed; the first, {case}: {error}. `med-assets query "select * '
            f"from failures where program = '{program_name}'\"` lists them"
        )
