"""Formal evaluation: the very checkpoint that an experiment recorded, scored on fixed splits, per case and in aggregate."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import ModelCosts, PooledScores, PredictionTable
from med_assets.catalog import Case, Catalog
from med_assets.dataset.stage import cases_of, dataset_version
from med_assets.errors import DiskFull, RemoteFailed, ScoringFailed
from med_assets.evaluation.predicting import Predicting
from med_assets.evaluation.runs import record_run, record_scores
from med_assets.experiments import policies
from med_assets.experiments.configuration import from_json
from med_assets.launch.training import checkpoint_of, stored_checkpoint
from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED, Interval, mean_with_interval, paired_difference
from med_assets.metrics.ranges import range_of
from med_assets.metrics.score import PooledScore
from med_assets.program import Metric
from med_assets.records import AggregateScore, CaseScore, Failure
from med_assets.reporting.escaping import code, csv, inline
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json, replacing, write_json, write_text
from med_assets.storage.provenance import git_state, used_cases
from med_assets.storage.result import StageResult
from med_assets.storage.versions import part_of

HELD_OUT = ("val", "test", "external")

PAIRWISE = "Paired differences in the primary metric, first minus second, on the validation cases that both have; not corrected for their number. Intervals end at the greatest difference that the range of the metric allows."

NO_CASE = (
    "no case to score: none with a label is held out and opened for this checkpoint; nothing is known of how good it is"
)

INTERVAL = f"{CONFIDENCE:.0%} percentile bootstrap over patients, {RESAMPLES} resamples, seed {SEED}, within the range of the metric"


def by_class(program_name: str) -> set[tuple[str, str]]:
    """The deciding metrics, as (metric, subject), that are averaged within each true class first."""
    chosen = program.get(program_name)
    return {(one.name, one.subject) for one in (chosen.primary_metric, *chosen.guarded_metrics) if one.by_class}


def opened(ws: Workspace, program_name: str, checkpoint: str) -> tuple[str, ...]:
    """The splits that a checkpoint may be scored on: by the policy, test and external are a champion's alone."""
    if policies.of(program_name).evaluation.test == "every":
        return HELD_OUT
    champions = {row["checkpoint"] for row in ws.lake.rows("champions", program_name)}
    return HELD_OUT if checkpoint in champions else HELD_OUT[:1]


def score_key(ws: Workspace, program_name: str, checkpoint: str, prepared: str) -> str:
    """Key of one case's scores: the checkpoint, the prepared case, the settings and the code."""
    chosen = program.get(program_name)
    versions = [chosen.code_versions[stage] for stage in ("predict", "evaluate")]
    return "score/" + digest(checkpoint, prepared, chosen.evaluation_settings(ws), versions)


@part_of("evaluate")
def score_cases(
    ws: Workspace, program_name: str, checkpoint: str, cases: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int], dict[str, str]]:
    """Scores by case id, counts, and failures by case id. The model is loaded only if a case was not predicted yet."""
    predicting, chosen = Predicting(ws, program_name, checkpoint), program.get(program_name)
    scores: dict[str, list[dict[str, Any]]] = {}
    counts = {"new": 0, "reused": 0}
    failures: dict[str, str] = {}
    for case in cases:
        key = score_key(ws, program_name, checkpoint, case["artifact"])
        fresh = not ws.store.has(key)
        if fresh:
            try:
                predicted, _ = predicting(case["artifact"])
                with ws.store.create(key) as folder:
                    found = chosen.score(ws, ws.store.fetch(case["artifact"]), ws.store.fetch(predicted))
                    write_json(folder / "scores.json", [asdict(score) for score in found])
            except (DiskFull, RemoteFailed):  # no fault of the case
                raise
            except Exception as error:  # one bad case never stops a batch; it is reported, and missing from n
                failures[case["case_id"]] = f"{type(error).__name__}: {error}"
                continue
        counts["new" if fresh else "reused"] += 1
        scores[case["case_id"]] = read_json(ws.store.fetch(key) / "scores.json")
    return scores, counts, failures


