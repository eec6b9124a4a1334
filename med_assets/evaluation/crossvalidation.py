"""Cross-validation: a model per fold, scored on the patients of that fold, none of which it was trained on or chosen by.

The folds are those of the splits, by patient. Within a fold's training patients an inner part picks the epoch, so that no
held-out patient decides anything. It is done on request: it costs a training per fold, and nothing in the graph needs it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pandas as pd

from med_assets import program
from med_assets.capabilities import CrossvalTables, ReportTables
from med_assets.catalog import Case, Catalog, frame
from med_assets.dataset.reader_decisions import with_reader_decisions
from med_assets.dataset.splits import SPLITS, hash_fraction
from med_assets.errors import ConfigurationError
from med_assets.evaluation.aggregates import aggregate, side_by_side
from med_assets.evaluation.scoring import demand_scores, record_failures, score_cases
from med_assets.experiments.configuration import RELEASED, Experiment
from med_assets.launch.training import Launch, experiment, trained
from med_assets.records import Fold, FoldScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    pass

CROSSVAL = "cross-validation"
"""What these scores have in place of a split."""

INNER_SHARE = 0.15
"""Share of a fold's training patients, at least one, that picks the epoch."""

RULE = (
    "Each case was predicted by the model of its fold, which its patient had no part in. The epoch was picked on an inner part "
    f"({INNER_SHARE:.0%}) of that model's own training patients, never on the held-out fold"
)


def folds_of(ws: Settings, program_name: str) -> dict[int, list[Case]]:
    """Cases by the fold of their patient; external test sets take no part.

    Raises ConfigurationError for fewer than two folds with cases, and for the same images in two of them.
    """
    found: dict[int, list[Case]] = defaultdict(list)
    where: dict[str, set[int]] = defaultdict(set)
    for case in Catalog(ws, program_name).cases(*SPLITS[:3]):
        if case.fold is not None:
            found[case.fold].append(case)
            where[case.content_hash].add(case.fold)
    if len(found) < 2:
        raise ConfigurationError(
            f"{program_name}: expected patients in two folds or more, got {len(found)}; take in more"
        )
    if shared := sum(len(folds) > 1 for folds in where.values()):
        raise ConfigurationError(f"{program_name}: {shared} image contents are in two folds; withdraw the copies")
    return dict(sorted(found.items()))


def learning(folds: Mapping[int, Sequence[Case]], held_out: int) -> list[Case]:
    """The cases that the model of a fold may see, sorted by id: all others, of which the inner part has split val."""
    cases = [case for fold, members in folds.items() if fold != held_out for case in members]
    patients = sorted({case.patient_id for case in cases}, key=lambda one: hash_fraction(one, f"crossval|{held_out}"))
    if len(patients) < 2:
        raise ConfigurationError(f"fold {held_out}: expected two patients or more outside it, got {len(patients)}")
    inner = set(patients[: max(1, round(INNER_SHARE * len(patients)))])
    found = [replace(case, split="val" if case.patient_id in inner else "train") for case in cases]
    return sorted(found, key=lambda case: case.case_id)


def demand_untaught(chosen: Experiment, whom: str) -> None:
    """Raise ConfigurationError for an experiment whose initial weights or teacher are of the program and have learned of `whom`."""
    if chosen.initial != "random" and not chosen.initial.startswith(RELEASED):
        raise ConfigurationError(
            f"{chosen.program}/{chosen.name}: expected an experiment with random or released initial weights, got "
            f"{chosen.initial!r}, which was trained on {whom}"
        )
    if chosen.teacher:
        raise ConfigurationError(
            f"{chosen.program}/{chosen.name}: its teacher {chosen.teacher} was trained on {whom}; take {chosen.teacher}, or an "
            "experiment without teacher"
        )


def crossval(
    ws: Settings, program_name: str, name: str, overrides: Sequence[str] = (), launch: Launch | None = None
) -> StageResult:
    """Train and score an experiment fold by fold; what the same inputs gave before is reused, also after an interruption.

    Raises ConfigurationError for an experiment whose initial weights are of the program and have seen these patients.
    """
    chosen = experiment(ws, program_name, name, overrides)
    demand_untaught(chosen, "patients of other folds")
    folds, catalog = folds_of(ws, program_name), Catalog(ws, program_name)
    version = catalog.dataset().version
    scores: list[FoldScore] = []
    table: list[Fold] = []
    counts = {"new": 0, "reused": 0}
    failures: dict[str, str] = {}
    for fold, held_out in folds.items():
        cases = learning(folds, fold)
        key, fresh = trained(ws, program_name, chosen, cases, launch)
        counts["new" if fresh else "reused"] += 1
        result = read_json(ws.store.fetch(key) / "result.json")
        found, _, failed = score_cases(ws, program_name, key, held_out, launch)
        failures |= failed
        patients = {case.case_id: case.patient_id for case in held_out}
        scores += [
            FoldScore(
                program=program_name,
                experiment=name,
                checkpoint=key,
                case_id=case_id,
                patient_id=patients[case_id],
                split=CROSSVAL,
                fold=fold,
                **asdict(score),
            )
            for case_id in sorted(found)
            for score in found[case_id]
        ]
        table.append(
            Fold(
                program=program_name,
                experiment=name,
                fold=fold,
                checkpoint=key,
                experiment_hash=chosen.hash(),
                dataset_version=version,
                n_train=sum(case.split == "train" for case in cases),
                n_inner=sum(case.split == "val" for case in cases),
                n_held_out=len(held_out),
                n_failed=len(failed),
                synthetic=any(case.synthetic for case in [*cases, *held_out]),
                epoch=result["best_epoch"],
                epochs=result["epochs_run"],
                monitor=result["monitor"],
                inner_value=result["best_value"],
            )
        )
    scores = with_reader_decisions(ws, program_name, scores)
    record_failures(ws, program_name, "crossval", name, "", failures)
    demand_scores(scores, failures, program_name)
    catalog.replace(FoldScore, scores, name)
    catalog.replace(Fold, table, name)
    aggregates = aggregate(program_name, scores)
    about = program.get(program_name)
    metrics = [metric.name for metric in about.deciding_metrics]
    return StageResult(
        data_version=digest(table, [[one.metric, one.subject, one.mean, one.n] for one in aggregates]),
        counts=counts | {"cases": sum(map(len, folds.values())), "failed": len(failures)},
        summary={"rule": RULE, "dataset_version": version, "failures": failures},
        tables={
            "folds": fold_table(table),
            **{one.title: one.rows for one in tables_of(ws, program_name, frame(FoldScore, scores))},
            "scores": side_by_side(aggregates, metrics),
        },
    )


def tables_of(ws: Settings, program_name: str, scores: pd.DataFrame) -> list[program.ReportTable]:
    """The program's own tables of a cross-validation; where it has none, those of one split over all cases."""
    chosen = program.get(program_name)
    if isinstance(chosen, CrossvalTables):
        return chosen.crossval_tables(ws, scores)
    return chosen.report_tables(scores) if isinstance(chosen, ReportTables) else []


def fold_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """Folds for people, a row each."""
    names = ["fold", "n_train", "n_inner", "n_held_out", "n_failed", "epoch", "epochs", "monitor", "inner_value"]
    return frame(Fold, folds)[names]
