"""Commands of one experiment: train, score and record it; and of released weights and foreign masks."""

from pathlib import Path
from typing import Literal

import click

from med_assets.capabilities import ExportsModel, ExportsPipeline, PlotsFeatures
from med_assets.cli import stages
from med_assets.cli.commands import (
    EXPERIMENT,
    OVERRIDE,
    PROGRAM_OR_EXPERIMENT,
    Section,
    Several,
    Value,
    experiment,
    launch,
    launcher,
    one_of,
    overrides,
    program,
    show,
    show_tables,
    table,
    workspace,
)
from med_assets.cli.weights import describe, tokens
from med_assets.errors import ConfigurationError
from med_assets.records import AggregateScore, CaseScore
from med_assets.storage.escaping import csv

SECTION = Section("Experiments")
PREDICTIONS, VALUES = Value("PRED_DIR", Path), one_of("labels", "probabilities")


@SECTION.command()
@click.argument(
    "experiment",
    type=PROGRAM_OR_EXPERIMENT,
    required=False,
    help="write and print the index of this program: every run and its status; or print this one in full",
)
@overrides
def experiments(experiment: tuple[str, str | None] | None, overrides: tuple[str, ...]) -> int:
    """List experiments, write the index of a program's, or print one as it would be trained.

    Fails when an experiment of the list can't be used.
    """
    from med_assets import program
    from med_assets.launch import training
    from med_assets.settings import Settings

    ws = Settings.from_env()
    match experiment:
        case (wanted, None):
            result = stages.index(ws, program.get(wanted).name)
            print(f"{table(result.tables['experiments'])}\n{result.summary['index']}")
            return 0
        case (wanted, str(name)):
            print(training.experiment(ws, wanted, name, overrides).to_json())
            return 0
    found = {name: training.sorted_out(ws, name) for name in program.registered()}
    usable = {f"{name}/{each}": one for name, (good, _) in found.items() for each, one in good.items()}
    broken = {f"{name}/{each}": why for name, (_, bad) in found.items() for each, why in bad.items()}
    print(table({"experiment": title, "title": one.title, "hash": one.hash()[:12]} for title, one in usable.items()))
    for title, why in broken.items():
        print(f"{title} can't be used: {why}")
    return int(bool(broken))


@SECTION.command()
@experiment
@overrides
@launcher
@click.option(
    "--resume",
    type=one_of("auto", "must", "never"),
    default="auto",
    help="an interrupted training: resume it if there is one (auto), fail if there is none (must), start over (never)",
)
def train(experiment: tuple[str, str], overrides: tuple[str, ...], launcher: str | None, resume: str) -> None:
    """Train one experiment on the present dataset and splits; resumes what was interrupted.

    What was trained with the same inputs is adopted, and a job that runs already is followed.
    """
    ws = workspace()
    result = stages.train(ws, *experiment, overrides, launch(ws, launcher, resume))
    show(f"trained {'/'.join(experiment)}", result)


@SECTION.command()
@experiment
@overrides
@click.option(
    "--stratified", is_flag=True, help="folds of whole patients that have all classes alike, not those of the splits"
)
@launcher
def crossval(experiment: tuple[str, str], overrides: tuple[str, ...], stratified: bool, launcher: str | None) -> None:
    """Cross-validate an experiment over the folds of the splits: a model per fold, scored on the patients it never saw.

    Experiments that it starts from, or is distilled from, are trained in each fold too.
    """
    ws = workspace()
    result = stages.crossval(ws, *experiment, overrides, launch(ws, launcher), stratified=stratified)
    show(f"cross-validated {'/'.join(experiment)}", result)
    show_tables(result.tables)


@SECTION.command()
@experiment
@overrides
@click.option(
    "--sizes",
    type=Value("N", int),
    cls=Several,
    multiple=True,
    help="training patients; those of _program.yaml by default",
)
@click.option("--repeats", type=Value("K", int), help="orders of the patients, each a training per size")
@launcher
def learning_curve(
    experiment: tuple[str, str],
    overrides: tuple[str, ...],
    sizes: tuple[int, ...],
    repeats: int | None,
    launcher: str | None,
) -> None:
    """Train an experiment on growing numbers of patients: its score against their number, extrapolated to twice as many."""
    ws = workspace()
    result = stages.learning_curve(ws, *experiment, sizes or None, repeats, overrides, launch(ws, launcher))
    show(f"learning curve of {'/'.join(experiment)}", result)
    show_tables(result.tables, titled=False)


