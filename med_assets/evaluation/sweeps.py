"""A sweep: an experiment trained with each combination of values of some of its fields, scored on the validation cases.

It chooses, so it must not see what is reported: all that it is given are the cases of the splits train and val, and no case of another split
is looked up, predicted or scored. It is done on request, and nothing in the graph needs it.
"""

import itertools
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.errors import (
    BelowReference,
    ConfigurationError,
    LaunchFailed,
    OutOfMemory,
    ScoringFailed,
    TrainingDiverged,
)
from med_assets.evaluation.aggregates import Aggregate, aggregate, cell
from med_assets.evaluation.comparison import SPLIT, paired, primary_by_case
from med_assets.evaluation.scoring import case_scores, record_failures, score_cases
from med_assets.experiments.configuration import Experiment
from med_assets.launch.training import Launch, NamedModel, experiment, learning_cases, trained
from med_assets.metrics.bootstrap import Interval
from med_assets.program import Metric
from med_assets.records import CaseScore
from med_assets.requested_records import SweepScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json
from med_assets.storage.names import escaped
from med_assets.storage.result import StageResult

STAGE = "sweep"

RULE = (
    "Each combination is a training of its own, scored on the validation cases, which also picked its epoch. No test case was read. The best of "
    "several is better by luck too: its mean is optimistic, and more so the more combinations there are. The difference is paired, to the "
    "combination with the best mean"
)

SHOWN_CHARS = 300
"""How much of a failure's message is kept."""

FAILED = (OutOfMemory, LaunchFailed, TrainingDiverged, BelowReference, ScoringFailed)
"""What ends one combination and not the sweep."""