def stored_scores(
    ws: Workspace, program_name: str, checkpoint: str, cases: Iterable[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Scores by case id of those cases that the store has scores of. Nothing is predicted."""
    keys = {case["case_id"]: score_key(ws, program_name, checkpoint, case["artifact"]) for case in cases}
    return {id: read_json(ws.store.fetch(key) / "scores.json") for id, key in keys.items() if ws.store.has(key)}


def scores_of(
    ws: Workspace, program_name: str, name: str, checkpoint: str
) -> tuple[list[dict[str, Any]], dict[str, int], dict[str, str]]:
    """Rows of one checkpoint of experiment `name`, a row per held-out case and score; counts, and failures by case id.

    What is in the store is reused. Cases that the checkpoint was trained on are left out, whatever their split is now, and
    so are those of splits that are not opened for it.
    """
    cases = _held_out(ws, program_name, name, checkpoint)
    ws.store.verify(checkpoint)
    scores, counts, failures = score_cases(ws, program_name, checkpoint, cases)
    return _rows(ws, program_name, name, checkpoint, cases, scores), counts, failures


@dataclass(frozen=True)
class RecordedScores:
    """The scores of a checkpoint that the store has, and how many held-out cases have none without having failed."""

    rows: list[CaseScore]
    missing: int


def recorded_scores(ws: Workspace, program_name: str, name: str, checkpoint: str) -> RecordedScores:
    """What `scores_of` gives, of the cases that the store has scores of. Nothing is predicted, scored or written."""
    cases = _held_out(ws, program_name, name, checkpoint)
    scores = stored_scores(ws, program_name, checkpoint, cases)
    rows = _rows(ws, program_name, name, checkpoint, cases, scores)
    return RecordedScores([CaseScore.of(row) for row in rows], unscored(ws, program_name, checkpoint, cases, scores))


def unscored(
    ws: Workspace, program_name: str, checkpoint: str, cases: Iterable[Mapping[str, Any]], scored: Collection[str]
) -> int:
    """How many cases are not among the scored ones, those aside that a stage recorded as failed under the checkpoint."""
    failed = {row.case_id for row in Catalog(ws, program_name).rows(Failure) if row.checkpoint == checkpoint}
    return sum(case["case_id"] not in scored and case["case_id"] not in failed for case in cases)


def _held_out(ws: Workspace, program_name: str, name: str, checkpoint: str) -> list[Case]:
    """The cases that a checkpoint is scored on. Raises ArtifactMissing."""
    folder = stored_checkpoint(ws, program_name, {"experiment": name, "checkpoint": checkpoint})
    learned = {
        case["case_id"] for case in used_cases(read_json(folder / "provenance.json")) if case["split"] == "train"
    }
    splits = opened(ws, program_name, checkpoint)
    return [case for case in cases_of(ws, program_name) if case.split in splits and case.case_id not in learned]


def _rows(
    ws: Workspace,
    program_name: str,
    name: str,
    checkpoint: str,
    cases: Sequence[Case],
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Scores by case id as rows, with what readers decided in them."""
    from med_assets.review.decisions import judged

    keys = {"program": program_name, "experiment": name, "checkpoint": checkpoint}
    rows = [
        keys | {"case_id": case.case_id, "patient_id": case.patient_id, "split": case.split} | dict(score)
        for case in cases
        for score in scores.get(case.case_id, [])
    ]
    return judged(ws, program_name, rows)


def record_failures(
    ws: Workspace, program_name: str, stage: str, name: str, checkpoint: str, failures: Mapping[str, str]
) -> None:
    """Write the cases that a stage could not score, with their exceptions, over those of the stage's last run."""
    keys = {"program": program_name, "stage": stage, "experiment": name, "checkpoint": checkpoint}
    rows = [keys | {"case_id": case, "error": error} for case, error in sorted(failures.items())]
    ws.lake.write("failures", f"{program_name}/{stage}/{name}", rows)


def demand_scores(scored: Collection[Any], failures: Mapping[str, str], program_name: str) -> None:
    """Raise ScoringFailed where all cases failed, as no number can stand for them."""
    if failures and not scored:
        case, error = sorted(failures.items())[0]
        raise ScoringFailed(
            f'expected scores of {len(failures)} cases, all of them failed; the first, {case}: {error}. `med-assets query "select * '
            f"from failures where program = '{program_name}'\"` lists them"
        )


def checkpoint_facts(ws: Workspace, program_name: str, checkpoint: str, *, measure: bool = False) -> dict[str, float]:
    """What a checkpoint costs, by name with unit, as it was measured once; empty where it was not, or a program measures nothing.

    It holds a latency of one machine, so that it is no part of any version. `measure` measures where that was not done yet.
    """
    key = f"cost/{digest(checkpoint, program.get(program_name).code_versions['evaluate'])}"
    if measure and not ws.store.has(key):
        chosen = program.get(program_name)
        found = chosen.checkpoint_facts(ws, ws.store.fetch(checkpoint)) if isinstance(chosen, ModelCosts) else {}
        if found:
            with ws.store.create(key) as folder:
                write_json(folder / "facts.json", dict(found))
    return dict(read_json(ws.store.fetch(key) / "facts.json")) if ws.store.has(key) else {}


def evaluate(ws: Workspace, program_name: str, name: str) -> StageResult:
    """Score the recorded checkpoint of an experiment on all held-out cases and aggregate with bootstrap intervals.

    Without any such case the tables are empty and the summary says so. The pictures are of the median case; the report has the best and the worst too.
    """
    from med_assets.evaluation.finetuning import finetuning
    from med_assets.reporting.pictures import drawn, over_cases

    row = checkpoint_of(ws, program_name, name)
    checkpoint = row.checkpoint
    text = (stored_checkpoint(ws, program_name, row) / "experiment.json").read_text(encoding="utf-8")
    # Training records its run; a checkpoint from before runs were kept gets its record here.
    record_run(ws, program_name, name, row, from_json(program_name, text))
    rows, counts, failures = scores_of(ws, program_name, name, checkpoint)
    record_failures(ws, program_name, "evaluation", name, checkpoint, failures)
    demand_scores(rows, failures, program_name)
    version = dataset_version(ws.lake.rows("dataset", program_name))
    keys = {"program": program_name, "experiment": name, "checkpoint": checkpoint}
    made = {"dataset_version": version, "git_commit": git_state()}
    made |= {"code_version": program.get(program_name).code_versions["evaluate"]}
    aggregates = [keys | made | row for row in aggregate(program_name, rows)]
    ws.lake.write("evaluation_cases", f"{program_name}/{name}", rows)
    ws.lake.write("evaluation", f"{program_name}/{name}", aggregates)
    record_scores(ws, program_name, name, checkpoint, aggregates)
    record = finetuning(ws, program_name, name, checkpoint)
    write_predictions(ws, program_name, name, rows)
    chosen = program.get(program_name)
    deciding = [metric.name for metric in (chosen.primary_metric, *chosen.guarded_metrics)]
    costs = checkpoint_facts(ws, program_name, checkpoint, measure=True)
    scores = [CaseScore.of(row) for row in rows]
    pictures = [
        *drawn(ws, program_name, checkpoint, scores, ["median"]),
        *over_cases(ws, program_name, checkpoint, scores),
    ]
    return StageResult(
        data_version=digest(
            checkpoint,
            sorted({row["case_id"] for row in rows}),
            [[row["split"], row["metric"], row["subject"], row["mean"], row["n"]] for row in aggregates],
        ),
        counts=counts | {"failed": len(failures)},
        summary={"checkpoint": checkpoint, "dataset_version": version, "failures": failures, "interval": INTERVAL}
        | ({} if rows else {"note": NO_CASE})
        | ({"fine_tuning": record["output"]} if record else {})
        | ({"cost": costs} if costs else {}),
        tables={"scores": side_by_side(aggregates, deciding)},
        images={image.stem: image for image, _ in pictures},
    )


def found_no_case(ws: Workspace, program_name: str, name: str) -> bool:
    """Whether the last evaluation of an experiment is of its present checkpoint and had no case to score."""
    partition = f"{program_name}/{name}"
    trained, evaluated = (ws.lake.stamp(table, partition) for table in ("checkpoints", "evaluation_cases"))
    current = trained is not None and evaluated is not None and trained[0] <= evaluated[0]
    return current and not ws.lake.rows("evaluation_cases", partition)


def write_predictions(ws: Workspace, program_name: str, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `<split>_preds.parquet` of an experiment for people's own tools, in a program that has such a table."""
    chosen = program.get(program_name)
    for split in HELD_OUT:
        path = ws.reports / program_name / "experiments" / name / f"{split}_preds.parquet"
        path.unlink(missing_ok=True)
        if not isinstance(chosen, PredictionTable):
            continue
        table = chosen.prediction_table([CaseScore.of(row) for row in rows if row["split"] == split])
        if not table.empty:
            with replacing(path) as temporary:
                table.to_parquet(temporary, index=False)


@part_of("evaluate")
def aggregate(program_name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per split, metric and subject: mean over cases with its interval over patients."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    classed = by_class(program_name)
    for row in rows:
        groups.setdefault((row["split"], row["metric"], row["subject"]), []).append(row)
    out = []
    for (split, metric, subject), members in sorted(groups.items()):
        bounds = range_of(metric)
        values = mean_with_interval(
            [row["value"] for row in members],
            SEED,
            groups=[row["patient_id"] for row in members],
            strata=[row["truth"] for row in members] if (metric, subject) in classed else None,
        )
        out.append(
            {
                "split": split,
                "metric": metric,
                "subject": subject,
                "mean": values.mean,
                "low": bounds.cut(values.low),
                "high": bounds.cut(values.high),
            }
            | {"n": values.n, "unit": members[0]["unit"], "convention": members[0]["convention"], "interval": INTERVAL}
        )
    chosen = program.get(program_name)
    if not isinstance(chosen, PooledScores):
        return out
    for split in sorted({row["split"] for row in rows}):
        for score in chosen.pooled(
            [CaseScore.of({"program": program_name, **row}) for row in rows if row["split"] == split]
        ):
            ends = score if isinstance(score, PooledScore) else PooledScore(**asdict(score))
            row = {
                "split": split,
                "metric": score.metric,
                "subject": score.subject,
                "mean": score.value,
                "low": range_of(score.metric).cut(ends.low),
                "high": range_of(score.metric).cut(ends.high),
            }
            out.append(
                row
                | {
                    "n": score.n or 0,
                    "unit": score.unit,
                    "convention": score.convention,
                    "interval": ends.interval,
                }
            )
    return out


def leaderboard(ws: Workspace, program_name: str) -> StageResult:
    """All evaluated experiments side by side, best first by the primary metric on validation.

    The champion has a row of its own where its experiment was trained again since, and so has every other seed.
    """
    from med_assets.evaluation.replicates import SPREAD, replicates, spread
    from med_assets.reporting.plots import plot_leaderboard

    chosen = program.get(program_name)
    metrics, catalog = (chosen.primary_metric, *chosen.guarded_metrics), Catalog(ws, program_name)
    aggregates = ws.lake.rows("evaluation", program_name)
    present = {row["checkpoint"] for row in aggregates}
    holder, held = _champion_rows(ws, program_name, present)
    seeds = replicates(ws, program_name)
    shown_too = {*present, *(row["checkpoint"] for row in held)}
    own = {"experiment": holder, "checkpoint": held[0]["checkpoint"]} if held else {}
    aggregates += [row | own for row in aggregate(program_name, held)]
    aggregates += [
        {**row, "experiment": one.label} for one in seeds if one.checkpoint not in shown_too for row in one.scores
    ]
    rows: dict[str, dict[str, Any]] = {}
    for row in aggregates:
        for metric in metrics:
            if (row["metric"], row["subject"]) == (metric.name, metric.subject):
                entry = rows.setdefault(
                    row["experiment"], {"experiment": row["experiment"], "checkpoint": row["checkpoint"]}
                )
                for value in ("mean", "low", "high", "n"):
                    entry[f"{row['split']} {metric.name} {value}"] = row[value]
    first = f"val {metrics[0].name} mean"
    sign = 1 if metrics[0].lower_is_better else -1
    ordered = sorted(
        rows.values(), key=lambda row: (row.get(first) is None, sign * (row.get(first) or 0.0), row["experiment"])
    )
    table = pd.DataFrame(ordered)
    costs = {row["checkpoint"]: checkpoint_facts(ws, program_name, row["checkpoint"]) for row in ordered}
    images = {}
    prefix = f"val {metrics[0].name} "
    drawn = table.rename(columns={prefix + value: value for value in ("mean", "low", "high", "n")})
    if not table.empty and "mean" in drawn:
        path = ws.reports / program_name / "plots" / "leaderboard.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images["leaderboard"] = plot_leaderboard(
            path, drawn[["experiment", "mean", "low", "high", "n"]], unit=metrics[0].shown_unit, metric=f"{metrics[0].name} (validation)",
            lower_is_better=metrics[0].lower_is_better, champion=holder,
        )  # fmt: skip
    scored = primary_scores(ws, program_name, [row["experiment"] for row in ordered if row["checkpoint"] in present])
    if held and holder:
        scored[holder] = primary_rows(program_name, held)
    names = [row["experiment"] for row in ordered if row["experiment"] in scored]
    shown, pairs = _readable(ordered, metrics, costs), pairwise(program_name, names, scored)
    over_seeds = spread(program_name, seeds)
    folder = ws.reports / program_name
    write_text(folder / "leaderboard.csv", csv(table))
    more = f"\n{SPREAD}\n\n{markdown(over_seeds)}" if len(over_seeds) else ""
    write_text(folder / "leaderboard.md", f"{markdown(shown)}\n{PAIRWISE}\n\n{markdown(pairs)}{more}")
    return StageResult(
        # Covers every score: what reads the scores of all experiments depends on the leaderboard alone.
        data_version=digest(ordered, catalog.content(AggregateScore), catalog.content(CaseScore)),
        counts={"experiments": len(ordered)},
        summary={"sorted_by": f"{metrics[0].name} on validation", "interval": INTERVAL},
        tables={"leaderboard": shown, "pairwise": pairs} | ({"replicates": over_seeds} if len(over_seeds) else {}),
        images=images,
    )


def _champion_rows(
    ws: Workspace, program_name: str, present: Collection[str]
) -> tuple[str | None, list[dict[str, Any]]]:
    """The champion's name in the leaderboard and, where its checkpoint is no experiment's present one, its recorded scores by case."""
    from med_assets.evaluation.replicates import champion_label

    champion = Catalog(ws, program_name).champion()
    if champion is None:
        return None, []
    name, checkpoint = champion.experiment, champion.checkpoint
    if checkpoint in present or not ws.store.has(checkpoint):
        return name, []
    label = champion_label(name)
    return label, [row | {"experiment": label} for row in recorded_scores(ws, program_name, name, checkpoint).rows]


def primary_rows(program_name: str, rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of the primary metric on validation, by case."""
    metric = program.get(program_name).primary_metric
    wanted = ("val", metric.name, metric.subject)
    return {row["case_id"]: row for row in rows if (row["split"], row["metric"], row["subject"]) == wanted}


def primary_scores(ws: Workspace, program_name: str, names: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """By experiment and validation case, the row of the primary metric."""
    return {
        name: primary_rows(program_name, ws.lake.rows("evaluation_cases", f"{program_name}/{name}")) for name in names
    }


def paired(metric: Metric, first: Mapping[str, dict[str, Any]], second: Mapping[str, dict[str, Any]]) -> Interval:
    """The difference in the primary metric, first minus second, of two experiments as `primary_scores` has them."""
    both = sorted(first.keys() & second.keys())
    ours, theirs = ([side[case] for case in both] for side in (first, second))
    return paired_difference(
        [row["value"] for row in ours],
        [row["value"] for row in theirs],
        SEED,
        groups=[row["patient_id"] for row in ours],
        strata=[row["truth"] for row in ours] if metric.by_class else None,
        bounds=metric.range,
    )


def pairwise(program_name: str, names: Sequence[str], values: Mapping[str, dict[str, dict[str, Any]]]) -> pd.DataFrame:
    """The paired difference in the primary metric of each two of `names`, on the validation cases that both have.

    `values` has the rows of `primary_scores` by name.
    """
    metric = program.get(program_name).primary_metric
    rows = []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            found = paired(metric, values[first], values[second])
            if found.mean is None:
                continue
            told = (
                "no interval" if found.low is None or found.high is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
            )
            differs = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
            rows.append(
                {
                    "first": first,
                    "second": second,
                    f"difference, {metric.label}": f"{found.mean:+.3f}",
                    "95 % interval": told,
                }
                | {"n": str(found.n), "differs": "yes" if differs else "not shown"}
            )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; all but code, in backticks, shows as it is."""
    lines = [
        list(map(_shown, table.columns)),
        ["---"] * len(table.columns),
        *(map(_shown, row) for row in table.to_numpy()),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) if len(table) else "none\n"


def _shown(value: Any) -> str:
    text = str(value)
    return code(text[1:-1]) if len(text) > 1 and text[0] == text[-1] == "`" else inline(text)


def cell(row: Mapping[str, Any]) -> str:
    """An aggregate for people: `mean [low, high] (n = ...)`, empty where it is undefined."""
    if row.get("mean") is None:
        return ""
    interval = "" if row["low"] is None or row["high"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['mean']:.2f}{interval} (n = {row['n']})"


def side_by_side(aggregates: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> pd.DataFrame:
    """Aggregates of one model for people: a row per metric and subject, a column per split; the undefined are left out.

    The metrics named in `first` come first, and after them those whose subject is the whole case.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in aggregates:
        key = (row["metric"], row["subject"])
        entry = rows.setdefault(key, {"metric": key[0], "subject": key[1], "unit": row["unit"]})
        if cell(row):
            entry[row["split"]] = cell(row)
    there = list(dict.fromkeys([*HELD_OUT, *(row["split"] for row in aggregates)]))
    splits = [split for split in there if any(split in entry for entry in rows.values())]
    filled = [entry for entry in rows.values() if len(entry) > 3]
    filled.sort(key=lambda entry: (entry["metric"] not in first, entry["subject"] not in ("all", "body")))
    return pd.DataFrame(filled, columns=["metric", "subject", "unit", *splits]).fillna("")


def _readable(
    rows: list[dict[str, Any]], metrics: Sequence[Metric], costs: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """The leaderboard for people: one cell `mean [low, high] (n)` per split and metric, validation first, then what it costs."""
    columns = [(split, metric) for split in HELD_OUT for metric in metrics]

    def of(row: dict[str, Any], split: str, metric: Metric) -> str:
        return cell({value: row.get(f"{split} {metric.name} {value}") for value in ("mean", "low", "high", "n")})

    table = [
        {"experiment": row["experiment"]}
        | {f"{split} {metric.label}": of(row, split, metric) for split, metric in columns}
        | {name: f"{value:g}" for name, value in costs[row["checkpoint"]].items()}
        | {"checkpoint": row["checkpoint"]}
        for row in rows
    ]
    found = pd.DataFrame(table).fillna("")
    return found.loc[:, [name for name in found if (found[name] != "").any()]]