@SECTION.command()
@experiment
@click.argument(
    "fields",
    type=Value("KEY=A,B"),
    nargs=-1,
    required=True,
    help="values of a field, such as optimiser.lr=1e-3,1e-4; those of several fields are combined, each with each",
)
@click.option("--most", type=Value("N", int), default=32, help="most combinations; a sweep of more is refused")
@launcher
def sweep(experiment: tuple[str, str], fields: tuple[str, ...], most: int, launcher: str | None) -> int:
    """Train an experiment with each combination of some values, and score them on the validation cases alone.

    What was trained with the same inputs is adopted. A combination that fails is listed and fails the command; the others are trained.
    """
    ws = workspace()
    result = stages.sweep(ws, *experiment, fields, most, launch(ws, launcher))
    show(f"swept {'/'.join(experiment)}", result)
    show_tables(result.tables, titled=False)
    return int(bool(result.counts["failed"]))


@SECTION.command()
@experiment
@launcher
def evaluate(experiment: tuple[str, str], launcher: str | None) -> None:
    """Formally evaluate an experiment's checkpoint on the fixed splits."""
    from med_assets.catalog import Catalog

    ws, (program, name) = workspace(), experiment
    show(f"evaluated {program}/{name}", stages.evaluate(ws, program, name, launch(ws, launcher)))
    rows = Catalog(ws, program).frame(AggregateScore, name)
    print(table(rows[["split", "metric", "subject", "mean", "low", "high", "n", "unit"]]))


@SECTION.command()
@experiment
def record(experiment: tuple[str, str]) -> None:
    """Plot the figures of an evaluated experiment for print, and write its executed notebook."""
    show(f"record of {'/'.join(experiment)}", stages.record_experiment(workspace(), *experiment))


@SECTION.command()
@experiment
def thresholds(experiment: tuple[str, str]) -> None:
    """Fit the thresholds of unusual cases on the normal validation cases of an evaluation, and count false alarms on the test cases."""
    result = stages.thresholds(workspace(), *experiment)
    show(f"thresholds of {'/'.join(experiment)}", result)
    show_tables(result.tables, titled=False)


@SECTION.command()
@click.argument("predicted", type=PREDICTIONS, help="masks or probabilities: pictures, NIfTI, NRRD, DICOM SEG")
@click.argument(
    "truth", type=Value("GT_DIR", Path), help="true masks of the same names; NAME_mask, NAME_mask_1 are united"
)
@click.option("--pixel-mm", type=Value("MM", float), help="size of a pixel, for distances in mm")
@click.option(
    "--values", type=VALUES, help="what predicted files hold; by default probabilities if floating-point, else labels"
)
@click.option("--against", type=PREDICTIONS, help="other predictions, to compare image by image")
@click.option("--out", type=Value("CSV", Path), help="write the scores of every image here")
def score(
    predicted: Path,
    truth: Path,
    pixel_mm: float | None,
    values: Literal["labels", "probabilities"] | None,
    against: Path | None,
    out: Path | None,
) -> int:
    """Score a folder of masks against another, from anywhere.

    A pair that can't be scored is listed and fails the command.
    """
    from med_assets.evaluation.folders import aggregate, compare, score_folders

    scores, problems = score_folders(predicted, truth, pixel_mm, values)
    if out is not None:
        out.write_text(csv(scores))
    print(table(aggregate(scores)))
    if against is not None:
        others, more = score_folders(against, truth, pixel_mm, values)
        print(
            "paired differences, PRED_DIR minus --against, not corrected for their number; intervals end where the metric's range does"
        )
        print(table(compare(scores, others)))
        problems |= {f"{name} (--against)": reason for name, reason in more.items()}
    if problems:
        print(table({"not scored": name, "reason": reason} for name, reason in problems.items()))
    return int(bool(problems))