PAIRS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True)
class Field:
    """A field of the experiment, by its dotted key, and the values that are tried, as they are written in an override."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Combination:
    """One value of each field, and the experiment with them. `number` counts from 1."""

    number: int
    overrides: tuple[str, ...]
    experiment: Experiment


@dataclass(frozen=True)
class Scored:
    """What came of a combination: its checkpoint and scores, or why it has none."""

    combination: Combination
    checkpoint: str = ""
    scores: tuple[CaseScore, ...] = ()
    n_failed: int = 0
    reason: str | None = None


def split_values(text: str) -> tuple[str, ...]:
    """Split `a,b,[c,d]` at the commas outside of brackets and quotes. Raises ConfigurationError for an empty value or an open bracket."""
    values, open_, quote = [""], list[str](), ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in PAIRS:
            open_.append(PAIRS[sign])
        elif open_ and sign == open_[-1]:
            open_.pop()
        elif sign == "," and not open_:
            values.append("")
            continue
        values[-1] += sign
    found = tuple(value.strip() for value in values)
    if open_ or quote or not all(found):
        raise ConfigurationError(
            f"expected values between commas, each with its brackets and quotes closed, got {escaped(text)}"
        )
    return found


def fields_of(words: Sequence[str]) -> list[Field]:
    """Read `key=a,b,c` of the command line; a field with one value has it in all combinations. Raises ConfigurationError."""
    found: list[Field] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise ConfigurationError(f"expected KEY=A,B,..., such as optimiser.lr=1e-3,1e-4, got {escaped(word)}")
        values = split_values(text)
        if len(set(values)) < len(values):
            raise ConfigurationError(f"{key}: expected values that differ, got {text}")
        if key.lstrip("+") in {field.key.lstrip("+") for field in found}:
            raise ConfigurationError(f"expected each field once, got {key} twice; give all its values after one =")
        found.append(Field(key, values))
    return found


def combinations(ws: Settings, program_name: str, name: str, fields: Sequence[Field], most: int) -> list[Combination]:
    """All combinations, the last field changing fastest, each composed and checked before anything is trained.

    Raises ConfigurationError for more than `most`, for fewer than two, for a field or value that the experiment can't have, and for two
    that train the same.
    """
    sizes = [len(field.values) for field in fields]
    product = f"{' x '.join(map(str, sizes))} = {math.prod(sizes)}" if len(sizes) > 1 else f"{math.prod(sizes)}"
    if not 2 <= math.prod(sizes) <= most:
        raise ConfigurationError(
            f"{program_name}/{name}: expected 2 to {most} combinations, got {product}; give fewer values or allow more with --most"
            if math.prod(sizes) > most
            else f"{program_name}/{name}: expected 2 combinations or more, got {product}; give a field several values, as in optimiser.lr=1e-3,1e-4"
        )
    found: list[Combination] = []
    same: dict[tuple[str, str, str | None], tuple[str, ...]] = {}
    for number, values in enumerate(itertools.product(*(field.values for field in fields)), 1):
        overrides = tuple(f"{field.key}={value}" for field, value in zip(fields, values, strict=True))
        chosen = experiment(ws, program_name, name, overrides)
        trains = (chosen.hash(), chosen.initial, chosen.teacher)
        if trains in same:
            raise ConfigurationError(
                f"{program_name}/{name}: expected combinations that train different models, got the same of {shlex.join(same[trains])} and "
                f"{shlex.join(overrides)}; leave out fields that no result depends on, such as those of runtime"
            )
        same[trains] = overrides
        found.append(Combination(number, overrides, chosen))
    return found


def sweep_id(fields: Sequence[Field]) -> str:
    """Name of a sweep in the tables: what it tries, whatever the order of fields and values."""
    return digest(sorted([field.key.lstrip("+"), sorted(field.values)] for field in fields))[:12]


def sweep(
    ws: Settings,
    program_name: str,
    name: str,
    words: Sequence[str],
    most: int,
    launch: Launch | None = None,
) -> StageResult:
    """Train and score every combination of the values that `words` give, as in `optimiser.lr=1e-3,1e-4`, and record the table.

    What the same inputs gave before is reused, also after an interruption. A combination whose training fails has its reason in the table, and the
    others are trained. Raises ConfigurationError before the first training, see `combinations`; TrainingStopped, DiskFull and RemoteFailed at once.
    """
    fields = fields_of(words)
    planned = combinations(ws, program_name, name, fields, most)
    learning = learning_cases(ws, program_name)
    counts = {"combinations": len(planned), "new": 0, "reused": 0, "failed": 0}
    failures: dict[str, str] = {}
    scored: list[Scored] = []
    for each in planned:
        print(f"combination {each.number} of {len(planned)}: {shlex.join(each.overrides)}", file=sys.stderr)
        try:
            key, fresh = trained(ws, program_name, each.experiment, learning, launch)
            counts["new" if fresh else "reused"] += 1
            outcome, failed = _score(ws, program_name, name, each, key, learning, launch)
        except FAILED as error:
            counts["failed"] += 1
            outcome, failed = Scored(each, reason=_reason(error)), {}
        failures |= failed
        scored.append(outcome)
    record_failures(ws, program_name, STAGE, name, "", failures)
    rows = _rows(ws, program_name, name, sweep_id(fields), scored, learning)
    Catalog(ws, program_name).replace(SweepScore, rows, name, sweep_id(fields))
    return StageResult(
        data_version=digest(rows),
        counts=counts,
        summary={"rule": RULE, "sweep": sweep_id(fields), **({"failures": failures} if failures else {})},
        tables={"sweep": table(program_name, rows)},
    )


def _score(
    ws: Settings,
    program_name: str,
    name: str,
    combination: Combination,
    checkpoint: str,
    learning: Sequence[Case],
    launch: Launch | None,
) -> tuple[Scored, dict[str, str]]:
    """The scores of a combination on the validation cases among those it learned of, and the failures by case id."""
    val = [case for case in learning if case.split == SPLIT]
    found, _, failed = score_cases(ws, program_name, checkpoint, val, launch)
    rows = case_scores(ws, program_name, NamedModel(name, checkpoint), val, found)
    reason = None if rows else f"no validation case could be scored; the first: {next(iter(failed.values()), 'none')}"
    return Scored(combination, checkpoint, tuple(rows), len(failed), reason and reason[:SHOWN_CHARS]), failed


def _reason(error: Exception) -> str:
    """The last line of an error, which of a training that failed is the last of its log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[-SHOWN_CHARS:]


