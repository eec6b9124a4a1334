"""Commands that compare models: leaderboard, promotion, monitoring, analyses, report."""

import click

from med_assets.cli import stages
from med_assets.cli.commands import (
    PROGRAM_OR_EXPERIMENT,
    Section,
    Value,
    launch,
    launcher,
    one_of,
    program,
    reason,
    show,
    show_tables,
    table,
    workspace,
)
from med_assets.errors import ConfigurationError
from med_assets.records import Champion, SubgroupScore
from med_assets.storage import names

SECTION = Section("Models of a program")
EXPERIMENT, ANALYSIS = Value("NAME", names.EXPERIMENT.check), Value("NAME", names.ANALYSIS.check)
CHECKPOINT = Value("CHECKPOINT", names.ARTIFACT.check)


@SECTION.command()
@program
def leaderboard(program: str) -> None:
    """Compare all evaluated experiments, with n and intervals."""
    from med_assets.catalog import Catalog
    from med_assets.evaluation.leaderboard import board

    ws = workspace()
    result, champion = stages.leaderboard(ws, program), Catalog(ws, program).champion()
    show_tables(board(ws, program, champion).tables if champion else result.tables)


@SECTION.command()
@click.argument(
    "subject", type=PROGRAM_OR_EXPERIMENT, help="program, for the model of its report; or PROGRAM/EXPERIMENT"
)
def subgroups(subject: tuple[str, str | None]) -> None:
    """Show the deciding scores of each declared subgroup, such as a device or a band of sizes, with n and intervals.

    `subgroups` of `conf/PROGRAM/_program.yaml` declares them; what is shown is that of the last evaluation. The table
    `evaluation_subgroups` has further metrics.
    """
    from med_assets.catalog import Catalog
    from med_assets.evaluation.subgroups import subgroup_table
    from med_assets.program import get
    from med_assets.promotion.champions import shown

    program, experiment = subject
    ws = workspace()
    model, champion = shown(ws, program) if experiment is None else (None, False)
    name = experiment or (model.experiment if model else None)
    rows = Catalog(ws, program).rows(SubgroupScore, name) if name else []
    if not rows:
        raise ConfigurationError(
            f"expected scores by subgroup of {program}/{name or 'an experiment'}, got none; declare subgroups in conf/{program}/_program.yaml "
            f"and run `med-assets evaluate {program}/{name or 'EXPERIMENT'}`"
        )
    what = "the champion" if champion else "the best candidate" if model else "the experiment"
    print(f"{what} {name}, {rows[0].checkpoint}")
    deciding = {(metric.name, metric.subject) for metric in get(program).deciding_metrics}
    print(table(subgroup_table(rows, deciding)))


@SECTION.command()
@program
@click.option(
    "--experiment", type=EXPERIMENT, help="consider only this experiment, also after its checkpoint was rolled back"
)
def promote(program: str, experiment: str | None) -> int:
    """Promote the best experiment if it passes the gate, and say why or why not.

    Fails when the one that was named is refused.
    """
    result = stages.champion(workspace(), program, experiment)
    show_champion(result)
    return int(experiment is not None and bool(result.summary["decision"]["refused"]))


def show_champion(result: stages.StageResult) -> None:
    """Print the champion and the gate's decisions."""
    print(f"champion: {result.summary['champion'] or 'none'} ({result.summary['checkpoint'] or '-'})")
    print(f"decision: {result.summary['decision']['reason']}")
    print(table(result.tables["decisions"]))


@SECTION.command()
@program
@click.option("--to", type=CHECKPOINT, help="this earlier champion; the one before the present by default")
@reason
def rollback(program: str, to: str | None, reason: str) -> None:
    """Make an earlier champion the champion again."""
    from med_assets.catalog import Catalog

    ws = workspace()
    now = stages.rollback(ws, program, reason, to)
    print(f"champion: {now.experiment} ({now.checkpoint}), {now.action}: {now.reason}")
    print(table(Catalog(ws, program).frame(Champion)))


@SECTION.command("accept-scores")
@program
@reason
def accept_scores(program: str, reason: str) -> None:
    """Hold the champion to its present scores instead of those of its promotion.

    The check `champion_regression` fails while the champion is worse than when it was promoted, such as after a metric got
    another definition. Dagster shows the gate as passed when `champion` is materialized again.
    """
    now = stages.accept_scores(workspace(), program, reason)
    print(f"champion: {now.experiment} ({now.checkpoint}), {now.action}: {now.reason}")


@SECTION.command()
@program
@launcher
def monitor(program: str, launcher: str | None) -> None:
    """Score the champion on every batch that it was not scored on yet; show trend and drift."""
    ws = workspace()
    result = stages.monitor(ws, program, launch=launch(ws, launcher))
    show("monitored", result)
    show_tables(result.tables)


