"""Sections about the model that the report shows: its cases, scores and model card, unusual cases, and its use over time."""

import os
from collections.abc import Iterable
from pathlib import Path

from med_assets.capabilities import ReportTables, Screens
from med_assets.evaluation.aggregates import INTERVAL, aggregate, side_by_side
from med_assets.evaluation.subgroups import UNKNOWN, subgroup_scores, subgroup_table
from med_assets.experiments import policies
from med_assets.monitoring.drift import drift_table
from med_assets.monitoring.stage import LIMITS_RULE, headline, monitored_subgroups, plot_trends, trend_table
from med_assets.records import Champion
from med_assets.reporting.dataset_card import dataset_card_path
from med_assets.reporting.html import Section, model_card
from med_assets.reporting.model_card import AS_JSON, README, model_card_folder
from med_assets.reporting.pictures import plot_all_cases, plot_typical_cases
from med_assets.reporting.report_facts import ReportFacts, ShownModel, not_evaluated
from med_assets.reporting.subgroup_plots import plot_subgroups
from med_assets.screening.stage import recorded_screening


def model(facts: ReportFacts) -> Iterable[Section]:
    """Which model it is, how it came to that, and its best, median and worst case."""
    if (shown := facts.shown) is None:
        yield Section("Champion", f"There is none. Last decision of the gate: {facts.decision}.")
        return
    what = "The champion" if shown.promoted else "The best candidate, not promoted,"
    text = (
        f"{what} is {shown.experiment}, checkpoint {shown.checkpoint}.\n\nLast decision of the gate: {facts.decision}."
    )
    if shown.recorded.missing:
        text += f"\n\n{not_evaluated(shown.recorded.missing, _command(facts, shown))}"
    history = facts.catalog.frame(Champion).drop(columns=["program", "dataset_version"]) if shown.promoted else None
    pictures = plot_typical_cases(facts.ws, facts.name, shown.checkpoint, shown.recorded.rows)
    yield Section(
        "Champion" if shown.promoted else "Best candidate",
        text,
        history,
        [image for image, _ in pictures],
        [caption for _, caption in pictures],
        shown_with_run=True,
    )


def _command(facts: ReportFacts, shown: ShownModel) -> str:
    """What scores the cases without scores: of an experiment that was trained again, evaluation scores the newest checkpoint."""
    newest = facts.catalog.checkpoint(shown.experiment)
    present = newest is not None and newest.checkpoint == shown.checkpoint
    return f"evaluate {facts.name}/{shown.experiment}" if present else f"monitor {facts.name}"


def held_out_cases(facts: ReportFacts) -> Iterable[Section]:
    """The program's plots over all held-out cases."""
    if (shown := facts.shown) is None:
        return
    if plots := plot_all_cases(facts.ws, facts.name, shown.checkpoint, shown.recorded.rows):
        images, captions = [path for path, _ in plots], [caption for _, caption in plots]
        yield Section("All held-out cases", images=images, captions=captions, shown_with_run=True)


def program_tables(facts: ReportFacts) -> Iterable[Section]:
    """The program's own tables of one split."""
    shown, chosen = facts.shown, facts.program
    if shown is None or not shown.recorded.rows or not isinstance(chosen, ReportTables):
        return
    rows = shown.scores[shown.scores["split"] == shown.split]
    for table in chosen.report_tables(rows):
        text = f"{table.text} {rows['case_id'].nunique()} cases of the split {shown.split}."
        yield Section(table.title, text, table.rows)


def all_scores(facts: ReportFacts) -> Iterable[Section]:
    """Every metric and subject by split."""
    if facts.shown is not None:
        table = side_by_side(aggregate(facts.name, facts.shown.recorded.rows))
        yield Section("All scores", f"Mean over cases. {INTERVAL}.", table, folded=True)


def subgroups(facts: ReportFacts) -> Iterable[Section]:
    """The scores of each declared subgroup, with a figure of the primary metric."""
    if (shown := facts.shown) is None:
        return
    rows = subgroup_scores(facts.name, shown.recorded.rows, {case.case_id: case.facts for case in facts.cases})
    if not rows:
        return
    metric, least = facts.program.primary_metric, policies.of(facts.name).subgroups.min_patients
    text = (
        f"Declared in `subgroups` of `conf/{facts.name}/_program.yaml`; cases without the fact are the subgroup {UNKNOWN}. Mean over cases. "
        f"{INTERVAL}. A subgroup of fewer than {least} patients has no score: it would be noise, and tell of single patients. Intervals "
        "of several subgroups are not corrected for their number."
    )
    plotted = [
        row for row in rows if (row.split, row.metric, row.subject) == (shown.split, metric.name, metric.subject)
    ]
    images, captions = [], []
    if any(row.mean is not None for row in plotted):
        path = facts.folder / "plots" / "subgroups.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append(plot_subgroups(path, plotted, metric=metric, split=shown.split))
        captions.append(
            f"{metric.name} of {shown.experiment} by subgroup of the split {shown.split}: mean and 95 % interval."
        )
    yield Section("Subgroups", text, subgroup_table(rows), images, captions)


