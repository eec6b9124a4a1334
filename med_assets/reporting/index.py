"""The index of experiments: a row for every run, and for every experiment that was never trained.

It is a table of the lake, and rendered from there: `reports/P/EXPERIMENTS.md` and `experiments.html` of each program, and
`reports/EXPERIMENTS.md` over all of them.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import INTERVAL, cell
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.launch.runs import command_of
from med_assets.records import AggregateScore, ExperimentEntry, RunScore, TrainingRun
from med_assets.reporting.experiment_record import EARLIER, notebook_of
from med_assets.reporting.html import Highlight, Link, Section, render_report
from med_assets.reporting.run_status import CHAMPION, NOT_TRAINED, STALE, RunStatus, run_statuses
from med_assets.settings import Settings
from med_assets.storage.escaping import code, inline
from med_assets.storage.files import canonical_json, digest, write_text
from med_assets.storage.locks import alone
from med_assets.storage.result import StageResult

PAGE, HTML = "EXPERIMENTS.md", "experiments.html"

SHORT = 10
"""Characters shown of a commit and of a hash; the table of the lake has them whole."""

ABOUT = (
    "A row for every run, newest first, then the experiments that were never trained. Commit, data and configuration are those "
    "of the training; dirty is a run whose working tree differed from its commit. Metrics: mean over held-out cases, in "
    f"brackets the interval, {INTERVAL}. Stale: the same command would train another checkpoint today."
)


def index(ws: Settings, program_name: str) -> StageResult:
    """Write the index of a program, and the one over all programs."""
    catalog = Catalog(ws, program_name)
    entries = [_entry(catalog, status) for status in run_statuses(ws, program_name)]
    catalog.replace(ExperimentEntry, entries)
    folder = ws.reports / program_name
    shown = readable(entries, folder, ws)
    write_text(folder / PAGE, _markdown(program_name, shown))
    _html(ws, program_name, folder / HTML, entries)
    figures = _comparison(ws, program_name)
    _over_all(ws)
    return StageResult(
        data_version=digest(entries, [path.name for path in figures]),
        counts=dict(Counter(entry.status for entry in entries)),
        summary={"index": (folder / HTML).relative_to(ws.home).as_posix()},
        tables={"experiments": _brief(entries, shown)},
    )


def _entry(catalog: Catalog, status: RunStatus) -> ExperimentEntry:
    run, ws, note = status.run, catalog.ws, "; ".join([*status.notes, *status.stale])
    notebook = notebook_of(ws, run) if run else None
    present = run is not None and ws.store_location is None and ws.store.has(run.checkpoint)
    return ExperimentEntry(
        program=catalog.program,
        experiment=status.experiment,
        title=status.title,
        status=status.message,
        note=note,
        trained=run.trained_at if run else None,
        checkpoint=run.checkpoint if run else None,
        git_commit=run.git_commit if run else None,
        dirty=run.dirty if run else None,
        dataset_version=run.dataset_version if run else None,
        experiment_hash=run.experiment_hash if run else None,
        hardware=hardware(run) if run else None,
        seconds=run.seconds if run else None,
        metrics=canonical_json(_metrics(catalog, run)) if run else None,
        notebook=notebook.relative_to(ws.home).as_posix() if notebook else None,
        artifacts=ws.store.fetch(run.checkpoint).relative_to(ws.home).as_posix() if run and present else None,
        command=command_of(run) if run else f"med-assets train {catalog.program}/{status.experiment}",
    )


def hardware(run: TrainingRun) -> str:
    """What a run was trained on, in words."""
    cores = f"{run.cores} cores" if run.cores else None
    return ", ".join(filter(None, (run.accelerator, run.processor, cores))) or run.device or "not recorded"


def _metrics(catalog: Catalog, run: TrainingRun) -> dict[str, str]:
    """The deciding metrics of a run, each with interval and n, by split; empty before its evaluation."""
    chosen = program.get(catalog.program)
    scores: Sequence[RunScore | AggregateScore] = catalog.rows(RunScore, run.experiment, run.checkpoint) or [
        row for row in catalog.rows(AggregateScore, run.experiment) if row.checkpoint == run.checkpoint
    ]
    found = {(row.split, row.metric, row.subject): cell(row) for row in scores}
    return {
        f"{split} {metric.label}": found[key]
        for metric in chosen.deciding_metrics
        for split in HELD_OUT
        if found.get(key := (split, metric.name, metric.subject))
    }


def duration(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"


def readable(entries: Sequence[ExperimentEntry], here: Path, ws: Settings) -> list[dict[str, str | Link]]:
    """Entries for people, by column, with links relative to the folder `here`."""

    def link(text: str, target: str | None) -> str | Link:
        return Link(text, Path(os.path.relpath(ws.home / target, here)).as_posix()) if target else text

    metrics: list[dict[str, str]] = [json.loads(entry.metrics or "{}") for entry in entries]
    primary = program.get(entries[0].program).primary_metric.label if entries else ""
    shown = [label for split in HELD_OUT if any((label := f"{split} {primary}") in one for one in metrics)]
    return [
        {
            "trained (UTC)": (entry.trained or "")[:16].replace("T", " "),
            "experiment": link(entry.experiment, entry.notebook),
            "status": entry.status,
            **{label: found.get(label, "") for label in shown},
            "git commit": (entry.git_commit or "")[:SHORT] + (" dirty" if entry.dirty else ""),
            "data": (entry.dataset_version or "")[:SHORT],
            "configuration": (entry.experiment_hash or "")[:SHORT],
            "hardware": entry.hardware or "",
            "duration": duration(entry.seconds),
            "artifacts": link((entry.checkpoint or "").removeprefix("checkpoint/"), entry.artifacts),
            "guarded metrics": "; ".join(f"{label}: {text}" for label, text in found.items() if label not in shown),
            "note": entry.note or "",
            "command": entry.command,
        }
        for entry, found in zip(entries, metrics, strict=True)
    ]


def _brief(entries: Sequence[ExperimentEntry], shown: Sequence[Mapping[str, str | Link]]) -> pd.DataFrame:
    """The columns of the index that fit into a terminal."""
    left_out = ("guarded metrics", "note", "command", "hardware", "data")
    return pd.DataFrame(
        [
            {"experiment": entry.experiment, "title": entry.title}
            | {name: str(value) for name, value in cells.items() if name not in ("experiment", *left_out)}
            for entry, cells in zip(entries, shown, strict=True)
        ]
    )


def links(ws: Settings, program_name: str) -> dict[str, str]:
    """What the report leads to, by name: the index, the comparison for print, notebooks and figures; relative to the report."""
    folder = ws.reports / program_name
    found = {"All runs": HTML, "Comparison, PDF": "figures/comparison.pdf", "Comparison, PNG": "figures/comparison.png"}
    for entry in Catalog(ws, program_name).rows(ExperimentEntry):
        if entry.notebook:
            address = Path(os.path.relpath(ws.home / entry.notebook, folder)).as_posix()
            when = f" ({entry.status})" if EARLIER in Path(address).parts else ""
            found[f"{entry.experiment}{when}: notebook"] = address
            found[f"{entry.experiment}{when}: figures"] = f"{Path(address).parent.as_posix()}/figures/"
    return {name: address for name, address in found.items() if (folder / address).exists()}


def _table(rows: Sequence[Mapping[str, str | Link]]) -> str:
    def text(name: str, value: str | Link) -> str:
        if isinstance(value, Link):
            return f"[{inline(value)}]({quote(value.target)})"
        return code(value) if name == "command" else inline(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(*item) for item in row.items()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown(program_name: str, rows: Sequence[Mapping[str, str | Link]]) -> str:
    chosen = program.get(program_name)
    return f"# Experiments of {program_name}: {chosen.title}\n\n{ABOUT}\n\n{_table(rows) if rows else 'none'}\n"


def _html(ws: Settings, program_name: str, path: Path, entries: Sequence[ExperimentEntry]) -> None:
    shown = readable(entries, path.parent, ws)
    trained = [place for place, entry in enumerate(entries) if entry.checkpoint]
    scores = [
        name for name in (shown[0] if shown else ()) if name.endswith(program.get(program_name).primary_metric.label)
    ]
    first = ("trained (UTC)", "experiment", "status", *scores, "git commit", "duration")
    why = ("experiment", "status", "note", "guarded metrics")
    second = ("experiment", "trained (UTC)", "git commit", "data", "configuration", "hardware", "artifacts", "command")

    def part(names: Sequence[str], places: Sequence[int]) -> pd.DataFrame:
        return pd.DataFrame([{name: shown[place][name] for name in names} for place in places], columns=list(names))

    absent = [place for place, entry in enumerate(entries) if not entry.checkpoint]
    dirty = sum(bool(entry.dirty) for entry in entries)
    champion = next((entry.experiment for entry in entries if entry.status.split(",")[0] == CHAMPION), "none")
    stale = sum(STALE in entry.status for entry in entries)
    render_report(
        path,
        f"Experiments: {program.get(program_name).title}",
        [
            Section("Runs", ABOUT, part(first, trained), links={"Report": "report.html", "Markdown": PAGE}),
            Section("Why they stand there", "The gate's word, and what has changed since.", part(why, trained)),
            Section("To do them again", "The exact command of each run, at its commit.", part(second, trained)),
            Section("Not trained", "", part(("experiment", "command"), absent)),
        ],
        {
            "dataset_version": entries[0].dataset_version if entries else None,
            "purpose": ws.purpose,
            "profile": ws.profile,
        },
        subtitle=program.get(program_name).description,
        highlights=[
            Highlight("Runs", str(len(trained)), f"of {len({entry.experiment for entry in entries})} experiments"),
            Highlight("Champion", champion, "", "good" if champion != "none" else "warn"),
            Highlight("Dirty", str(dirty), "runs whose code was not all committed", "warn" if dirty else "good"),
            Highlight("Stale", str(stale), "data, configuration or code changed since", "warn" if stale else "good"),
        ],
    )


def _comparison(ws: Settings, program_name: str) -> list[Path]:
    """The experiments side by side, for print; plotted again only when a number changed."""
    from med_assets.reporting.plots import plot_leaderboard
    from med_assets.reporting.style import publication

    metric, catalog = program.get(program_name).primary_metric, Catalog(ws, program_name)
    rows = [
        {"experiment": row.experiment, "mean": row.mean, "low": row.low, "high": row.high, "n": row.n}
        for row in catalog.rows(AggregateScore)
        if (row.split, row.metric, row.subject) == ("val", metric.name, metric.subject)
    ]
    if not rows:
        return []
    champion = catalog.champion()
    holder = champion.experiment if champion else None
    path, key = ws.reports / program_name / "figures" / "comparison.png", digest(rows, holder)
    mark = path.with_suffix(".key")
    if not (path.is_file() and mark.is_file() and mark.read_text() == key):
        with publication():
            plot_leaderboard(
                path, pd.DataFrame(rows), unit=metric.shown_unit, metric=f"{metric.name} (validation)",
                lower_is_better=metric.lower_is_better, champion=holder,
            )  # fmt: skip
        write_text(mark, key)
    return [path, path.with_suffix(".pdf")]


def _over_all(ws: Settings) -> None:
    """Write the index over all programs. Of several that do so at once the last has read what all of them wrote."""
    with alone(ws, "experiments"):
        parts = [f"# Experiments of all programs\n\n{ABOUT}\n"]
        for name in program.registered():
            entries = Catalog(ws, name).rows(ExperimentEntry)
            if not entries:
                continue
            trained = [entry for entry in entries if entry.status != NOT_TRAINED]
            listed = _table(readable(trained, ws.reports, ws)) if trained else "none trained yet"
            others = ", ".join(entry.experiment for entry in entries if entry.status == NOT_TRAINED)
            parts.append(
                f"## [{name}]({name}/{HTML}): {program.get(name).title}\n\n{listed}\n"
                + (f"\nNot trained: {others}.\n" if others else "")
            )
        write_text(ws.reports / PAGE, "\n".join(parts))