@SECTION.command()
@experiment
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
@click.option(
    "--pipeline",
    is_flag=True,
    help="write one file from pixels to result instead, check it against torch, and measure it on the validation cases",
)
@click.option("--quantise", is_flag=True, help="write the pipeline in 8 bits too, and measure what that costs")
def export(experiment: tuple[str, str], out: Path, pipeline: bool, quantise: bool) -> None:
    """Write the network of an experiment for other runtimes, as ONNX."""
    from med_assets import program
    from med_assets.catalog import Catalog
    from med_assets.launch.training import checkpoint_of, stored_checkpoint

    ws, (name, chosen) = workspace(), experiment
    exports, whole = program.get(name), pipeline or quantise
    model = checkpoint_of(ws, name, chosen)
    folder = stored_checkpoint(ws, name, model)
    ws.store.verify(model.checkpoint)
    if whole and isinstance(exports, ExportsPipeline):
        paths, rows = exports.export_pipeline(ws, folder, out, Catalog(ws, name).cases("val"), quantise)
        print(table(rows))
    elif not whole and isinstance(exports, ExportsModel):
        paths = exports.export_model(folder, out)
    else:
        raise ConfigurationError(
            f"expected a program whose models can be exported{' as a pipeline' if whole else ''}, got {name}, which has no "
            "such export"
        )
    for written in paths:
        print(written)


@SECTION.command()
@experiment
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
@click.option(
    "--layer",
    "layers",
    type=Value("NAME"),
    cls=Several,
    multiple=True,
    help="modules of the network, such as net.backbone.blocks.3; by default its features",
)
@click.option(
    "--method",
    "methods",
    type=one_of("pca", "tsne", "umap"),
    cls=Several,
    multiple=True,
    help="how they become a plane; by default tsne",
)
@click.option("--split", type=one_of("train", "val", "test", "external"), default="val", help="whose cases are shown")
def features(
    experiment: tuple[str, str],
    out: Path,
    layers: tuple[str, ...],
    methods: tuple[Literal["pca", "tsne", "umap"], ...],
    split: str,
) -> None:
    """Plot the features of chosen layers of a network: a point for each case of a split, and a table of their places."""
    from med_assets import program
    from med_assets.catalog import Catalog
    from med_assets.launch.training import checkpoint_of, stored_checkpoint

    ws, (name, chosen) = workspace(), experiment
    plots = program.get(name)
    if not isinstance(plots, PlotsFeatures):
        raise ConfigurationError(f"expected a program whose features can be shown, got {name}, which has none")
    model = checkpoint_of(ws, name, chosen)
    folder = stored_checkpoint(ws, name, model)
    ws.store.verify(model.checkpoint)
    cases = [case for case in Catalog(ws, name).described() if case.split == split]
    for written in plots.plot_features(ws, folder, cases, layers or ("features",), methods or ("tsne",), out):
        print(written)


@SECTION.command("score-file")
@experiment
@click.argument("file", type=Value("FILE", Path), help="weights from elsewhere: a state dict of torch, or safetensors")
@click.option("--split", type=one_of("train", "val", "test", "external"), default="val", help="whose cases are scored")
@click.option("--out", type=Value("CSV", Path), help="write the scores of every case here")
@click.option("--set", "overrides", type=OVERRIDE, multiple=True, help="override of the experiment: network.lora=none")
def score_file(
    experiment: tuple[str, str], file: Path, split: str, out: Path | None, overrides: tuple[str, ...]
) -> int:
    """Score a file of weights from elsewhere in the network of an experiment, under the hash of the file.

    Nothing is recorded, and no leaderboard shows it. A file that does not fill the whole network is refused.
    """
    from med_assets import program
    from med_assets.catalog import frame
    from med_assets.evaluation.aggregates import side_by_side
    from med_assets.evaluation.foreign import score_file as scored

    ws, (name, chosen) = workspace(), experiment
    found = scored(ws, name, chosen, file, split, overrides)
    if out is not None:
        out.write_text(csv(frame(CaseScore, found.scores)))
    print(table(side_by_side(found.aggregates, [metric.name for metric in program.get(name).deciding_metrics])))
    print(f"SHA-256 {found.sha256}: {found.tensors} tensors, the whole network of {name}/{chosen}")
    print(
        "scored here and recorded nowhere. Whether patients of this split were in its training is not known: compare it with own "
        "models on cases that its authors can't have had"
    )
    if found.failures:
        print(table({"not scored": case, "reason": reason} for case, reason in found.failures.items()))
    return int(bool(found.failures))


