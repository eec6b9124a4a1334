"""Cross-validation: a model per fold, scored on the patients of that fold, none of which it was trained on or chosen by.

The folds are those of the splits, by patient, or on request folds of whole patients that have all classes alike. Within a fold's training
patients an inner part picks the epoch, so that no held-out patient decides anything. What an experiment starts from, or is distilled from, is trained
within the fold too. It is done on request: it costs a training per fold, and nothing in the graph needs it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pandas as pd

from med_assets import program
from med_assets.capabilities import CrossvalTables, ReportTables
from med_assets.catalog import Case, Catalog, frame
from med_assets.dataset.reader_decisions import with_reader_decisions
from med_assets.dataset.splits import SPLITS, hash_fraction, split_policy
from med_assets.errors import ConfigurationError
from med_assets.evaluation.aggregates import aggregate, side_by_side
from med_assets.evaluation.scoring import demand_scores, record_failures, score_cases
from med_assets.experiments.configuration import Experiment
from med_assets.launch.training import Launch, experiment, in_order, trained
from med_assets.records import FoldScore
from med_assets.requested_records import Fold
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    pass

CROSSVAL = "cross-validation"
"""What these scores have in place of a split."""

INNER_SHARE = 0.15
"""Share of a fold's training patients, at least one, that picks the epoch."""

INNER_PARTS = round(1 / INNER_SHARE)
"""Parts of a stratified fold's training patients of which one picks the epoch."""

RULE = (
    "Each case was predicted by the model of its fold, which its patient had no part in. The epoch was picked on an inner part "
    f"({INNER_SHARE:.0%}) of that model's own training patients, never on the held-out fold. Experiments of the program that it starts from, or is "
    "distilled from, were trained on the same patients, once for each fold"
)

STRATIFIED = "Folds are of whole patients and balanced: of each class, no two folds differ by more than one patient, and so do the inner parts"


def classes_of(ws: Settings, program_name: str) -> dict[str, str]:
    """The class of each patient, by pseudonym: of several those of all cases, and nothing of one whose cases have none.

    Raises ConfigurationError for a program whose cases have no class.
    """
    fact = program.get(program_name).class_fact
    if not fact:
        raise ConfigurationError(
            f"{program_name}: expected a program whose cases have a class, got none (class_fact); cross-validate over the folds of the splits, "
            "without --stratified"
        )
    found: dict[str, set[str]] = defaultdict(set)
    for case in Catalog(ws, program_name).described():
        value = case.facts.get(fact)
        found[case.patient_id] |= set() if value is None else {str(value)}
    return {patient_id: " + ".join(sorted(values - {""})) for patient_id, values in found.items()}


def deal(classes: Mapping[str, str], parts: int, salt: str) -> dict[str, int]:
    """Deal patients out to parts, class by class in an order by hash: parts differ by one patient at most, of each class and of all."""
    order = sorted(classes, key=lambda one: (classes[one], hash_fraction(one, salt)))
    return {patient_id: place % parts for place, patient_id in enumerate(order)}


def folds_of(ws: Settings, program_name: str, *, stratified: bool = False) -> dict[int, list[Case]]:
    """Cases by the fold of their patient, of the splits or balanced by class; external test sets take no part.

    Raises ConfigurationError for fewer than two folds with cases, and for the same images in two of them.
    """
    found: dict[int, list[Case]] = defaultdict(list)
    where: dict[str, set[int]] = defaultdict(set)
    cases = Catalog(ws, program_name).cases(*SPLITS[:3])
    if stratified:
        classes = classes_of(ws, program_name)
        present = {case.patient_id: classes[case.patient_id] for case in cases}
        folds = deal(present, split_policy(program_name).folds, "crossval|stratified")
        cases = [replace(case, fold=folds[case.patient_id]) for case in cases]
    for case in cases:
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


def learning(
    folds: Mapping[int, Sequence[Case]], held_out: int, classes: Mapping[str, str] | None = None
) -> list[Case]:
    """The cases that the model of a fold may see, sorted by id: all others, of which the inner part has split val.

    With the `classes` of patients the inner part has all of them alike.
    """
    cases = [case for fold, members in folds.items() if fold != held_out for case in members]
    patients = sorted({case.patient_id for case in cases}, key=lambda one: hash_fraction(one, f"crossval|{held_out}"))
    if len(patients) < 2:
        raise ConfigurationError(f"fold {held_out}: expected two patients or more outside it, got {len(patients)}")
    inner = set(patients[: max(1, round(INNER_SHARE * len(patients)))])
    if classes is not None:
        parts = deal({one: classes[one] for one in patients}, INNER_PARTS, f"crossval|inner|{held_out}")
        inner = {patient_id for patient_id, part in parts.items() if part == 0}
    found = [replace(case, split="val" if case.patient_id in inner else "train") for case in cases]
    return sorted(found, key=lambda case: case.case_id)


