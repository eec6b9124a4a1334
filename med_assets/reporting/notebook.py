"""The text of an experiment's notebook: ten sections, made from facts by rule. Section names are those of the seed's template."""

from collections.abc import Iterator

import yaml

from med_assets import program
from med_assets.evaluation.aggregates import INTERVAL, cell
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.evaluation.sweeps import RULE
from med_assets.evaluation.targets import table as targets_table
from med_assets.experiments.configuration import Experiment
from med_assets.launch.runs import command_of
from med_assets.records import AggregateScore, CaseScore, DatasetCase, EpochMetric, SplitAssignment, TrainingRun
from med_assets.reporting.experiment_facts import Facts
from med_assets.reporting.interpretation import analysis, conclusions, difference, next_steps
from med_assets.reporting.notebooks import Cell
from med_assets.storage.escaping import code, fenced, inline, markdown
from med_assets.storage.record import Record

SECTIONS = (
    "1. Overview", "2. Reproducibility", "3. Dataset", "4. Model and method", "5. Training", "6. Results", "7. Analysis",
    "8. Conclusions", "9. Next steps", "10. Artifacts",
)  # fmt: skip

COMMON = tuple(Experiment.model_fields)
"""Fields that every experiment has; what else there is belongs to the method."""

START = """from pathlib import Path

import duckdb
import pyarrow.parquet as pq

# The folder of the lake is found from here upwards, so that the notebook runs wherever the home is.
home = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "LAKE").is_dir())


def table(name, partition):
    # A path within SQL would be a pattern.
    duckdb.register(f"{name}/{partition}", pq.ParquetFile(home / "LAKE" / name / f"{partition}.parquet").read())
    return f'"{name}/{partition}"'


def rows(query):
    return duckdb.sql(query).df()"""


def cells(facts: Facts) -> list[Cell]:
    """All cells of the notebook, each section under its own heading."""
    writers = (
        _overview, _reproducibility, _dataset, _model, _training, _results, _analysis, _conclusions, _next_steps, _artifacts,
    )  # fmt: skip
    found = [Cell(START.replace("LAKE", facts.catalog.files), code=True)]
    for title, write in zip(SECTIONS, writers, strict=True):
        first, *others = write(facts)
        found += [Cell(f"## {title}\n\n{first.text}"), *others]
    return [Cell(f"# {facts.program}/{facts.name}: {inline(facts.configured.title)}"), *found]


def _rows(facts: Facts, query: str, of: type[Record], *key: str) -> Cell:
    """A cell that reads one partition of a table; `{}` in the query is that partition."""
    return Cell(f'rows(f"""{query.format(_table_of(facts, of, *key))}""")', code=True)


def _table_of(facts: Facts, of: type[Record], *key: str) -> str:
    """A partition of a table in the f-string of a query, by the function `table` of the first cell."""
    facts.catalog.file(of, *key)  # which brings it to this machine in a shared home
    return f"{{table({of.TABLE!r}, {facts.catalog.partition(of, *key)!r})}}"


def _lines(*lines: str) -> Cell:
    return Cell("\n".join(lines))


def _bullets(lines: list[str]) -> Cell:
    return Cell("\n".join(f"- {line}" for line in lines))


def _table(rows: list[dict[str, str]]) -> str:
    import pandas as pd

    return markdown(pd.DataFrame(rows))


def _scores(facts: Facts) -> str:
    chosen = program.get(facts.program)
    metrics = chosen.deciding_metrics
    by_key = {(row.split, row.metric, row.subject): row for row in facts.scores}
    found = [
        {"metric": metric.label}
        | {split: cell(by_key[key]) for split in HELD_OUT if (key := (split, metric.name, metric.subject)) in by_key}
        for metric in metrics
    ]
    splits = [split for split in HELD_OUT if any(split in row for row in found)]
    return _table([{name: row.get(name, "") for name in ("metric", *splits)} for row in found])


def _overview(facts: Facts) -> Iterator[Cell]:
    metric = program.get(facts.program).primary_metric
    results = [f"**Status**: {inline(facts.status.message)}."]
    results += [f"**{inline(difference(metric, found, other))}**" for other, found in facts.differences.items()]
    yield _lines(
        f"**Objective.** {inline(facts.configured.description)}",
        "",
        f"**Key results.** Mean over held-out cases; in brackets its interval, {INTERVAL}.",
        "",
        _scores(facts),
        "",
        *(f"- {line}" for line in results),
    )


def commits(facts: Facts) -> str:
    """The code that trained it, in short, and marked where it was not all committed."""
    return facts.run.git_commit + (" (dirty)" if facts.run.dirty else "")


def _reproducibility(facts: Facts) -> Iterator[Cell]:
    run, versions = facts.run, facts.versions
    warning = (
        "**The working tree was dirty**: files differed from that commit when it was trained, so the commit alone does not "
        "give this result.\n\n"
        if run.dirty
        else ""
    )
    cores = f"{run.cores} cores" if run.cores else ""
    hardware = ", ".join(filter(None, (run.accelerator, run.processor, cores, run.device)))
    yield _lines(
        warning + _table(
            [
                {"": "Git commit", "Value": commits(facts)},
                {"": "Trained", "Value": run.trained_at or "not recorded"},
                {"": "Duration", "Value": "not recorded" if run.seconds is None else f"{run.seconds:.0f} s"},
                {"": "Hardware", "Value": hardware or "not recorded"},
                {"": "Seed", "Value": str(facts.configured.seed)},
                {"": "Configuration hash", "Value": run.experiment_hash},
                {"": "Versions", "Value": ", ".join(f"{name} {text}" for name, text in versions.items()) or "not recorded"},
            ]
        ),
        "", "The same again:", "", "```bash", f"git checkout {run.git_commit.split(', ')[-1]}", command_of(run),
        f"med-assets evaluate {facts.program}/{facts.name}", f"med-assets record {facts.program}/{facts.name}", "```",
    )  # fmt: skip
    query = _rows(facts, "select * from {}", TrainingRun, facts.name, run.checkpoint)
    yield Cell(f"{query.text}.T", code=True)


