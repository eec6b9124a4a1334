"""Formal evaluation: the very checkpoint that an experiment recorded, scored on fixed splits, per case and in aggregate."""

from collections.abc import Sequence
from dataclasses import asdict

from med_assets import program
from med_assets.capabilities import PredictionTable
from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import INTERVAL, aggregate, side_by_side
from med_assets.evaluation.confidence import confidence_table, curves, evaluate_confidence
from med_assets.evaluation.costs import checkpoint_facts
from med_assets.evaluation.finetuning import finetuning
from med_assets.evaluation.scoring import HELD_OUT, demand_scores, record_failures, scores_of
from med_assets.evaluation.subgroups import subgroup_scores, subgroup_table
from med_assets.experiments.configuration import from_json
from med_assets.launch.runs import record_run, record_scores
from med_assets.launch.training import Launch, checkpoint_of, stored_checkpoint
from med_assets.records import AggregateScore, CaseScore, Checkpoint, SubgroupScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, replacing
from med_assets.storage.provenance import git_state
from med_assets.storage.result import StageResult

NO_CASE = (
    "no case to score: none with a label is held out and opened for this checkpoint; nothing is known of how good it is"
)


def evaluate(ws: Settings, program_name: str, name: str, launch: Launch | None = None) -> StageResult:
    """Score the recorded checkpoint of an experiment on all held-out cases and aggregate with bootstrap intervals.

    `launch` replaces the launcher that the experiment or the workspace names. Without any such case the tables are empty and the summary says so. The pictures are of the median case; the report has the best and the worst too.
    """
    from med_assets.reporting.pictures import plot_all_cases, plot_typical_cases

    catalog, chosen, row = Catalog(ws, program_name), program.get(program_name), checkpoint_of(ws, program_name, name)
    checkpoint = row.checkpoint
    text = (stored_checkpoint(ws, program_name, row) / "experiment.json").read_text(encoding="utf-8")
    # Training records its run; a checkpoint from before runs were kept gets its record here.
    record_run(ws, row, from_json(program_name, text))
    scores, counts, failures = scores_of(ws, program_name, name, checkpoint, launch)
    record_failures(ws, program_name, "evaluation", name, checkpoint, failures)
    demand_scores(scores, failures, program_name)
    version = catalog.dataset().version
    origin = {
        "program": program_name, "experiment": name, "checkpoint": checkpoint, "dataset_version": version,
        "code_version": chosen.code_versions["evaluate"], "git_commit": git_state(),
    }  # fmt: skip
    aggregates = [AggregateScore.of(asdict(one) | origin) for one in aggregate(program_name, scores)]
    catalog.replace(CaseScore, scores, name)
    catalog.replace(AggregateScore, aggregates, name)
    facts = {case.case_id: case.facts for case in catalog.described()}
    by_subgroup = [SubgroupScore.of(asdict(one) | origin) for one in subgroup_scores(program_name, scores, facts)]
    catalog.replace(SubgroupScore, by_subgroup, name)
    calibration, trusted = evaluate_confidence(ws, program_name, name, checkpoint, scores)
    sorted_by = curves(program_name, scores, trusted)
    by_agreement = curves(program_name, scores, trusted, "agreement")
    record_scores(ws, program_name, name, checkpoint, aggregates)
    record = finetuning(ws, program_name, name, checkpoint, launch)
    write_predictions(ws, program_name, name, scores)
    deciding = [metric.name for metric in chosen.deciding_metrics]
    costs = checkpoint_facts(ws, program_name, checkpoint, measure=True)
    pictures = [
        *plot_typical_cases(ws, program_name, checkpoint, scores, ["median"]),
        *plot_all_cases(ws, program_name, checkpoint, scores),
    ]
    return StageResult(
        data_version=digest(
            checkpoint,
            sorted({score.case_id for score in scores}),
            [[one.split, one.metric, one.subject, one.mean, one.n] for one in aggregates],
        ),
        counts=counts | {"failed": len(failures)},
        summary={"checkpoint": checkpoint, "dataset_version": version, "failures": failures, "interval": INTERVAL}
        | ({} if scores else {"note": NO_CASE})
        | {"confidence": calibration.note}
        | ({"fine_tuning": record.output} if record else {})
        | ({"cost": costs} if costs else {}),
        tables={"scores": side_by_side(aggregates, deciding)}
        | ({"subgroups": subgroup_table(by_subgroup)} if by_subgroup else {})
        | ({"confidence": confidence_table(trusted, sorted_by, by_agreement)} if sorted_by else {}),
        images={image.stem: image for image, _ in pictures},
    )


def found_no_case(ws: Settings, program_name: str, name: str) -> bool:
    """Whether the last evaluation of an experiment is of its present checkpoint and had no case to score."""
    catalog = Catalog(ws, program_name)
    trained, evaluated = catalog.stamp(Checkpoint, name), catalog.stamp(CaseScore, name)
    current = trained is not None and evaluated is not None and trained[0] <= evaluated[0]
    return current and not catalog.rows(CaseScore, name)


def write_predictions(ws: Settings, program_name: str, name: str, scores: Sequence[CaseScore]) -> None:
    """Write `<split>_preds.parquet` of an experiment for people's own tools, in a program that has such a table."""
    chosen = program.get(program_name)
    for split in HELD_OUT:
        path = ws.reports / program_name / "experiments" / name / f"{split}_preds.parquet"
        path.unlink(missing_ok=True)
        if not isinstance(chosen, PredictionTable):
            continue
        table = chosen.prediction_table([score for score in scores if score.split == split])
        if not table.empty:
            with replacing(path) as temporary:
                table.to_parquet(temporary, index=False)
