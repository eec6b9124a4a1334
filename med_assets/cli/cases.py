"""Commands of single cases: list, explain, predict, plot, read and withdraw them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from med_assets.capabilities import Measurements, RequiredStructures
from med_assets.cli import stages
from med_assets.cli.commands import (
    Section,
    Several,
    Value,
    case,
    launch,
    launcher,
    model,
    one_of,
    program,
    reason,
    show,
    show_dataset,
    table,
    workspace,
)
from med_assets.errors import ConfigurationError
from med_assets.evaluation.prompts import Prompts, numbers_of
from med_assets.records import COMMENT, PreparedCase, ReaderDecision, Status
from med_assets.review.address import PORT
from med_assets.storage import names

if TYPE_CHECKING:
    from med_assets.catalog import Catalog
    from med_assets.records import CaseVersion, PreparedCase

SECTION = Section("Cases")


@SECTION.command()
@program
@click.option("--quarantined", is_flag=True, help="only cases that can't be used")
def cases(program: str, quarantined: bool) -> None:
    """List cases with their state, split and reason for quarantine."""
    from med_assets.catalog import Catalog
    from med_assets.review.explain import batches_by_version

    catalog = Catalog(workspace(), program)
    assignments = catalog.assignments()
    included = {case.case_id: case.version for case in catalog.dataset().cases}
    decisions = {row.case_id: row.decision for row in catalog.rows(ReaderDecision) if row.decision != COMMENT}
    newest: dict[str, CaseVersion | PreparedCase] = {
        case.case_id: case for case in sorted(catalog.case_versions(), key=lambda case: case.batch)
    }
    for prepared in catalog.prepared():
        if prepared.version == newest.get(prepared.case_id, prepared).version:
            newest[prepared.case_id] = prepared
    accepted_in, excluded = batches_by_version(catalog), catalog.excluded()
    absent = _missing(catalog)
    rows = [
        {
            "case_id": case_id,
            "state": "excluded" if case_id in excluded else _state(case, included.get(case_id), accepted_in),
            "split": assignments[case.patient_id].split
            if case_id in included and case.patient_id in assignments
            else "-",
            "batch": case.batch,
            "warnings": len(case.warning_lines) if isinstance(case, PreparedCase) else 0,
            **({} if absent is None else {"missing": absent.get((case_id, case.version), "")}),
            "reason": case.reason or "",
        }
        | ({"read": decisions.get(case_id, "-")} if decisions else {})
        for case_id, case in sorted(newest.items())
        if not quarantined or case.status == Status.QUARANTINED
    ]
    print(table(rows))


def _missing(catalog: "Catalog") -> dict[tuple[str, str], str] | None:
    """By case and version the structures that every case should have and it lacks; None in a program that requires none."""
    from med_assets.program import get

    chosen = get(catalog.program)
    if not isinstance(chosen, RequiredStructures):
        return None
    fact = chosen.required_missing
    found = sorted(catalog.facts(), key=lambda facts: facts.batch)
    return {(facts.case_id, facts.version): str(facts.values[fact] or "") for facts in found}


def _state(case: "CaseVersion | PreparedCase", counts: str | None, accepted_in: Mapping[tuple[str, str], str]) -> str:
    """State of a case by what is newest of it; `counts` is the version of it that the dataset holds, if any."""

    if case.status == Status.OK:
        return "ok" if counts else "not in the dataset"
    if counts is None:
        return case.status
    return f"{case.status}; version {counts} of batch {accepted_in.get((case.case_id, counts), '-')} counts"


@SECTION.command()
@case()
def explain(case: str) -> None:
    """Explain what happened to one case, from file to model."""
    from med_assets.review.explain import explain_case

    print(explain_case(workspace(), case))


@SECTION.command()
@program
@click.argument(
    "case",
    type=Value("CASE|FOLDER"),
    required=False,
    help="case id, or its first characters; or a folder, of which nothing is taken in; all that wait for the champion by default",
)
@click.option(
    "--relink", is_flag=True, help="of a folder: write its patients and UIDs into the DICOM instead of pseudonyms"
)
@click.option("--sr", is_flag=True, help="of one case or folder: write measurements as DICOM SR too (TID 1500)")
@model()
@click.option("--out", type=Value("FOLDER", Path), help="folder to write to, of one case or folder")
@launcher
def predict(
    program: str, case: str | None, relink: bool, sr: bool, model: str | None, out: Path | None, launcher: str | None
) -> None:
    """Predict all cases without a label, one case, or every case in a folder, and write DICOM and NIfTI for viewers and planning systems.

    Fails when none of those asked for could be predicted.
    """
    from med_assets.program import get

    ws = workspace()
    if sr and not isinstance(get(program), Measurements):
        raise ConfigurationError(f"expected --sr with a program that measures something, got {program}; leave it out")
    if case is None:
        if out or model or relink or sr:
            raise ConfigurationError("--out, --model, --relink and --sr are of one case or folder: name it")
        result = stages.predictions(ws, program, launch=launch(ws, launcher))
        show("predictions", result)
        if len(result.tables.get("predictions", ())):
            print(table(result.tables["predictions"]))
        if result.counts.get("failed") and not (result.counts["new"] or result.counts["reused"]):
            raise SystemExit(1)
        return
    if out is None:
        raise ConfigurationError("expected --out FOLDER, where to write the prediction")
    if not os.path.isdir(case):  # False too for nothing, for a path that is too long, and for one with a NUL
        if not names.CASE.fits(case):
            raise ConfigurationError(f"expected the id of a case or a folder that is there, got {names.escaped(case)}")
        if relink:
            raise ConfigurationError(
                "--relink needs the original files: give the folder with them in place of a case id"
            )
        for written in stages.predict(ws, program, case, model, out, launch(ws, launcher), report=sr):
            print(written)
        return
    if launcher:
        raise ConfigurationError("--launcher is of cases in the home: a folder is predicted by this command itself")
    found = stages.predict_folder(ws, program, Path(case), model, out, relink=relink, report=sr)
    for one in found:
        measured = ", ".join(f"{name} {value}" for name, value in one.measured.items() if value != "")
        print(f"{one.case_id}: {one.reason or measured}")
        for text in (*(f"to check: {warning}" for warning in one.warnings), *map(str, one.paths)):
            print(f"  {text}")
    if not any(one.paths for one in found):
        raise SystemExit(1)


@SECTION.command()
@program
@case()
@click.option("--inside", type=Value("A,B,C"), multiple=True, help="a point inside of what is to be segmented")
@click.option("--outside", type=Value("A,B,C"), multiple=True, help="a point that is not in it")
@click.option(
    "--space",
    type=one_of("patient", "nifti", "voxel"),
    default="patient",
    help="what the numbers are: mm of DICOM (left, posterior, superior), mm of NIfTI (right, anterior, superior), or column, row and slice from 0",
)
@click.option(
    "--class", "class_name", type=Value("NAME"), help="class to correct; the target of the workspace by default"
)
@model()
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
def correct(
    program: str,
    case: str,
    inside: tuple[str, ...],
    outside: tuple[str, ...],
    space: str,
    class_name: str | None,
    model: str | None,
    out: Path,
) -> None:
    """Predict one case and correct it by points that a person sets: each adds or removes what it lies in.

    Nothing in the home is changed. Needs a model whose point branch was trained.
    """
    from med_assets.evaluation.points import Point, Points, Space

    set_points = [Point.of(text, inside=kind) for kind, texts in ((True, inside), (False, outside)) for text in texts]
    points = Points(tuple(set_points), Space(space), class_name)
    for written in stages.correct(workspace(), program, case, points, model, out):
        print(written)


@SECTION.command("what-if")
@program
@case()
@click.argument(
    "constraints", type=Value("NAME=VALUE"), nargs=-1, required=True, help="planning constraints, as 'rectum V50=0.4'"
)
@model()
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
def what_if(program: str, case: str, constraints: tuple[str, ...], model: str | None, out: Path) -> None:
    """Predict one case under other planning constraints than those of its site, and write what `predict` writes.

    Nothing of it is kept in the home; constraints.json beside the prediction says what was edited.
    """
    for written in stages.predict_edited(workspace(), program, case, model, out, constraints):
        print(written)


@SECTION.command("plan-qa")
@program
@click.argument(
    "case",
    type=Value("CASE|FOLDER"),
    required=False,
    help="case id, or its first characters; or a folder with plans, of which nothing is taken in; all cases of the dataset by default",
)
@model()
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
@launcher
def plan_qa(program: str, case: str | None, model: str | None, out: Path, launcher: str | None) -> int:
    """Compare planned dose with predicted dose: a page as PDF for each case, and a table of all, plan_qa.csv.

    Fails when no case could be compared.
    """
    ws = workspace()
    found = stages.plan_qa(ws, program, case, model, out, launch(ws, launcher))
    print(table({"case": one.case_id, **one.measured, "reason": one.reason} for one in found))
    for one in found:
        for path in one.paths:
            print(path)
    return int(not any(one.paths for one in found))


@SECTION.command()
@program
@case()
@model()
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
def debug(program: str, case: str, model: str | None, out: Path) -> None:
    """Plot every step of one case, from arrays to scores."""
    for written in stages.debug(workspace(), program, case, model, out):
        print(written)


@SECTION.command()
@program
@click.option("--read", type=Value("FILE", Path), help="record the column decision of this CSV")
@click.option("--reader", type=Value("NAME"), help="who read; MED_ASSETS_PERSON or the account by default")
@model("the one of the report")
@click.option("--top", type=Value("N", int), default=60, help="cases in the queue")
@click.option("--limit", type=Value("N", int), help="only the first N cases by id, for a trial run")
@launcher
def audit_queue(
    program: str,
    read: Path | None,
    reader: str | None,
    model: str | None,
    top: int,
    limit: int | None,
    launcher: str | None,
) -> None:
    """Write all cases by risk, and the queue for readers, as CSV; or record the decisions of readers."""
    ws = workspace()
    if read is not None:
        from med_assets.review.access import reader_name

        found = stages.record(ws, program, read, reader_name(reader) if reader else "")
        print(table(found))
        answers = stages.decisions_of(program)
        if any(answers[answer].withdraws for answer in found["decision"]):
            show_dataset(ws, program)
        print(
            f"{len(found)} decisions are in the case table; evaluations, thresholds and report follow when they are made again"
        )
        return
    if min(top, limit or 1) < 1:
        raise ConfigurationError(f"expected --top and --limit of 1 or more, got {top} and {limit}")
    result = stages.screening(ws, program, model, limit, top, launch(ws, launcher))
    show("screened", result)
    for rows in result.tables.values():
        print(table(rows[["rank", "risk", "case_id"]]))


@SECTION.command()
@click.option(
    "--host",
    type=Value("HOST"),
    default="127.0.0.1",
    help="address to bind to; another machine needs readers who log in",
)
@click.option("--port", type=Value("PORT", int), default=PORT, help="0 for any that is free")
@click.option(
    "--reader", type=Value("NAME"), help="who reads, where nobody logs in; MED_ASSETS_PERSON or the account by default"
)
def review(host: str, port: int, reader: str | None) -> None:
    """Show the review page of all programs in the browser, until Ctrl-C: worklists, cases, decisions of readers.

    Only this machine reaches it unless readers log in (`med-assets review-login`) or a reverse proxy names them.
    """
    from med_assets.review.server import review as run

    run(workspace(), host, port, reader)


@SECTION.command()
@program
@case("case id, in full")
@click.argument(
    "decision", type=Value("DECISION"), help="accept, exclude, comment, or an answer of the program's screening"
)
@click.option("--note", type=Value("TEXT"), default="", show_default=False, help="of an exclusion the reason")
@click.option("--reader", type=Value("NAME"), help="who decides; MED_ASSETS_PERSON or the account by default")
def decide(program: str, case: str, decision: str, note: str, reader: str | None) -> None:
    """Record what a reader decides about a case, as the review page does.

    An excluded case stays out of the dataset until one accepts it; no earlier decision is overwritten.
    """
    from med_assets.review.access import reader_name
    from med_assets.review.decisions import decide as record_decision

    ws = workspace()
    recorded = record_decision(ws, program, case, decision, note, reader_name(reader) if reader else "")
    print(f"{recorded.row.case_id}: {recorded.row.decision}, by {recorded.row.reader}")
    if recorded.changes_dataset:
        show_dataset(ws, program)


@SECTION.command()
@program
def agreement(program: str) -> None:
    """Show how far the readers of a program agree: Cohen's kappa of two, Fleiss' of more, with n and intervals."""
    from med_assets.catalog import Catalog
    from med_assets.review.agreement import agreement_table, agreements, readings

    print(table(agreement_table(agreements(readings(Catalog(workspace(), program))))))


@SECTION.command("review-login")
@click.argument("reader", type=Value("NAME"), help="name under which what the reader decides is recorded")
def review_login(reader: str) -> None:
    """Set the password of a reader of the review page, asked for twice; only its hash is kept.

    A page that runs knows it when it is started again.
    """
    from med_assets.review.access import reader_name, write_login

    name = reader_name(reader)
    password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    print(f"{name} can log in; the hash is in {write_login(workspace(), name, password).name}")


@SECTION.command("submit-correction")
@program
@case("case id, in full")
@click.argument("label", type=Value("FILE", Path), help="corrected DICOM SEG or RTSTRUCT")
@click.option("--note", type=Value("TEXT"), default="", help="what was corrected, without identity")
@click.option("--reader", type=Value("NAME"), help="who corrected it; MED_ASSETS_PERSON or the account by default")
def submit_correction(program: str, case: str, label: Path, note: str, reader: str | None) -> None:
    """Submit a corrected segmentation or structure set of a case.

    It goes to the landing zone, and the next `ingest` makes a new version of the case of it. The split stays.
    """
    from med_assets.review.access import reader_name
    from med_assets.review.corrections import submit

    submitted = submit(workspace(), program, case, label, note, reader_name(reader) if reader else "")
    print(f"{submitted.entry} lies in the landing zone and corrects version {submitted.decision.version}")
    print(f"next: med-assets ingest {program}")


@SECTION.command("export-case")
@program
@case("case id, in full")
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to, empty or not there")
def export_case(program: str, case: str, out: Path) -> None:
    """Write the stored, de-identified DICOM files of a case, to look at or to correct them elsewhere."""
    from med_assets.review.corrections import export_case

    print(f"{len(export_case(workspace(), program, case, out))} files in {out}")


@SECTION.command()
@program
@case("case id, in full")
@reason
def withdraw(program: str, case: str, reason: str) -> None:
    """Take a case out of the dataset from now on.

    Models that were trained with it stay as they are.
    """
    from med_assets.catalog import Catalog

    ws = workspace()
    if case not in {each.case_id for each in Catalog(ws, program).case_versions()}:
        raise ConfigurationError(
            f"expected the id of a case of {program}, got one that is unknown; see `med-assets cases {program}`"
        )
    stages.withdraw(ws, program, case, reason)
    show_dataset(ws, program)
    print("models trained with this case stay as they are; train again to leave it out of them")


@SECTION.command("outline")
@program
@case()
@click.option("--inside", type=Value("COLUMN,ROW"), cls=Several, multiple=True, help="points in the lesion")
@click.option("--outside", type=Value("COLUMN,ROW"), cls=Several, multiple=True, help="points that are not in it")
@click.option(
    "--box", type=Value("BOX"), help="first column, first row, last column and last row of a box around it, with commas"
)
@model()
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
def outline_case(
    program: str,
    case: str,
    inside: tuple[str, ...],
    outside: tuple[str, ...],
    box: str | None,
    model: str | None,
    out: Path,
) -> None:
    """Outline a lesion from points and a box that a person sets, in columns and rows of the whole picture from 0.

    Nothing in the home is changed. Needs a model that takes prompts: of breast_us those of SAM.
    """
    from med_assets.evaluation.prediction import outline

    points = [
        tuple((column, row) for column, row in (numbers_of(text, 2) for text in texts)) for texts in (inside, outside)
    ]
    corners = None if box is None else numbers_of(box, 4)
    around = None if corners is None else (corners[0], corners[1], corners[2], corners[3])
    prompts = Prompts(points[0], points[1], around)
    for written in outline(workspace(), program, case, prompts, model, out):
        print(written)


@SECTION.command("predict-loop")
@program
@click.argument("loop", type=Value("FILE", Path), help="multi-frame DICOM of ultrasound")
@model()
@click.option("--masks", is_flag=True, help="write the mask of each frame too, as PNG of the whole picture")
@click.option("--out", type=Value("FOLDER", Path), required=True, help="folder to write to")
def predict_loop_of(program: str, loop: Path, model: str | None, masks: bool, out: Path) -> None:
    """Predict each frame of a cine loop, a multi-frame DICOM: area over time, and how alike frames that follow each other are.

    Frames are decoded one by one. Nothing in the home is changed. Of breast_us alone.
    """
    from med_assets.evaluation.prediction import predict_loop

    for written in predict_loop(workspace(), program, loop, model, out, masks):
        print(written)