def _dataset(facts: Facts) -> Iterator[Cell]:
    run = facts.run
    now = (
        "which is the present one"
        if run.dataset_version == facts.dataset_now
        else f"the present one is {facts.dataset_now}"
    )
    synthetic = (
        "Some or all of its cases are **synthetic**: no number here says anything about patients."
        if run.synthetic
        else "No case is synthetic."
    )
    yield _lines(
        f"Trained on {run.n_train} cases and chosen on {run.n_val}, dataset version `{run.dataset_version}`, {now}. {synthetic}",
        "",
        "The present dataset by split:",
    )
    yield Cell(
        f'rows(f"""select split, count(*) as cases, count(distinct d.patient_id) as patients, '
        f"count(*) filter (d.synthetic) as synthetic\n"
        f"from {_table_of(facts, DatasetCase)} d join {_table_of(facts, SplitAssignment)} s using (patient_id)\n"
        f'group by split order by split""")',
        code=True,
    )


def _yaml(values: dict[str, object]) -> str:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return fenced(text.rstrip("\n"), "yaml")


def _model(facts: Facts) -> Iterator[Cell]:
    own = {name: value for name, value in facts.configured.model_dump(mode="json").items() if name not in COMMON}
    measured = {"parameters": facts.run.parameters, **facts.costs}
    costs = ", ".join(
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:g}"
        for name, value in measured.items()
        if value is not None
    )
    yield _lines(f"{program.get(facts.program).title}. {costs}.", "", _yaml(own))


def _training(facts: Facts) -> Iterator[Cell]:
    names = ("seed", "precision", "initial", "teacher", "optimiser", "schedule", "profile")
    whole = facts.configured.model_dump(mode="json")
    yield _lines(
        _yaml({name: whole[name] for name in names if whole[name] is not None}),
        "",
        "As it ran: "
        + (", ".join(f"{name} {value}" for name, value in facts.ran_with.items()) or "not recorded")
        + ".",
        "",
        "The last epochs of its history:",
    )
    yield Cell(
        _rows(facts, "select epoch, metric, value from {}", EpochMetric, facts.name).text
        + '.pivot(index="epoch", columns="metric", values="value").tail(8)',
        code=True,
    )


def _results(facts: Facts) -> Iterator[Cell]:
    chosen = program.get(facts.program)
    wanted = ", ".join(f"'{metric.name}'" for metric in chosen.deciding_metrics)
    yield _lines("The deciding metrics as the lake has them:")
    query = f"select split, metric, subject, mean, low, high, n, unit from {{}} where metric in ({wanted}) order by split, metric, subject"
    yield _rows(facts, query, AggregateScore, facts.name)
    if facts.targets:
        yield _lines(
            "What it is held against, by `targets` of the experiment; a mean decides, and no promotion does.",
            "",
            markdown(targets_table(facts.targets)),
        )
    for image, caption in facts.figures.captions.items():
        # The address ends in a part of the picture's hash, which makes the cell another when the picture is.
        yield Cell(
            f"![{inline(caption)}](figures/{image})\n\n{inline(caption)} ([PDF](figures/{image.removesuffix('.png')}.pdf); "
            f"{facts.figures.hashes[image][:12]})"
        )


def _analysis(facts: Facts) -> Iterator[Cell]:
    metric = program.get(facts.program).primary_metric
    yield _bullets(analysis(facts))
    order = "desc" if metric.lower_is_better else "asc"
    yield _lines(f"The held-out cases with the worst {metric.name}:")
    query = (
        f"select case_id, split, value, unit from {{}} where metric = '{metric.name}' and subject = '{metric.subject}' "
        f"and value is not null order by value {order}, case_id limit 5"
    )
    yield _rows(facts, query, CaseScore, facts.name)
    for one in facts.sweeps:
        stale = "" if one.current else " The dataset has changed since."
        yield _lines(f"Sweep over {inline(one.fields)}. {RULE}.{stale}", "", markdown(one.rows))


def _conclusions(facts: Facts) -> Iterator[Cell]:
    yield _bullets(conclusions(facts))


def _next_steps(facts: Facts) -> Iterator[Cell]:
    yield _bullets(next_steps(facts))


def _artifacts(facts: Facts) -> Iterator[Cell]:
    rows = [{"What": what, "Path in the home": code(facts.relative(path))} for what, path in facts.artifacts.items()]
    rows += [
        {"What": f"figure {file}", "Path in the home": f"`{facts.relative(facts.folder / 'figures' / file)}`"}
        for file in facts.figures.hashes
    ]
    run = facts.run
    yield _lines(
        _table(rows),
        "",
        f"Checkpoint `{run.checkpoint}`, SHA-256 of its weights `{run.weights_sha256}`. The store's manifest says of them:",
    )
    stored = facts.relative(next(iter(facts.artifacts.values())))
    yield Cell(f'import json\n\njson.loads((home / {stored!r} / "manifest.json").read_text())', code=True)
