"""What each command of `med-assets` does. Tables for people go to stdout, progress to stderr."""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import ExportsModel, LabelMeanings, RequiredStructures
from med_assets.catalog import Catalog, query_tables
from med_assets.cli import doctor, stages
from med_assets.cli.explain import batches_by_version, explain_case
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analysis
from med_assets.landing import batches
from med_assets.records import AggregateScore, CaseVersion, Champion, PreparedCase, ReaderDecision, Status
from med_assets.reporting.escaping import csv
from med_assets.settings import Workspace
from med_assets.storage import integrity, names
from med_assets.storage.result import StageResult

Command = Callable[[argparse.Namespace], int | None]


def table(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> str:
    """Rows as aligned text, or a dash when there are none; a last column of text, such as a reason, is never cut."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if frame.empty:
        return "-"
    *first, last = frame.columns
    lines = frame.to_string(index=False, na_rep="-", max_colwidth=100, columns=first).splitlines() if first else []
    if not first or frame[last].map(lambda value: isinstance(value, str)).sum() == 0:
        return str(frame.to_string(index=False, na_rep="-", max_colwidth=100))
    ends = [last, *("-" if pd.isna(value) else str(value) for value in frame[last])]
    return "\n".join(f"{line} {end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _show(title: str, result: StageResult) -> None:
    """One stage's outcome: counts, then what was quarantined and why, and what the audit warns of."""
    counts = ", ".join(f"{number} {label}" for label, number in result.counts.items())
    print(f"{title}: {counts}" if counts else title)
    for name, value in result.summary.items():
        print(f"  {name}: {value}")
    quarantined = result.tables.get("quarantine")
    if quarantined is not None and not quarantined.empty:
        print(table(quarantined))
    warned = result.tables.get("warnings")
    if warned is not None and not warned.empty:
        print(table(warned))


def import_cases(options: argparse.Namespace) -> int:
    """Import cases of another layout as DICOM; what is skipped is listed with its reason."""
    from med_assets.landing.bucket import S3Landing
    from med_assets.landing.importing import volumes
    from med_assets.programs.breast_us import importer as breast
    from med_assets.programs.lumbar_mr import importer as lumbar_t2
    from med_assets.programs.lumbar_mr import importer_rsna as rsna_lumbar
    from med_assets.programs.retinal_oct import importer as ai_readi
    from med_assets.programs.rt_dose import importer as openkbp
    from med_assets.storage.s3.bucket import place

    if len(options.src) != (2 if options.source == "pair" else 1):
        raise ConfigurationError(
            f"expected {'IMAGE LABEL DEST: a pair needs a label' if options.source == 'pair' else 'SRC DEST'}, "
            f"got {len(options.src) + 1} paths"
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigurationError(f"expected --limit of 1 or more, got {options.limit}")
    remote = place(str(options.src[0]), "SRC")
    if remote is not None and options.source != "ai-readi":
        raise ConfigurationError(
            f"expected a folder for {options.source}, got a bucket; only ai-readi is read from one"
        )
    if options.source == "openkbp":
        report = openkbp.import_patients(options.src[0], options.dest, options.patients)
    elif options.source == "lumbar-t2":
        report = lumbar_t2.import_cases(options.src[0], options.dest, options.patients, options.limit)
    elif options.source == "rsna-lumbar":
        report = rsna_lumbar.import_studies(options.src[0], options.dest, options.patients, options.limit)
    elif remote is not None:
        ws = Workspace.configuration()
        with ai_readi.from_bucket(S3Landing(remote, ws.home, ws.settle_s, ws.staging_gb * 1e9)) as fetch:
            report = ai_readi.import_participants(
                fetch, options.dest, options.patients, options.limit, address=str(options.src[0])
            )
    elif options.source == "ai-readi":
        report = ai_readi.import_participants(options.src[0], options.dest, options.patients, options.limit)
    elif options.source in breast.SETS:
        report = breast.import_images(options.source, options.src[0], options.dest, options.limit, options.external)
    else:
        names = dict(options.names or ())
        match options.source:
            case "msd":
                pairs = volumes.msd_pairs(options.src[0], options.val_fold)
            case "datalist":
                pairs = volumes.datalist_pairs(options.src[0], options.val_fold)
            case _:
                pairs = [volumes.pair(options.src[0], options.src[1], options.name)]
        report = volumes.import_pairs(pairs, options.dest, names)
    if report.labels:
        reads = program.get("lung_ct")  # whose importers read label volumes
        assert isinstance(reads, LabelMeanings)
        meaning = reads.label_meaning
        print(table(replace(row, maps_to=meaning(row.name)).shown() for row in report.labels))
        if any(not meaning(row.name) for row in report.labels):
            print(
                "a label that maps to - is trained only where labels.mapping of an experiment names its source value; give it the "
                "name of a class with --names VALUE=NAME where it is one"
            )
    replaced = f", {len(report.updated)} replaced by corrected content" if report.updated else ""
    print(f"imported {len(report.imported)} cases, {len(report.existing)} were there already{replaced}")
    if report.skipped:
        print(table({"skipped": name, "reason": reason} for name, reason in report.skipped.items()))
    some = bool(report.imported or report.existing or report.updated)
    if any(reason.startswith("name_taken") for reason in report.skipped.values()):
        return 1
    others_go_on = options.source in ("openkbp", "lumbar-t2", "rsna-lumbar", "ai-readi", *breast.SETS)
    return 0 if some and (others_go_on or not report.skipped) else 1


def phantoms(options: argparse.Namespace) -> None:
    """Write synthetic cases."""
    program.get(options.program).write_phantoms(options.dest, options.number, options.seed)
    print(f"wrote {options.number} synthetic case(s)")


def ingest(options: argparse.Namespace) -> None:
    """Intake, preparation, dataset and splits for what lies in the landing folder."""
    ws, name = Workspace.from_env(), options.program
    ws.landing_zone(name).refresh()
    if options.batch:
        batches.manifest(ws, name, options.batch)
        todo = [options.batch]
    else:
        todo = batches.unfinished(ws, name)
        seen = batches.survey(ws, name)
        waiting = seen.untaken
        chosen = waiting if options.now else batches.settled(ws, name, time.time(), seen)
        if chosen:
            todo.append(batches.take(ws, name, chosen, time.time()))
    if not todo:
        print(f"{ws.landing_zone(name).title(name)}: {batches.waiting(ws, name, time.time(), seen)}")
        if waiting:
            print("wait, or use --now")
        if not stages.up_to_date(ws, name):  # a run was ended before its end
            _show("dataset", stages.dataset(ws, name))
            _show("splits", stages.splits(ws, name))
        return
    for batch in todo:
        print(f"batch {batch}")
        _show("taken in", stages.intake(ws, name, batch))
        _show("prepared", stages.prepare(ws, name, batch))
    _show("dataset", stages.dataset(ws, name))
    _show("splits", stages.splits(ws, name))


def list_batches(options: argparse.Namespace) -> None:
    """Batches with their cases, and what waits."""
    ws, name = Workspace.from_env(), options.program
    catalog, rows = Catalog(ws, name), []
    for batch in batches.known(ws, name):
        states = Counter(case.status for case in catalog.case_versions(batch))
        counted = {
            "to predict": states[Status.TO_PREDICT],
            "quarantined": states[Status.QUARANTINED],
            "notes": states[Status.NOTE],
        }
        rows.append({"batch": batch, "cases": states.total() - states[Status.NOTE], **counted})
    print(table(rows))
    print(f"waiting in the landing folder: {len(batches.untaken(ws, name))}")


def experiments(options: argparse.Namespace) -> int:
    """List all experiments, write and print the index of a program's, or print one whole, as it would be trained here."""
    from med_assets.launch import training

    ws = Workspace.configuration()
    wanted, experiment = options.experiment or (None, None)
    if wanted is not None and experiment is None:
        result = stages.index(ws, program.get(wanted).name)
        print(f"{table(result.tables['experiments'])}\n{result.summary['index']}")
        return 0
    if wanted is None or experiment is None:
        listed = []
        for name in program.registered():
            for each, found in training.usable(ws, name).items():
                listed.append({"experiment": f"{name}/{each}", "title": found.title, "hash": found.hash()[:12]})
        print(table(listed))
        refused = {
            f"{name}/{each}": why for name in program.registered() for each, why in training.broken(ws, name).items()
        }
        for title, why in refused.items():
            print(f"{title} can't be used: {why}")
        return int(bool(refused))
    print(training.experiment(ws, wanted, experiment, options.overrides).to_json())
    return 0


def train(options: argparse.Namespace) -> None:
    """Train, or adopt what was trained with the same inputs; a job that runs already is followed."""
    from med_assets.launch.follow import finish

    ws = Workspace.from_env()
    launch = partial(finish, default=ws.launcher, asked=options.launcher, resume=options.resume)
    name, experiment = options.experiment
    result = stages.train(ws, name, experiment, tuple(options.overrides), launch)
    _show(f"trained {name}/{experiment}", result)


def crossval(options: argparse.Namespace) -> None:
    """Train and score fold by fold, and print the folds and the program's tables."""
    name, experiment = options.experiment
    result = stages.crossval(Workspace.from_env(), name, experiment, tuple(options.overrides))
    _show(f"cross-validated {name}/{experiment}", result)
    for title, rows in result.tables.items():
        print(f"{title}\n{table(rows)}")


def learning_curve(options: argparse.Namespace) -> None:
    """Train and score on ever more patients, and print the curve."""
    name, experiment = options.experiment
    ws = Workspace.from_env()
    result = stages.learning_curve(ws, name, experiment, options.sizes, options.repeats, tuple(options.overrides))
    _show(f"learning curve of {name}/{experiment}", result)
    for rows in result.tables.values():
        print(table(rows))


def evaluate(options: argparse.Namespace) -> None:
    """Score the experiment's checkpoint and print the aggregate table."""
    name, experiment = options.experiment
    ws = Workspace.from_env()
    _show(f"evaluated {name}/{experiment}", stages.evaluate(ws, name, experiment))
    rows = Catalog(ws, name).frame(AggregateScore, experiment)
    print(table(rows[["split", "metric", "subject", "mean", "low", "high", "n", "unit"]]))


def score_folders(options: argparse.Namespace) -> int:
    """Score masks against masks, and print the means; a pair that can't be scored is listed and fails the command."""
    from med_assets.metrics.folders import aggregate, compare, score_folders

    scores, problems = score_folders(options.predicted, options.truth, options.pixel_mm, options.values)
    if options.out is not None:
        options.out.write_text(csv(scores))
    print(table(aggregate(scores)))
    if options.against is not None:
        others, more = score_folders(options.against, options.truth, options.pixel_mm, options.values)
        print(
            "paired differences, PRED_DIR minus --against, not corrected for their number; intervals end where the metric's range does"
        )
        print(table(compare(scores, others)))
        problems |= {f"{name} (--against)": reason for name, reason in more.items()}
    if problems:
        print(table({"not scored": name, "reason": reason} for name, reason in problems.items()))
    return int(bool(problems))


def export(options: argparse.Namespace) -> None:
    """Write the network of an experiment's checkpoint for other runtimes."""
    from med_assets.launch.training import checkpoint_of, stored_checkpoint

    ws, (name, experiment) = Workspace.from_env(), options.experiment
    chosen = program.get(name)
    if not isinstance(chosen, ExportsModel):
        raise ConfigurationError(f"expected a program whose models can be exported, got {name}, which has no export")
    model = checkpoint_of(ws, name, experiment)
    folder = stored_checkpoint(ws, name, model)
    ws.store.verify(model.checkpoint)
    for path in chosen.export_model(folder, options.out):
        print(path)


def record(options: argparse.Namespace) -> None:
    """Draw the figures of an experiment and write its notebook."""
    name, experiment = options.experiment
    _show(f"record of {name}/{experiment}", stages.record_experiment(Workspace.from_env(), name, experiment))


def leaderboard(options: argparse.Namespace) -> None:
    """All experiments side by side."""
    result = stages.leaderboard(Workspace.from_env(), options.program)
    for name, rows in result.tables.items():
        print(f"{name}\n{table(rows)}")


def promote(options: argparse.Namespace) -> int:
    """Put the best experiment, or the named one, through the gate; fails when the named one is refused."""
    result = stages.champion(Workspace.from_env(), options.program, options.experiment)
    decision = result.summary["decision"]
    print(f"champion: {result.summary['champion'] or 'none'} ({result.summary['checkpoint'] or '-'})")
    print(f"decision: {decision['reason']}")
    print(table(result.tables["decisions"]))
    return int(options.experiment is not None and bool(decision["refused"]))


def rollback(options: argparse.Namespace) -> None:
    """Make an earlier champion the champion again."""
    ws, name = Workspace.from_env(), options.program
    now = stages.rollback(ws, name, options.reason, options.to)
    print(f"champion: {now.experiment} ({now.checkpoint}), {now.action}: {now.reason}")
    print(table(Catalog(ws, name).frame(Champion)))


def monitor(options: argparse.Namespace) -> None:
    """Score the champion on every batch that it was not scored on yet."""
    result = stages.monitor(Workspace.from_env(), options.program)
    _show("monitored", result)
    for name, rows in result.tables.items():
        print(f"{name}\n{table(rows)}")


def analyse(options: argparse.Namespace) -> None:
    """Run the analyses of a program, the expensive only by name, and print their tables."""
    ws, name = Workspace.from_env(), options.program
    known = analysis.of(name)
    for chosen in [options.name] if options.name else [one.name for one in known.values() if not one.expensive]:
        result = stages.analyse(ws, name, chosen)
        _show(f"analysed {name}/{chosen}", result)
        for title, rows in result.tables.items():
            print(f"{title}\n{table(rows)}")
    left = [one.name for one in known.values() if one.expensive and not options.name]
    if left or not known:
        print(f"not run, since expensive; give the name: {', '.join(left)}" if left else f"{name} has no analyses")


def report(options: argparse.Namespace) -> None:
    """Write the report."""
    _show("report", stages.report(Workspace.from_env(), options.program))


def cases(options: argparse.Namespace) -> None:
    """Newest state of each case."""
    ws, name = Workspace.from_env(), options.program
    catalog = Catalog(ws, name)
    places = catalog.assignments()
    included = {case.case_id: case.version for case in catalog.dataset().cases}
    reads = {row.case_id: row.decision for row in catalog.rows(ReaderDecision)}
    newest: dict[str, CaseVersion | PreparedCase] = {
        case.case_id: case for case in sorted(catalog.case_versions(), key=lambda case: case.batch)
    }
    for prepared in catalog.prepared():
        if prepared.version == newest.get(prepared.case_id, prepared).version:
            newest[prepared.case_id] = prepared
    accepted_in = batches_by_version(catalog)
    absent = _missing(catalog)
    rows = [
        {
            "case_id": case_id,
            "state": _state(case, included.get(case_id), accepted_in),
            "split": places[case.patient_id].split if case_id in included and case.patient_id in places else "-",
            "batch": case.batch,
            "warnings": len(case.warning_lines) if isinstance(case, PreparedCase) else 0,
            **({} if absent is None else {"missing": absent.get((case_id, case.version), "")}),
            "reason": case.reason or "",
        }
        | ({"read": reads.get(case_id, "-")} if reads else {})
        for case_id, case in sorted(newest.items())
        if not options.quarantined or case.status == Status.QUARANTINED
    ]
    print(table(rows))


def _missing(catalog: Catalog) -> dict[tuple[str, str], str] | None:
    """By case and version the structures that every case should have and it lacks; None in a program that requires none."""
    chosen = program.get(catalog.program)
    if not isinstance(chosen, RequiredStructures):
        return None
    fact = chosen.required_missing
    found = sorted(catalog.facts(), key=lambda facts: facts.batch)
    return {(facts.case_id, facts.version): str(facts.values[fact] or "") for facts in found}


def _state(case: CaseVersion | PreparedCase, counts: str | None, accepted_in: Mapping[tuple[str, str], str]) -> str:
    """State of a case by what is newest of it; `counts` is the version of it that the dataset holds, if any."""
    if case.status == Status.OK:
        return "ok" if counts else "not in the dataset"
    if counts is None:
        return case.status
    return f"{case.status}; version {counts} of batch {accepted_in.get((case.case_id, counts), '-')} counts"


def explain(options: argparse.Namespace) -> None:
    """From file to model, for one case."""
    print(explain_case(Workspace.from_env(), options.case))


def predict(options: argparse.Namespace) -> None:
    """Write predictions: of all cases that wait for the champion, of one case, or of every case in a folder.

    Exits with 1 when none of those asked for could be predicted.
    """
    ws = Workspace.from_env()
    if options.case is None:
        if options.out or options.model or options.relink:
            raise ConfigurationError("--out, --model and --relink are of one case or folder: name it")
        result = stages.predictions(ws, options.program)
        _show("predictions", result)
        if len(result.tables.get("predictions", ())):
            print(table(result.tables["predictions"]))
        if result.counts.get("failed") and not (result.counts["new"] or result.counts["reused"]):
            raise SystemExit(1)
        return
    if options.out is None:
        raise ConfigurationError("expected --out FOLDER, where to write the prediction")
    folder = Path(options.case)
    if not os.path.isdir(options.case):  # False too for nothing, for a path that is too long, and for one with a NUL
        if not names.CASE.fits(options.case):
            raise ConfigurationError(
                f"expected the id of a case or a folder that is there, got {names.escaped(options.case)}"
            )
        if options.relink:
            raise ConfigurationError(
                "--relink needs the original files: give the folder with them in place of a case id"
            )
        for path in stages.predict(ws, options.program, options.case, options.model, options.out):
            print(path)
        return
    found = stages.predict_folder(ws, options.program, folder, options.model, options.out, relink=options.relink)
    for one in found:
        print(f"{one.case_id}: {one.reason or ', '.join(f'{name} {value}' for name, value in one.measured.items())}")
        for text in (*(f"worth a look: {warning}" for warning in one.warnings), *map(str, one.paths)):
            print(f"  {text}")
    if not any(one.paths for one in found):
        raise SystemExit(1)


def thresholds(options: argparse.Namespace) -> None:
    """Fit the thresholds of an experiment."""
    name, experiment = options.experiment
    result = stages.thresholds(Workspace.from_env(), name, experiment)
    _show(f"thresholds of {name}/{experiment}", result)
    for rows in result.tables.values():
        print(table(rows))


def debug_case(options: argparse.Namespace) -> None:
    """Draw every step of one case."""
    for path in stages.debug(Workspace.from_env(), options.program, options.case, options.model, options.out):
        print(path)


def audit_queue(options: argparse.Namespace) -> None:
    """Write the queue, or take decisions over."""
    ws, name = Workspace.from_env(), options.program
    if options.read is not None:
        found = stages.record(ws, name, options.read)
        print(table(found))
        answers = stages.decisions_of(name)
        if any(answers[answer].withdraws for answer in found["decision"]):
            _show("dataset", stages.dataset(ws, name))
        print(
            f"{len(found)} decisions are in the case table; evaluations, thresholds and report follow when they are made again"
        )
        return
    if min(options.top, options.limit or 1) < 1:
        raise ConfigurationError(f"expected --top and --limit of 1 or more, got {options.top} and {options.limit}")
    result = stages.screening(ws, name, options.model, options.limit, options.top)
    _show("screened", result)
    for rows in result.tables.values():
        print(table(rows[["rank", "risk", "case_id"]]))


def withdraw(options: argparse.Namespace) -> None:
    """Withdraw a case and write the dataset anew."""
    ws, name = Workspace.from_env(), options.program
    if options.case not in {case.case_id for case in Catalog(ws, name).case_versions()}:
        raise ConfigurationError(
            f"expected the id of a case of {name}, got one that is unknown; see `med-assets cases {name}`"
        )
    stages.withdraw(ws, name, options.case, options.reason)
    _show("dataset", stages.dataset(ws, name))
    print("models trained with this case stay as they are; train again to leave it out of them")


def query(options: argparse.Namespace) -> None:
    """SQL over the lake."""
    rows = query_tables(Workspace.from_env(), options.sql)
    if options.format == "csv":
        print(csv(rows), end="")
    elif options.format == "json":
        print(rows.to_json(orient="records", indent=1))
    else:
        print(table(rows))


def verify(options: argparse.Namespace) -> int:
    """What is damaged in the store; with --repair, what can be made again is taken out first."""
    ws = Workspace.from_env()
    damages = integrity.examine(ws)
    removed = integrity.remove_damaged(ws, damages) if options.repair else []
    for damage in damages:
        print(f"{'removed' if damage in removed else damage.state:8} {damage.key}")
    remedies = sorted({damage.remedy for damage in damages})
    for remedy in remedies:
        print(f"  -> {remedy}")
    if damages and not options.repair and any(damage.again and damage.state == "corrupt" for damage in damages):
        print("corrupt artifacts stand in the way of that: give `med-assets verify --repair` first")
    if not damages:
        print("all artifacts are as they were written")
    return 1 if len(damages) > len(removed) else 0


def run_doctor(options: argparse.Namespace) -> int:
    """All checks, with what to do about those that fail."""
    findings = doctor.examine() if options.part is None else doctor.examine_s3()
    for finding in findings:
        print(f"{finding.state:4}  {finding.subject}: {finding.found}")
        if finding.advice:
            print(f"      -> {finding.advice}")
    return 1 if any(finding.state == doctor.BAD for finding in findings) else 0
