"""The index of experiments: a row for every run, and for every experiment that was never trained.

It is a table of the lake, and rendered from there: `reports/P/EXPERIMENTS.md` and `experiments.html` of each program, and
`reports/EXPERIMENTS.md` over all of them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from med_assets import program
from med_assets.evaluation import runs
from med_assets.evaluation.stage import HELD_OUT, INTERVAL, cell
from med_assets.reporting.escaping import code, inline
from med_assets.reporting.experiment_record import EARLIER, command_of, notebook_of
from med_assets.reporting.run_status import CHAMPION, NOT_TRAINED, RunStatus, run_statuses
from med_assets.settings import Workspace
from med_assets.storage.files import canonical_json, digest, write_text
from med_assets.storage.locks import alone
from med_assets.storage.result import StageResult

TABLE, PAGE, HTML = "experiments", "EXPERIMENTS.md", "experiments.html"

SHORT = 10
"""Characters shown of a commit and of a hash; the table of the lake has them whole."""

ABOUT = (
    "A row for every run, newest first, then the experiments that were never trained. Commit, data and configuration are those "
    "of the training; dirty is a run whose working tree differed from its commit. Metrics: mean over held-out cases, in "
    f"brackets the interval, {INTERVAL}. Stale: the same command would train another checkpoint today."
)


def index(ws: Workspace, program_name: str) -> StageResult:
    """Write the index of a program, and the one over all programs."""
    rows = [_row(ws, program_name, one) for one in run_statuses(ws, program_name)]
    ws.lake.write(TABLE, program_name, rows)
    folder = ws.reports / program_name
    shown = readable(rows, folder, ws)
    write_text(folder / PAGE, _markdown(program_name, shown))
    _html(ws, program_name, folder / HTML, rows)
    figures = _comparison(ws, program_name)
    _over_all(ws)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return StageResult(
        data_version=digest(rows, [path.name for path in figures]),
        counts=counts,
        summary={"index": (folder / HTML).relative_to(ws.home).as_posix()},
        tables={"experiments": _brief(rows, shown)},
    )


def _row(ws: Workspace, program_name: str, one: RunStatus) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ws.lake.tables[TABLE])
    row |= {"program": program_name, "experiment": one.experiment, "title": one.title, "status": one.message}
    row["note"] = "; ".join([*one.notes, *one.stale])
    run = one.run
    if run is None:
        return row | {"command": f"med-assets train {program_name}/{one.experiment}"}
    columns = ("checkpoint", "git_commit", "dirty", "dataset_version", "experiment_hash", "seconds")
    notebook = notebook_of(ws, run)
    there = ws.store_place is None and ws.store.has(run["checkpoint"])
    return row | {name: run[name] for name in columns} | {
        "trained": run["trained_at"],
        "hardware": hardware(run),
        "metrics": canonical_json(_metrics(ws, program_name, run)),
        "notebook": notebook.relative_to(ws.home).as_posix() if notebook else None,
        "artifacts": ws.store.fetch(run["checkpoint"]).relative_to(ws.home).as_posix() if there else None,
        "command": command_of(run),
    }  # fmt: skip


def hardware(run: Mapping[str, Any]) -> str:
    """What a run was trained on, in words."""
    cores = f"{run['cores']} cores" if run["cores"] else None
    return ", ".join(filter(None, (run["accelerator"], run["processor"], cores))) or run["device"] or "not recorded"


def _metrics(ws: Workspace, program_name: str, run: Mapping[str, Any]) -> dict[str, str]:
    """The deciding metrics of a run, each with interval and n, by split; empty before its evaluation."""
    chosen = program.get(program_name)
    rows = ws.lake.rows(runs.SCORES, runs.partition(program_name, run["experiment"], run["checkpoint"]))
    rows = rows or [
        row
        for row in ws.lake.rows("evaluation", f"{program_name}/{run['experiment']}")
        if row["checkpoint"] == run["checkpoint"]
    ]
    found = {(row["split"], row["metric"], row["subject"]): cell(row) for row in rows}
    return {
        f"{split} {metric.label}": found[key]
        for metric in (chosen.primary_metric, *chosen.guarded_metrics)
        for split in HELD_OUT
        if found.get(key := (split, metric.name, metric.subject))
    }


def duration(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"


def readable(rows: Sequence[Mapping[str, Any]], here: Path, ws: Workspace) -> list[dict[str, Any]]:
    """Rows for people, with links relative to the folder `here`."""
    from med_assets.reporting.html import Link

    def link(text: str, target: str | None) -> Any:
        return Link(text, Path(os.path.relpath(ws.home / target, here)).as_posix()) if target else text

    metrics = [json.loads(row["metrics"] or "{}") for row in rows]
    primary = program.get(rows[0]["program"]).primary_metric.label if rows else ""
    shown = [label for split in HELD_OUT if any((label := f"{split} {primary}") in one for one in metrics)]
    return [
        {
            "trained (UTC)": (row["trained"] or "")[:16].replace("T", " "),
            "experiment": link(row["experiment"], row["notebook"]),
            "status": row["status"],
            **{label: found.get(label, "") for label in shown},
            "git commit": (row["git_commit"] or "")[:SHORT] + (" dirty" if row["dirty"] else ""),
            "data": (row["dataset_version"] or "")[:SHORT],
            "configuration": (row["experiment_hash"] or "")[:SHORT],
            "hardware": row["hardware"] or "",
            "duration": duration(row["seconds"]),
            "artifacts": link((row["checkpoint"] or "").removeprefix("checkpoint/"), row["artifacts"]),
            "guarded metrics": "; ".join(f"{label}: {text}" for label, text in found.items() if label not in shown),
            "note": row["note"] or "",
            "command": row["command"],
        }
        for row, found in zip(rows, metrics, strict=True)
    ]


def _brief(rows: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The columns of the index that a terminal has room for."""
    left_out = ("guarded metrics", "note", "command", "hardware", "data")
    return pd.DataFrame(
        [
            {"experiment": row["experiment"], "title": row["title"]}
            | {name: str(value) for name, value in told.items() if name not in ("experiment", *left_out)}
            for row, told in zip(rows, shown, strict=True)
        ]
    )