def definitions(facts: ReportFacts) -> Iterable[Section]:
    """How each score is computed."""
    if facts.shown is not None:
        conventions = facts.shown.scores[["metric", "convention"]].drop_duplicates()
        yield Section("Definitions", "How each score is computed.", conventions, folded=True)


def card(facts: ReportFacts) -> Iterable[Section]:
    """The model card."""
    if facts.shown is None:
        return
    chosen, shown = facts.program, facts.shown
    held_out = shown.scores.drop_duplicates("case_id").groupby("split")["case_id"].count().to_dict()
    synthetic = ["made of synthetic cases"] if any(case.synthetic for case in facts.cases) else []
    yield model_card(
        intended_use=chosen.intended_use,
        not_for=chosen.not_for,
        training_data=f"{shown.model.n_train} cases, dataset version {shown.model.dataset_version}",
        evaluation_data=", ".join(f"{split}: {n} cases" for split, n in held_out.items()),
        metrics="; ".join(f"{m.name}: {m.meaning}" for m in chosen.deciding_metrics),
        limitations=[*chosen.limitations, *synthetic],
        owners=chosen.owners,
    )


def cards(facts: ReportFacts) -> Iterable[Section]:
    """The cards that machines read, of the present dataset and of the model, or the commands that write them."""
    paths = {"Croissant of the dataset": dataset_card_path(facts.ws, facts.name, facts.dataset_version)}
    commands = [f"card dataset {facts.name}"]
    if (shown := facts.shown) is not None:
        folder = model_card_folder(facts.ws, facts.name, shown.experiment, shown.checkpoint)
        paths |= {"Model card for the Hugging Face Hub": folder / README, "Model card as JSON": folder / AS_JSON}
        commands.append(f"card model {facts.name}{'' if shown.promoted else f'/{shown.experiment}'}")
    links = {
        title: Path(os.path.relpath(path, facts.folder)).as_posix() for title, path in paths.items() if path.is_file()
    }
    text = "Of the present dataset and of this model."
    if len(links) < len(paths):
        text = f"Written by {' and '.join(f'`med-assets {command}`' for command in commands)}."
    yield Section("Cards that machines read", text, links=links)


def screening(facts: ReportFacts) -> Iterable[Section]:
    """Unusual cases among all cases, of a program that looks for them."""
    shown, chosen = facts.shown, facts.program
    if shown is None or not isinstance(chosen, Screens):
        return
    screened, missing = recorded_screening(facts.ws, facts.name, shown.model)
    command = f"audit-queue {facts.name} --model {shown.experiment}"
    left_out = not_evaluated(missing, command) if missing else ""
    if screened.rows.empty:
        if left_out:
            yield Section("Screening", left_out)
        return
    out = facts.folder / "plots" / "screening"
    out.mkdir(parents=True, exist_ok=True)
    studies = screened.rows.drop_duplicates("case_id")
    seen = int(studies["seen_in_training"].sum())
    about = f"All {len(studies)} studies under {shown.experiment}, of which {seen} had a part in its training."
    about += f" {left_out}" if left_out else ""
    for table in chosen.screening().sections(facts.ws, screened, out):
        yield Section(table.title, f"{about} {table.text}", table.rows, table.images, table.captions)


def monitoring(facts: ReportFacts) -> Iterable[Section]:
    """The champion over batches, and whether new cases drift from those it was trained on; nothing before the first batch."""
    if facts.shown is None or not facts.shown.promoted:
        return
    table, images = trend_table(facts.ws, facts.name), list(plot_trends(facts.ws, facts.name).values())
    if table.empty:
        return
    means = "; ".join(f"{metric}: {mean}" for metric, mean in headline(facts.ws, facts.name).items())
    text = f"On cases that the champion has not seen, {means}.\n\n{LIMITS_RULE}."
    yield Section("Monitoring", text, table, images, shown_with_run=True)
    by_subgroup = monitored_subgroups(facts.ws, facts.name)
    if not by_subgroup.empty:
        text = f"The champion on all monitored cases that it has not seen, by declared subgroup. {INTERVAL}."
        yield Section("Monitoring by subgroup", text, by_subgroup, folded=True)
    drifted = drift_table(facts.ws, facts.name)
    if not drifted.empty:
        text = (
            "Facts of new cases against those of the champion's training cases: numbers by the two-sample "
            "Kolmogorov-Smirnov distance, the rest by the distance of their shares; p adjusted over the facts by Holm's method, "
            "those of all subgroups together."
        )
        yield Section("Drift", text, drifted, folded=True)