@SECTION.command()
@click.argument("file", type=Value("FILE", Path), required=False, help="weights, or tokenizer.json with --prompt")
@click.option("--experiment", type=EXPERIMENT, help="try it in this one instead of the one that takes such files")
@click.option("--set", "overrides", type=OVERRIDE, multiple=True, help="override of the experiment: profiles=demo")
@click.option("--prompt", type=Value("TEXT"), help="print the tokens of a text, for network.prompt of SAM3")
@click.option("--table", "page", type=Value("PAGE", Path), help="write the table of released weights into this page")
def weights(
    file: Path | None,
    experiment: tuple[str, str] | None,
    overrides: tuple[str, ...],
    prompt: str | None,
    page: Path | None,
) -> None:
    """Identify a file of released weights, the experiment that takes it, and what a network computes with it."""
    from med_assets.cli.weights_page import page as written

    if page is not None:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote the table of {page}")
    elif file is None:
        raise ConfigurationError("expected FILE, or --table PAGE; give one of the two")
    elif prompt is not None:
        print(" ".join(map(str, tokens(file, prompt))))
    else:
        describe(file, experiment, overrides)


@SECTION.command()
@program
@click.argument("name", type=Value("NAME"), required=False, help="the file to download; without it they are listed")
def fetch(program: str, name: str | None) -> None:
    """Download a published file of weights or data that a program names, or list them.

    Read and accept its licence on the page of its host first. Credentials come from the environment: KAGGLE_API_TOKEN, or KAGGLE_USERNAME and
    KAGGLE_KEY; HF_TOKEN where Hugging Face asks for one. What an ended call left is gone on from.
    """
    from med_assets.experiments import fetching
    from med_assets.settings import Settings

    ws = Settings.from_env()
    if name is None:
        print(
            table(
                {
                    "name": each.name,
                    "what": each.kind,
                    "place": str(each.path.relative_to(ws.home)),
                    "state": each.state,
                    "SHA-256": each.sha256 or "not known",
                    "fetched from": fetching.page(each.release.hosted) if each.release.hosted else "a person gets it",
                    "source": each.release.source,
                }
                for each in fetching.sources(ws, program).values()
            )
        )
        return
    found = fetching.fetch(ws, program, name)
    stated = fetching.sources(ws, program)[name].release.sha256
    how = "was there" if found.existed else f"downloaded, {found.resumed_at} bytes of it earlier"
    print(f"{found.path}: {how}; {found.size_bytes} bytes, SHA-256 {found.sha256}")
    print(
        "it is the hash that its publisher states"
        if stated
        else "its publisher's hash is not known; this one is written beside the file"
    )


@SECTION.command("export-dataset")
@program
@click.argument("dest", type=Value("DEST", Path), help="folder that gets the folder of the dataset")
@click.option(
    "--layout", type=one_of("nnunet", "totalsegmentator"), default="nnunet", help="layout of folders and names"
)
@click.option("--id", "number", type=Value("N", int), default=501, help="nnunet: id of the dataset, 1 to 999")
@click.option(
    "--folds",
    is_flag=True,
    help="divide the training cases by our folds, for models that are averaged; validation cases go out without labels",
)
def export_dataset(program: str, dest: Path, layout: str, number: int, folds: bool) -> None:
    """Write the images and labels of a segmentation program with our splits, in the layout of nnU-Net v2 or TotalSegmentator."""
    from med_assets.evaluation.segmentation_files import write_dataset

    written = write_dataset(workspace(), program, dest, number, layout, folds=folds)
    print(f"{written.folder}: {', '.join(f'{n} {split}' for split, n in written.cases.items())}")


@SECTION.command("import-predictions")
@experiment
@click.argument("folder", type=Value("FOLDER", Path), help="label files named by case, or CASE/segmentations/LABEL")
def import_predictions(experiment: tuple[str, str], folder: Path) -> None:
    """Score predictions of another framework, such as nnU-Net, as one more experiment of the leaderboard; it can't be promoted."""
    from med_assets.evaluation.segmentation_files import import_predictions as run

    found = run(workspace(), *experiment, folder)
    print(f"{'/'.join(experiment)}: {found.scored} cases scored ({found.key})")
    if found.left_out:
        print(table({"left out": name, "reason": reason} for name, reason in found.left_out.items()))
