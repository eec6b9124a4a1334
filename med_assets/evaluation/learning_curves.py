"""A learning curve: the score of an experiment against the number of training patients, and what twice as many may give.

Patients are put in an order by hash, and each size is the first of them, so that a larger set holds the smaller. All are scored on the same
validation cases, which also pick the epoch. It is done on request: it costs a training per size and repeat.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.dataset.reader_decisions import with_reader_decisions
from med_assets.dataset.splits import hash_fraction
from med_assets.errors import ConfigurationError
from med_assets.evaluation.crossvalidation import sources_of, trained_within
from med_assets.evaluation.scoring import demand_scores, record_failures, score_cases
from med_assets.experiments import policies
from med_assets.experiments.configuration import Experiment
from med_assets.launch.training import Launch, experiment, learning_cases
from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED, Interval, mean_with_interval, paired_difference
from med_assets.metrics.power_law import PowerLaw, fit
from med_assets.records import CaseScore
from med_assets.requested_records import CurvePoint, CurveScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    pass

STAGE = "learning_curve"

RULE = (
    "Each size is the first patients of the training set in an order by hash, so that a larger set holds the smaller. All models "
    "take as many training steps as the largest set gets, so that patients alone differ: where an epoch is longer with more cases, "
    "the smaller sets get more epochs and as many validations. All are scored on the same validation cases, which also picked the epoch"
)

INTERVAL = (
    f"{CONFIDENCE:.0%} percentile bootstrap over validation patients, {RESAMPLES} resamples, seed {SEED}; those of the fit draw the repeats of "
    "each size too: with one repeat they say nothing of the luck of which patients were drawn for training"
)


@dataclass(frozen=True)
class Subset:
    """The training patients of one size in one repeat, and all cases that its training sees, validation cases included."""

    repeat: int
    patients: int
    cases: tuple[Case, ...]

    @property
    def n_train(self) -> int:
        """Training cases."""
        return sum(case.split == "train" for case in self.cases)


def subsets(cases: Sequence[Case], sizes: Sequence[int], repeats: int) -> list[Subset]:
    """Nested sets of training patients, by repeat from small to large; one that an earlier repeat had too is left out.

    `cases` are those of the splits train and val. The order of a repeat depends on the patients' pseudonyms alone.
    """
    patients = sorted({case.patient_id for case in cases if case.split == "train"})
    found: list[Subset] = []
    seen: set[frozenset[str]] = set()
    for repeat in range(repeats):
        order = sorted(patients, key=lambda one, repeat=repeat: hash_fraction(one, f"learning curve|{repeat}"))  # type: ignore[misc]  # mypy takes no default of a key
        for size in sorted(set(sizes)):
            own = frozenset(order[:size])
            if own not in seen:
                seen.add(own)
                kept = tuple(case for case in cases if case.split == "val" or case.patient_id in own)
                found.append(Subset(repeat, size, kept))
    return found


def in_as_many_steps(chosen: Experiment, n_train: int, most: int) -> Experiment:
    """The experiment with about as many steps on `n_train` cases as it has on `most`, and as many validations."""
    if chosen.fixed_steps() or n_train == most:
        return chosen
    longer = most / n_train
    every = max(1, round(chosen.schedule.val_every * longer))
    epochs = every * max(1, round(chosen.schedule.epochs * longer / every)) if chosen.schedule.epochs else 0
    schedule = chosen.schedule.model_copy(update={"epochs": epochs, "val_every": every})
    return chosen.model_copy(update={"schedule": schedule})


def plan(
    program_name: str, name: str, sizes: Sequence[int] | None, repeats: int | None, patients: int
) -> tuple[list[int], int]:
    """Sizes and repeats as given, else those of `_program.yaml`; of the latter, sizes above the present number of patients wait.

    Raises ConfigurationError where none are given, and for sizes that can't be had.
    """
    written = policies.of(program_name).learning_curve
    if sizes is None and (written is None or written.experiment != name):
        raise ConfigurationError(
            f"{program_name}/{name}: expected the sizes to try, got none; give --sizes, or a section learning_curve in "
            f"conf/{program_name}/_program.yaml"
        )
    wanted = sorted({*(sizes if sizes is not None else written.sizes if written else ())})
    chosen = wanted if sizes is not None else [size for size in wanted if size <= patients]
    if len(chosen) < 2 or min(chosen) < 1 or max(chosen) > patients:
        raise ConfigurationError(
            f"{program_name}/{name}: expected two sizes or more, of 1 to {patients} training patients, got {wanted}"
        )
    times = repeats if repeats is not None else written.repeats if written and sizes is None else 1
    if times < 1:
        raise ConfigurationError(f"expected one repeat or more, got {times}")
    return chosen, times


def learning_curve(
    ws: Settings,
    program_name: str,
    name: str,
    sizes: Sequence[int] | None = None,
    repeats: int | None = None,
    overrides: Sequence[str] = (),
    launch: Launch | None = None,
) -> StageResult:
    """Train and score an experiment on nested sets of patients; what the same inputs gave before is reused, also after an interruption.

    What it is made from, such as initial weights of another experiment, a teacher or members, is trained on the same patients. Raises
    ConfigurationError for sizes that there are no patients for, and for initial weights of the champion, which has seen all patients.
    """
    chosen = experiment(ws, program_name, name, overrides)
    sources_of(ws, program_name, chosen)
    learning = learning_cases(ws, program_name)
    patients = len({case.patient_id for case in learning if case.split == "train"})
    wanted, times = plan(program_name, name, sizes, repeats, patients)
    sets = subsets(learning, wanted, times)
    most, val = max(one.n_train for one in sets), [case for case in learning if case.split == "val"]
    deciding = {(one.name, one.subject) for one in _metrics(program_name)}
    catalog = Catalog(ws, program_name)
    version = catalog.dataset().version
    counts = {"new": 0, "reused": 0}
    failures: dict[str, str] = {}
    table: list[CurvePoint] = []
    scores: list[CurveScore] = []
    for one in sets:
        changed = partial(in_as_many_steps, n_train=one.n_train, most=most)
        key, fresh = trained_within(ws, program_name, chosen, one.cases, launch, changed)
        counts["new"] += sum(fresh)
        counts["reused"] += len(fresh) - sum(fresh)
        result = read_json(ws.store.fetch(key) / "result.json")
        scored, _, failed = score_cases(ws, program_name, key, val, launch)
        failures |= failed
        patient_ids = {case.case_id: case.patient_id for case in val}
        of_model = [
            CaseScore(
                program=program_name,
                experiment=name,
                checkpoint=key,
                case_id=case_id,
                patient_id=patient_ids[case_id],
                split="val",
                **asdict(score),
            )
            for case_id in sorted(scored)
            for score in scored[case_id]
        ]
        scores += [
            CurveScore(
                program=program_name,
                experiment=name,
                repeat=one.repeat,
                n_patients=one.patients,
                checkpoint=key,
                case_id=score.case_id,
                patient_id=score.patient_id,
                metric=score.metric,
                subject=score.subject,
                value=score.value,
                unit=score.unit,
                truth=score.truth,
            )
            for score in with_reader_decisions(ws, program_name, of_model)
            if (score.metric, score.subject) in deciding
        ]
        table.append(
            CurvePoint(
                program=program_name,
                experiment=name,
                repeat=one.repeat,
                n_patients=one.patients,
                n_train=one.n_train,
                n_val=len(val),
                n_failed=len(failed),
                checkpoint=key,
                experiment_hash=changed(chosen).hash(),
                dataset_version=version,
                synthetic=any(case.synthetic for case in one.cases),
                steps=result.get("steps"),
                epochs=result.get("epochs_run"),
                best_epoch=result.get("best_epoch"),
            )
        )
    record_failures(ws, program_name, STAGE, name, "", failures)
    demand_scores(scores, failures, program_name)
    catalog.replace(CurveScore, scores, name)
    catalog.replace(CurvePoint, table, name)
    shown, law, image = recorded_curve(ws, program_name, name)
    return StageResult(
        data_version=digest(table, [[score.n_patients, score.repeat, score.case_id, score.value] for score in scores]),
        counts=counts | {"sizes": len(wanted), "failed": len(failures)},
        summary={"rule": RULE, "dataset_version": version, "answer": answer(program_name, law), "failures": failures},
        tables={"learning curve": shown},
        images={image.stem: image},
    )


def _metrics(program_name: str) -> tuple[program.Metric, ...]:
    chosen = program.get(program_name)
    return chosen.deciding_metrics


def curve(program_name: str, table: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, PowerLaw | str]:
    """A row per size with mean, interval and the paired difference to the size before, and the power law or why there is none.

    `table` are the CurvePoints and `rows` the CurveScores of one experiment.
    """
    metric = program.get(program_name).primary_metric
    own = rows[(rows["metric"] == metric.name) & (rows["subject"] == metric.subject)]
    facts = own.drop_duplicates("case_id").set_index("case_id").sort_index()
    people, strata = facts["patient_id"].tolist(), facts["truth"].tolist() if metric.by_class else None
    sizes, repeats = (sorted(int(one) for one in table[name].unique()) for name in ("n_patients", "repeat"))
    by_repeat = np.full((len(facts), len(sizes), len(repeats)), np.nan)
    for key, scored in own.groupby(["n_patients", "repeat"]):
        size, repeat = (int(str(one)) for one in key)
        values = scored.set_index("case_id")["value"].reindex(facts.index)
        by_repeat[:, sizes.index(size), repeats.index(repeat)] = values.to_numpy(dtype=np.float64)
    # A case counts at a size if every repeat of it could score the case.
    present = ~np.isnan(by_repeat).all(axis=0)
    at_size = [
        _defined(by_repeat[:, index, there].mean(axis=1)) if there.any() else [None] * len(facts)
        for index, there in enumerate(present)
    ]
    made = []
    for index, size in enumerate(sizes):
        mean = mean_with_interval(at_size[index], SEED, groups=people, strata=strata)
        step = Interval(None, None, None, 0)
        if index:
            step = paired_difference(
                at_size[index], at_size[index - 1], SEED, groups=people, strata=strata, bounds=metric.range
            )
        of_size = table[table["n_patients"] == size]
        between = own[own["n_patients"] == size].groupby("repeat")["value"].mean()
        made.append(
            {
                "n_patients": size,
                "n_train": _range(of_size["n_train"]),
                "repeats": len(of_size),
                "steps": _range(of_size["steps"]),
            }
            | {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n}
            | {"sd_repeats": float(between.std(ddof=1)) if len(between) > 1 else None}
            | {"step": step.mean, "step_low": step.low, "step_high": step.high}
        )
    best = None if metric.lower_is_better else metric.range.high
    law: PowerLaw | str = (
        f"{metric.name} has no best value in its range ({metric.range}), from which an error could be counted"
    )
    if metric.lower_is_better or best is not None:
        law = fit(by_repeat, sizes, people, SEED, strata=strata, best=best, bounds=metric.range)
    return pd.DataFrame(made), law


def _defined(values: "np.ndarray[Any, Any]") -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in values]


def _range(values: "pd.Series[Any]") -> str:
    """The values of the repeats: one number, or from least to most."""
    there = values.dropna().astype(int)
    if there.empty:
        return ""
    return str(there.min()) if there.min() == there.max() else f"{there.min()} to {there.max()}"


def _shown(program_name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The curve for people."""
    label = program.get(program_name).primary_metric.label
    rows = []
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        differs = row["step_low"] is not None and (row["step_low"] > 0 or row["step_high"] < 0)
        rows.append(
            {
                "training patients": row["n_patients"],
                "training cases": row["n_train"],
                "repeats": row["repeats"],
                "steps": row["steps"],
                label: _ends(row["mean"], row["low"], row["high"], ".3f"),
                "n": row["n"],
                "SD between repeats": row["sd_repeats"],
                "difference to the size before": _ends(row["step"], row["step_low"], row["step_high"], "+.3f"),
                "differs": "" if row["step"] is None else "yes" if differs else "not shown",
            }
        )
    return pd.DataFrame(rows)