def _rows(
    ws: Settings, program_name: str, name: str, sweep_name: str, scored: Sequence[Scored], learning: Sequence[Case]
) -> list[SweepScore]:
    """A row for each combination and deciding metric, in the order of the combinations."""
    metrics = program.get(program_name).deciding_metrics
    aggregates = [{(one.metric, one.subject): one for one in aggregate(program_name, each.scores)} for each in scored]
    best = _best(metrics[0], aggregates)
    by_case = [primary_by_case(program_name, each.scores) for each in scored]
    version, synthetic = Catalog(ws, program_name).dataset().version, any(case.synthetic for case in learning)
    n_val = sum(case.split == SPLIT for case in learning)
    found = []
    for place, (each, of_model) in enumerate(zip(scored, aggregates, strict=True)):
        result = read_json(ws.store.fetch(each.checkpoint) / "result.json") if each.checkpoint else {}
        seconds = result.get("seconds")
        for metric in metrics:
            one = of_model.get((metric.name, metric.subject))
            difference = Interval(None, None, None, 0)
            if metric == metrics[0] and best is not None and place != best:
                difference = paired(metric, by_case[place], by_case[best])
            found.append(
                SweepScore(
                    program=program_name,
                    experiment=name,
                    sweep=sweep_name,
                    number=each.combination.number,
                    overrides=shlex.join(each.combination.overrides),
                    checkpoint=each.checkpoint,
                    job=each.checkpoint.rpartition("/")[2],
                    experiment_hash=each.combination.experiment.hash(),
                    dataset_version=version,
                    synthetic=synthetic,
                    metric=metric.name,
                    subject=metric.subject,
                    unit=metric.unit,
                    mean=one.mean if one else None,
                    low=one.low if one else None,
                    high=one.high if one else None,
                    n=one.n if one else 0,
                    n_val=n_val,
                    n_failed=each.n_failed,
                    difference=difference.mean,
                    difference_low=difference.low,
                    difference_high=difference.high,
                    best_epoch=result.get("best_epoch"),
                    epochs=result.get("epochs_run"),
                    hours=None if seconds is None else seconds / 3600,
                    reason=each.reason,
                )
            )
    return found


def _best(metric: Metric, aggregates: Sequence[dict[tuple[str, str], Aggregate]]) -> int | None:
    """Index of the combination with the best mean, the first of several; None where none has one."""
    sign = 1 if metric.lower_is_better else -1
    means = [
        (sign * one.mean, place)
        for place, found in enumerate(aggregates)
        if (one := found.get((metric.name, metric.subject))) is not None and one.mean is not None
    ]
    return min(means)[1] if means else None


def table(program_name: str, rows: Sequence[SweepScore]) -> pd.DataFrame:
    """A sweep for people, best first: the values of a combination, its metrics with n and interval, its epochs, hours and job."""
    metrics = program.get(program_name).deciding_metrics
    by_number: dict[int, dict[str, SweepScore]] = {}
    for row in rows:
        by_number.setdefault(row.number, {})[row.metric] = row
    sign, primary = (1 if metrics[0].lower_is_better else -1), metrics[0].name

    def rank(of_model: dict[str, SweepScore]) -> tuple[bool, float, int]:
        one = of_model[primary]
        return one.mean is None, sign * (one.mean or 0.0), one.number

    shown = []
    for of_model in sorted(by_number.values(), key=rank):
        one = of_model[primary]
        line: dict[str, str] = dict(word.split("=", 1) for word in shlex.split(one.overrides))
        line |= {metric.label: cell(of_model[metric.name]) for metric in metrics}
        line["difference to the best"] = _difference(one)
        line["epoch"] = "" if one.best_epoch is None else f"{one.best_epoch} of {one.epochs}"
        line["hours"] = "" if one.hours is None else f"{one.hours:.3g}"
        line["job"] = one.job[:12]
        line["reason"] = one.reason or ""
        shown.append(line)
    found = pd.DataFrame(shown).fillna("")
    return found if found.empty or (found["reason"] != "").any() else found.drop(columns="reason")


def _difference(row: SweepScore) -> str:
    """The paired difference of a row for people; nothing at the best combination, and where there is none."""
    if row.difference is None:
        return ""
    if row.difference_low is None or row.difference_high is None:
        return f"{row.difference:+.3f}, no interval"
    differs = row.difference_low > 0 or row.difference_high < 0
    ends = f"[{row.difference_low:+.3f}, {row.difference_high:+.3f}]"
    return f"{row.difference:+.3f} {ends}, {'differs' if differs else 'not shown to differ'}"


@dataclass(frozen=True)
class Sweep:
    """A recorded sweep of an experiment: its table for people, and whether the dataset is still that which it was of."""

    experiment: str
    fields: str
    """The fields that it tried, by their keys."""
    rows: pd.DataFrame
    current: bool
    synthetic: bool


def recorded(ws: Settings, program_name: str, name: str | None = None) -> list[Sweep]:
    """The recorded sweeps of an experiment, or of all, by experiment and fields."""
    catalog = Catalog(ws, program_name)
    version, found = catalog.dataset().version, []
    for key in catalog.keys(SweepScore, *([name] if name else [])):
        rows = catalog.rows(SweepScore, *key)
        keys = dict.fromkeys(word.partition("=")[0] for row in rows for word in shlex.split(row.overrides))
        found.append(
            Sweep(
                experiment=key[0],
                fields=", ".join(keys),
                rows=table(program_name, rows),
                current={row.dataset_version for row in rows} == {version},
                synthetic=any(row.synthetic for row in rows),
            )
        )
    return sorted(found, key=lambda one: (one.experiment, one.fields))