def links(ws: Workspace, program_name: str) -> dict[str, str]:
    """What the report leads to, by name: the index, the comparison for print, notebooks and figures; relative to the report."""
    folder = ws.reports / program_name
    found = {"All runs": HTML, "Comparison, PDF": "figures/comparison.pdf", "Comparison, PNG": "figures/comparison.png"}
    for row in ws.lake.rows(TABLE, program_name):
        if row["notebook"]:
            address = Path(os.path.relpath(ws.home / row["notebook"], folder)).as_posix()
            when = f" ({row['status']})" if EARLIER in Path(address).parts else ""
            found[f"{row['experiment']}{when}: notebook"] = address
            found[f"{row['experiment']}{when}: figures"] = f"{Path(address).parent.as_posix()}/figures/"
    return {name: address for name, address in found.items() if (folder / address).exists()}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    from med_assets.reporting.html import Link

    def text(name: str, value: Any) -> str:
        if isinstance(value, Link):
            return f"[{inline(value)}]({quote(value.target)})"
        return code(value) if name == "command" else inline(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(*item) for item in row.items()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown(program_name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    chosen = program.get(program_name)
    return f"# Experiments of {program_name}: {chosen.title}\n\n{ABOUT}\n\n{_table(rows) if rows else 'none'}\n"


def _html(ws: Workspace, program_name: str, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from med_assets.reporting.html import Highlight, Section, render_report

    shown = readable(rows, path.parent, ws)
    trained = [place for place, row in enumerate(rows) if row["checkpoint"]]
    scores = [
        name for name in (shown[0] if shown else ()) if name.endswith(program.get(program_name).primary_metric.label)
    ]
    first = ("trained (UTC)", "experiment", "status", *scores, "git commit", "duration")
    why = ("experiment", "status", "note", "guarded metrics")
    second = ("experiment", "trained (UTC)", "git commit", "data", "configuration", "hardware", "artifacts", "command")

    def part(names: Sequence[str], places: Sequence[int]) -> pd.DataFrame:
        return pd.DataFrame([{name: shown[place][name] for name in names} for place in places], columns=list(names))

    absent = [place for place, row in enumerate(rows) if not row["checkpoint"]]
    dirty = sum(bool(row["dirty"]) for row in rows)
    champion = next((row["experiment"] for row in rows if row["status"].split(",")[0] == CHAMPION), "none")
    stale = sum("stale" in row["status"] for row in rows)
    render_report(
        path,
        f"Experiments: {program.get(program_name).title}",
        [
            Section("Runs", ABOUT, part(first, trained), links={"Report": "report.html", "Markdown": PAGE}),
            Section("Why they stand there", "The gate's word, and what has changed since.", part(why, trained)),
            Section("To do them again", "The exact command of each run, at its commit.", part(second, trained)),
            Section("Not trained", "", part(("experiment", "command"), absent)),
        ],
        {"dataset_version": rows[0]["dataset_version"] if rows else None, "purpose": ws.purpose, "profile": ws.profile},
        subtitle=program.get(program_name).description,
        highlights=[
            Highlight("Runs", str(len(trained)), f"of {len({row['experiment'] for row in rows})} experiments"),
            Highlight("Champion", champion, "", "good" if champion != "none" else "warn"),
            Highlight("Dirty", str(dirty), "runs whose code was not all committed", "warn" if dirty else "good"),
            Highlight("Stale", str(stale), "data, configuration or code changed since", "warn" if stale else "good"),
        ],
    )


def _comparison(ws: Workspace, program_name: str) -> list[Path]:
    """The experiments side by side, for print; drawn anew only when a number changed."""
    from med_assets.reporting.plots import plot_leaderboard
    from med_assets.reporting.style import publication

    metric = program.get(program_name).primary_metric
    rows = [
        {name: row[name] for name in ("experiment", "mean", "low", "high", "n")}
        for row in ws.lake.rows("evaluation", program_name)
        if (row["split"], row["metric"], row["subject"]) == ("val", metric.name, metric.subject)
    ]
    if not rows:
        return []
    champions = ws.lake.rows("champions", program_name)
    holder = champions[-1]["experiment"] if champions else None
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


def _over_all(ws: Workspace) -> None:
    """Write the index over all programs. Of several that do so at once the last has read what all of them wrote."""
    with alone(ws, "experiments"):
        parts = [f"# Experiments of all programs\n\n{ABOUT}\n"]
        for name in program.registered():
            rows = ws.lake.rows(TABLE, name)
            if not rows:
                continue
            trained = [row for row in rows if row["status"] != NOT_TRAINED]
            listed = _table(readable(trained, ws.reports, ws)) if trained else "none trained yet"
            others = ", ".join(row["experiment"] for row in rows if row["status"] == NOT_TRAINED)
            parts.append(
                f"## [{name}]({name}/{HTML}): {program.get(name).title}\n\n{listed}\n"
                + (f"\nNot trained: {others}.\n" if others else "")
            )
        write_text(ws.reports / PAGE, "\n".join(parts))
