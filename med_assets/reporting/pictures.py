"""Pictures of single cases under one checkpoint: for the report, and beside each evaluation in Dagster."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from med_assets import program
from med_assets.capabilities import ModelImages
from med_assets.catalog import Catalog
from med_assets.evaluation.predicting import prediction_key
from med_assets.program import Metric, Predicted, Program
from med_assets.records import CaseScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.versions import version_of, versioned


def typical_cases(scores: Iterable[CaseScore], metric: Metric, labels: Collection[str]) -> dict[str, CaseScore]:
    """The scores of the best, the median and the worst held-out case by a metric, as asked for; each case at most once."""
    sign = 1 if metric.lower_is_better else -1
    defined = [
        (sign * score.value, score.case_id, score)
        for score in scores
        if (score.metric, score.subject) == (metric.name, metric.subject) and score.value is not None
    ]
    ordered = [score for _, _, score in sorted(defined, key=lambda entry: entry[:2])]
    places = {"best": 0, "median": (len(ordered) - 1) // 2, "worst": len(ordered) - 1}
    chosen: dict[str, CaseScore] = {}
    for label in [label for label in places if label in labels and ordered]:
        score = ordered[places[label]]
        if all(score.case_id != other.case_id for other in chosen.values()):
            chosen[label] = score
    return chosen


def plot_typical_cases(
    ws: Settings,
    program_name: str,
    checkpoint: str,
    scores: Iterable[CaseScore],
    labels: Collection[str] = ("best", "median", "worst"),
    out: Path | None = None,
) -> list[tuple[Path, str]]:
    """Plots of the best, median and worst held-out case of a checkpoint, each with a caption.

    Cases without stored arrays or scores are left out. Files go to `out`, by default the checkpoint's folder beside the report.
    """
    chosen = program.get(program_name)
    metric = chosen.primary_metric
    artifacts = {case.case_id: case.artifact for case in Catalog(ws, program_name).cases()}
    pictures = []
    for label, score in typical_cases(scores, metric, labels).items():
        artifact = artifacts.get(score.case_id)
        if artifact is None:  # taken out of the dataset since it was scored
            continue
        if not ws.store.has(artifact):
            continue
        key = prediction_key(ws, program_name, checkpoint, artifact)
        if ws.store.has(key):
            folder = out or ws.reports / program_name / "plots" / checkpoint.rpartition("/")[2]
            caption = (
                f"{label.capitalize()} held-out case ({score.split}): {metric.name} {score.value:.2f}{metric.after}"
            )
            images = _images_of_case(ws, chosen, score.case_id, artifact, key, folder, keep=out is None)
            pictures += [(image, caption) for image in images]
    return pictures


@versioned("1")
def _images_of_case(
    ws: Settings, chosen: Program, case_id: str, artifact: str, prediction: str, folder: Path, keep: bool
) -> list[Path]:
    """Plots of one case and its prediction in `folder`. With `keep` those of an earlier call stand while nothing they show has changed."""
    record = folder / f"{case_id}.json"
    settings = chosen.evaluation_settings(ws)
    code = [version_of(_images_of_case), chosen.code_versions["evaluate"], settings]
    key = digest(code, artifact, prediction)
    kept = read_json(record) if keep and record.is_file() else {}
    if kept.get("key") == key and all((folder / name).is_file() for name in kept["files"]):
        return [folder / name for name in kept["files"]]
    images = chosen.report_images(ws, ws.store.fetch(artifact), ws.store.fetch(prediction), folder)
    if keep:
        write_json(record, {"key": key, "files": [image.name for image in images]})
    return images


def plot_all_cases(
    ws: Settings, program_name: str, checkpoint: str, scores: Sequence[CaseScore]
) -> list[tuple[Path, str]]:
    """Plots of a checkpoint over all its held-out cases, each with a caption."""
    chosen = program.get(program_name)
    if not scores or not isinstance(chosen, ModelImages):
        return []
    teacher = read_json(ws.store.fetch(checkpoint) / "provenance.json").get("teacher")
    values: dict[str, dict[str, float | None]] = {}
    for score in scores:
        if score.subject == chosen.primary_metric.subject:
            values.setdefault(score.case_id, {})[score.metric] = score.value
    cases = []
    for case in Catalog(ws, program_name).described():
        if case.case_id not in values or not ws.store.has(case.artifact):
            continue
        key = prediction_key(ws, program_name, checkpoint, case.artifact)
        if ws.store.has(key):
            theirs = prediction_key(ws, program_name, teacher, case.artifact) if teacher else ""
            taught = ws.store.fetch(theirs) if theirs and ws.store.has(theirs) else None
            places = ws.store.fetch(case.artifact), ws.store.fetch(key)
            cases.append(Predicted(case, *places, values[case.case_id], taught))
    return chosen.model_images(ws, cases, ws.reports / program_name / "plots" / checkpoint.rpartition("/")[2])