@SECTION.command()
@program
@click.argument("name", type=ANALYSIS, required=False, help="only this one; all that are not expensive by default")
def analyse(program: str, name: str | None) -> None:
    """Run the analyses of a program, or one of them, and write tables and plots."""
    from med_assets.evaluation import analysis

    ws, known = workspace(), analysis.of(program)
    for chosen in [name] if name else [one.name for one in known.values() if not one.expensive]:
        result = stages.analyse(ws, program, chosen)
        show(f"analysed {program}/{chosen}", result)
        show_tables(result.tables)
    left = [one.name for one in known.values() if one.expensive and not name]
    if left or not known:
        print(f"not run, since expensive; give the name: {', '.join(left)}" if left else f"{program} has no analyses")


@SECTION.command()
@program
def report(program: str) -> None:
    """Write the HTML report and print its path."""
    show("report", stages.report(workspace(), program))


@SECTION.command()
@program
@click.argument(
    "case", nargs=-1, type=Value("CASE", names.CASE.check), help="cases whose exported predictions are to come too"
)
def pull(program: str, case: tuple[str, ...]) -> None:
    """Bring the reports of a program here as the machines that share this home have them, and print where they are.

    Stages and the review page do so by themselves; this is for whoever opens the files of a machine that runs neither.
    """
    from med_assets.storage.s3 import shared_files

    ws = workspace()
    if ws.store_location is None:
        raise ConfigurationError(
            "expected a home that machines share, got that of this machine alone, whose files are here; MED_ASSETS_STORE shares it"
        )
    shared_files.pull(ws, program)
    shared_files.pull_predictions(ws, program, case)
    for folder in (ws.reports / program, *(ws.predictions / program / each for each in case)):
        n = sum(1 for _ in shared_files.files_below(folder))
        print(f"{folder}: {n} files" if n else f"{folder}: nothing, no machine wrote any")


@SECTION.command()
@click.argument("kind", type=one_of("dataset", "model"), help="what the card is about: dataset or model")
@click.argument("subject", type=PROGRAM_OR_EXPERIMENT, help="program; of a model its champion, or PROGRAM/EXPERIMENT")
@click.option(
    "--version",
    type=Value("VERSION", names.DATASET.check),
    help="dataset: check again the card of this earlier version, or of the one that begins so",
)
def card(kind: str, subject: tuple[str, str | None], version: str | None) -> None:
    """Write the card that machines read: Croissant of the present dataset, or the Hugging Face README.md and JSON of a model.

    What it says comes from the home and from `conf/PROGRAM/_card.yaml`; mlcroissant and huggingface_hub read it back, offline.
    """
    program, experiment = subject
    if kind == "dataset":
        if experiment:
            raise ConfigurationError(f"expected a program for the card of its dataset, got {program}/{experiment}")
        show(f"data card of {program}", stages.dataset_card(workspace(), program, version))
    else:
        if version:
            raise ConfigurationError("expected --version with the card of a dataset, got that of a model")
        show(f"model card of {program}", stages.model_card(workspace(), program, experiment))


@SECTION.command()
@program
@click.option(
    "--host", type=Value("HOST"), default="127.0.0.1", help="address to bind to; another machine needs a token"
)
@click.option("--port", type=Value("PORT", int), default=8123, help="0 for any that is free")
@click.option("--waiting", type=Value("N", int), default=4, help="uploads that wait beside the one that is predicted")
@click.option("--max-mb", type=Value("MB", int), default=2000, help="largest upload")
@click.option(
    "--timeout",
    type=Value("SECONDS", int),
    default=600,
    help="longest that an upload, its prediction with the waiting, and its answer take, each",
)
def serve(program: str, host: str, port: int, waiting: int, max_mb: int, timeout: int) -> None:
    """Answer predictions over HTTP with the champion, until Ctrl-C.

    POST /predict takes what `predict` takes in a folder: a DICOM file, an archive of a case, or an image file. GET /health,
    /ready and /metrics are for whoever watches. MED_ASSETS_SERVE_TOKEN is the token that requests need, if any.
    """
    from med_assets.serving.server import serve as run
    from med_assets.serving.service import Limits

    if waiting < 0 or min(max_mb, timeout) < 1:
        raise ConfigurationError(
            f"expected --waiting of 0 or more, --max-mb and --timeout of 1 or more, got {waiting}, {max_mb} and {timeout}"
        )
    run(workspace(), program, host, port, Limits(waiting, max_mb * 1_000_000, float(timeout)))