def sources_of(ws: Settings, program_name: str, chosen: Experiment) -> list[str]:
    """The experiments that one is made from, each after those that it is made from itself.

    Raises ConfigurationError where one of them starts from the champion, which has seen all patients.
    """
    found = in_order(ws, program_name, chosen.needs())
    for one in (*(experiment(ws, program_name, name) for name in found), chosen):
        if one.initial == "champion":
            raise ConfigurationError(
                f"{program_name}/{chosen.name}: expected initial weights that are trained anew on the patients of a fold or of a size alone, got "
                f"those of the champion for {one.name}, which was trained on others too; name the champion's experiment as initial"
            )
    return found


def trained_within(
    ws: Settings,
    program_name: str,
    chosen: Experiment,
    cases: Sequence[Case],
    launch: Launch | None = None,
    changed: Callable[[Experiment], Experiment] = lambda one: one,
) -> tuple[str, list[bool]]:
    """Key of a checkpoint that has seen these cases alone, and so have those that it is made from; of each of them whether it was made now.

    `changed` says how each experiment is trained, its own schedule unless given.
    """
    made: dict[str, str] = {}
    fresh: list[bool] = []
    for name in sources_of(ws, program_name, chosen):
        source = changed(experiment(ws, program_name, name))
        made[name], new = trained(ws, program_name, source, cases, launch, sources=made)
        fresh.append(new)
    key, new = trained(ws, program_name, changed(chosen), cases, launch, sources=made)
    return key, [*fresh, new]


def crossval(
    ws: Settings,
    program_name: str,
    name: str,
    overrides: Sequence[str] = (),
    launch: Launch | None = None,
    *,
    stratified: bool = False,
) -> StageResult:
    """Train and score an experiment fold by fold; what the same inputs gave before is reused, also after an interruption.

    Initial weights and a teacher that are other experiments of the program are trained on the patients of each fold, too. With `stratified` the folds are
    balanced by class. Raises ConfigurationError for an experiment that starts from the champion, which has seen these patients.
    """
    chosen = experiment(ws, program_name, name, overrides)
    sources_of(ws, program_name, chosen)
    folds, catalog = folds_of(ws, program_name, stratified=stratified), Catalog(ws, program_name)
    classes = classes_of(ws, program_name) if stratified else None
    version = catalog.dataset().version
    scores: list[FoldScore] = []
    table: list[Fold] = []
    counts = {"new": 0, "reused": 0}
    failures: dict[str, str] = {}
    for fold, held_out in folds.items():
        cases = learning(folds, fold, classes)
        key, fresh = trained_within(ws, program_name, chosen, cases, launch)
        counts["new"] += sum(fresh)
        counts["reused"] += len(fresh) - sum(fresh)
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
                stratified=stratified,
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
        summary={"rule": rule(table), "dataset_version": version, "failures": failures},
        tables={
            "folds": fold_table(table),
            **({"patients of each class by fold": class_table(folds, classes)} if classes is not None else {}),
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


def rule(folds: Sequence[Fold]) -> str:
    """How a cross-validation was made, for people."""
    return f"{RULE}. {STRATIFIED}" if any(fold.stratified for fold in folds) else RULE


def class_table(folds: Mapping[int, Sequence[Case]], classes: Mapping[str, str]) -> pd.DataFrame:
    """Patients by class and fold."""
    people = {fold: sorted({case.patient_id for case in cases}) for fold, cases in folds.items()}
    names = sorted({classes[one] for members in people.values() for one in members})
    rows = [
        {
            "class": name or "none",
            **{f"fold {fold}": sum(classes[one] == name for one in people[fold]) for fold in people},
        }
        for name in names
    ]
    return pd.DataFrame(rows)


def fold_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """Folds for people, a row each."""
    names = ["fold", "n_train", "n_inner", "n_held_out", "n_failed", "epoch", "epochs", "monitor", "inner_value"]
    return frame(Fold, folds)[names]