def _ends(mean: float | None, low: float | None, high: float | None, form: str) -> str:
    if mean is None:
        return ""
    return f"{mean:{form}}" if low is None or high is None else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def answer(program_name: str, law: PowerLaw | str) -> str:
    """Whether it is worth waiting for more patients, in words."""
    if isinstance(law, str):
        return f"No prediction for more patients: {law}."
    metric, low = program.get(program_name).primary_metric, law.exponent.low
    gain = _ends(law.change_percent.mean, law.change_percent.low, law.change_percent.high, "+.1f")
    helps = "More patients help" if low is not None and low > 0 else "That more patients help is not shown"
    score = _ends(law.score.mean, law.score.low, law.score.high, ".3f")
    exponent = _ends(law.exponent.mean, law.exponent.low, law.exponent.high, ".3f")
    return (
        f"{helps}: the error falls as n to the power -b with b = {exponent}. Twice the patients ({law.n}) are predicted to change it by {gain} %, "
        f"to {metric.name} {score}{metric.after} (n = {law.score.n} validation cases). No size is further than {law.misfit_percent:.1f} % from "
        "the fit, which knows no floor: a real curve flattens, so this is the best to hope for"
    )


def recorded_curve(ws: Settings, program_name: str, name: str) -> tuple[pd.DataFrame, PowerLaw | str, Path]:
    """The recorded curve for people, its power law and its plot."""
    from med_assets.reporting.analysis_plots import plot_learning_curve

    catalog = Catalog(ws, program_name)
    table, law = curve(program_name, catalog.frame(CurvePoint, name), catalog.frame(CurveScore, name))
    metric = program.get(program_name).primary_metric
    path = ws.reports / program_name / "plots" / f"learning_curve_{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot = partial(
        plot_learning_curve, path, table, label=f"{metric.label}, validation", logarithmic=metric.lower_is_better
    )
    plot() if isinstance(law, str) else plot(line=law.line, twice=(law.n, law.score))
    return _shown(program_name, table), law, path


def synthetic(ws: Settings, program_name: str) -> int:
    """How many learning curves in the report are of synthetic cases."""
    return len({point.experiment for point in Catalog(ws, program_name).rows(CurvePoint) if point.synthetic})
