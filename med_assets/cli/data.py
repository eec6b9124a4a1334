"""Commands that bring cases in: imports, phantoms, intake."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click

from med_assets.capabilities import LabelMeanings
from med_assets.cli import stages
from med_assets.cli.commands import Section, Several, Value, program, reason, show, show_dataset, table, workspace
from med_assets.errors import ConfigurationError
from med_assets.records import Status
from med_assets.storage import names
from med_assets.storage.s3.bucket import location

SECTION = Section("Cases from files")

SOURCES = (
    "openkbp", "msd", "datalist", "pair", "lumbar-t2", "rsna-lumbar", "ai-readi", "busi", "busbra", "bus-uclm", "folder", "cine",
)  # fmt: skip
VOLUMES = ("msd", "datalist", "pair")
"""Sources of image and label volumes; a case of them that is skipped fails the command."""


def _label(text: str) -> tuple[int, str]:
    value, equals, name = text.partition("=")
    if not (value.isdecimal() and equals and name.strip()):
        raise ConfigurationError(f"expected VALUE=NAME such as 1=lung_tumor, got {names.escaped(text)}")
    return int(value), name.strip()


@SECTION.command("import")
@click.argument(
    "source",
    type=Value("SOURCE", known=lambda: SOURCES),
    help=f"what to read, one of {', '.join(SOURCES)}: OpenKBP, a task of the Medical Segmentation Decathlon, "
    "a MONAI datalist, one image and its label, lumbar T2 volumes with labelled bodies, RSNA 2024 lumbar spine, retinal OCT of AI-READI, or breast ultrasound of "
    "BUSI, BUSBRA, BUS-UCLM, a folder of images and masks that a file of conf/breast_us/datasets describes, or cine loops as DICOM",
)
@click.argument(
    "src",
    type=Value("SRC", lambda text: text if "://" in text else Path(text)),
    nargs=-1,
    required=True,
    help="the data set's folder as its authors publish it, the datalist's JSON file, or for a pair IMAGE LABEL "
    "(NIfTI, NRRD; the image may be a folder of DICOM slices); ai-readi: or s3://bucket/prefix",
)
@click.argument("dest", type=Value("DEST", Path), help="folder for the case folders, such as the landing folder")
@click.option(
    "--patients",
    type=Value("NAME"),
    cls=Several,
    multiple=True,
    help="openkbp: only these patients, such as pt_1 pt_2; lumbar-t2: these cases; rsna-lumbar: these studies; ai-readi: these participants",
)
@click.option(
    "--limit", type=Value("N", int), help="all but openkbp, msd, datalist, pair: only the first N, for a trial run"
)
@click.option("--endplates", is_flag=True, help="lumbar-t2: the ends of endplates as points too, for analyse lumbar_mr")
@click.option("--external", is_flag=True, help="breast ultrasound: an external test set, which is never trained on")
@click.option(
    "--frames-per-loop",
    type=Value("N", int),
    default=5,
    help="cine: evenly spaced frames taken of a loop that no SEG is of; of others all frames with a segment are",
)
@click.option("--val-fold", type=Value("K", int), default=0, help="msd, datalist: fold that is validation")
@click.option(
    "--names",
    "labels",
    type=Value("VALUE=NAME", _label),
    cls=Several,
    multiple=True,
    help="names of label values, such as 1=lung_tumor; they replace those of the data set",
)
@click.option(
    "--name",
    type=Value("NAME"),
    help="pair: name of case and patient; by default that of the image's folder and file. folder: its file in "
    "conf/breast_us/datasets, without .yaml",
)
def import_cases(
    source: str,
    src: tuple[Path | str, ...],
    dest: Path,
    patients: tuple[str, ...],
    limit: int | None,
    endplates: bool,
    external: bool,
    frames_per_loop: int,
    val_fold: int,
    labels: tuple[tuple[int, str], ...],
    name: str | None,
) -> int:
    """Turn a public data set, or image and label volumes, into DICOM case folders.

    What is skipped is listed with its reason.
    """
    from med_assets import program
    from med_assets.landing.bucket import S3Landing
    from med_assets.landing.importing import volumes
    from med_assets.programs.breast_us import importer as breast
    from med_assets.programs.breast_us import importer_cine as cine
    from med_assets.programs.lumbar_mr import importer as lumbar_t2
    from med_assets.programs.lumbar_mr import importer_rsna as rsna_lumbar
    from med_assets.programs.retinal_oct import importer as ai_readi
    from med_assets.programs.rt_dose import importer as openkbp
    from med_assets.settings import Settings

    if len(src) != (2 if source == "pair" else 1):
        raise ConfigurationError(
            f"expected {'IMAGE LABEL DEST: a pair needs a label' if source == 'pair' else 'SRC DEST'}, "
            f"got {len(src) + 1} paths"
        )
    if limit is not None and limit < 1:
        raise ConfigurationError(f"expected --limit of 1 or more, got {limit}")
    remote = location(str(src[0]), "SRC")
    if remote is not None and source != "ai-readi":
        raise ConfigurationError(f"expected a folder for {source}, got a bucket; only ai-readi is read from one")
    folder, only = Path(src[0]), list(patients) or None
    match source:
        case "openkbp":
            report = openkbp.import_patients(folder, dest, only)
        case "lumbar-t2":
            report = lumbar_t2.import_cases(folder, dest, only, limit, endplates=endplates)
        case "rsna-lumbar":
            report = rsna_lumbar.import_studies(folder, dest, only, limit)
        case "ai-readi" if remote is not None:
            ws = Settings.from_env()
            with ai_readi.from_bucket(S3Landing(remote, ws.home, ws.settle_s, ws.staging_gb * 1e9)) as fetch:
                report = ai_readi.import_participants(fetch, dest, only, limit, address=str(src[0]))
        case "ai-readi":
            report = ai_readi.import_participants(folder, dest, only, limit)
        case "msd":
            report = volumes.import_pairs(volumes.msd_pairs(folder, val_fold), dest, dict(labels))
        case "datalist":
            report = volumes.import_pairs(volumes.datalist_pairs(folder, val_fold), dest, dict(labels))
        case "pair":
            report = volumes.import_pairs([volumes.pair(folder, Path(src[1]), name)], dest, dict(labels))
        case "folder":
            if name is None:
                raise ConfigurationError(
                    "expected --name with a file of conf/breast_us/datasets for a folder, got none"
                )
            report = breast.import_folder(name, folder, dest, limit, external)
        case "cine":
            report = cine.import_loops(folder, dest, frames_per_loop, limit)
        case _:
            report = breast.import_images(source, folder, dest, limit, external)
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
    for note in report.notes:
        print(note)
    if report.skipped:
        print(table({"skipped": name, "reason": reason} for name, reason in report.skipped.items()))
    some = bool(report.imported or report.existing or report.updated)
    if any(reason.startswith("name_taken") for reason in report.skipped.values()):
        return 1
    return 0 if some and not (report.skipped and source in VOLUMES) else 1


@SECTION.command()
@program
@click.argument("dest", type=Value("DEST", Path), help="folder for the case folders")
@click.option("-n", "--number", type=Value("N", int), default=1, help="how many cases")
@click.option("--seed", type=Value("SEED", int), default=0, help="seed of the first case")
def phantoms(program: str, dest: Path, number: int, seed: int) -> None:
    """Write synthetic cases as real DICOM files, marked synthetic."""
    from med_assets.program import get

    get(program).write_phantoms(dest, number, seed)
    print(f"wrote {number} synthetic case(s)")


@SECTION.command()
@program
@click.option("--now", is_flag=True, help="do not wait for files to settle")
@click.option(
    "--batch", type=Value("BATCH", names.BATCH.check), help="process this known batch again, and take no new one"
)
def ingest(program: str, now: bool, batch: str | None) -> None:
    """Take in, prepare, audit and split what lies in the landing folder."""
    from med_assets.landing import batches

    ws = workspace()
    ws.landing_zone(program).refresh()
    if batch:
        batches.manifest(ws, program, batch)
        todo = [batch]
    else:
        todo = batches.unfinished(ws, program)
        seen = batches.survey(ws, program)
        waiting = seen.untaken
        chosen = waiting if now else batches.settled(ws, program, time.time(), seen)
        if chosen:
            todo.append(batches.take(ws, program, chosen, time.time()))
    for each in todo:
        if not batch and batches.in_work(ws, program, each):
            print(f"batch {each}: another machine takes it in")
            continue
        print(f"batch {each}")
        show("taken in", stages.intake(ws, program, each))
        show("prepared", stages.prepare(ws, program, each))
    if not todo:
        print(f"{ws.landing_zone(program).title(program)}: {batches.waiting(ws, program, time.time(), seen)}")
        if waiting:
            print("wait, or use --now")
    if todo or not stages.up_to_date(ws, program):  # a run was ended before its end
        show_dataset(ws, program, splits=True)


@SECTION.command("accept-batch")
@program
@click.argument("batch", type=Value("BATCH", names.BATCH.check), help="a batch that the audit holds back")
@reason
def accept_batch(program: str, batch: str, reason: str) -> None:
    """Let a batch into the dataset of which more was quarantined than the policy allows.

    `audit` of `conf/PROGRAM/_program.yaml` is the policy. Dagster shows the gate as passed when `prepared_cases` of the batch is
    materialized again.
    """
    ws = workspace()
    found = stages.accept_batch(ws, program, batch, reason)
    print(f"accepted: {found.n_quarantined} of {found.n_cases} cases of the batch are quarantined, the others count")
    show_dataset(ws, program, splits=True)


@SECTION.command()
@program
def batches(program: str) -> None:
    """List the batches taken, and what waits in the landing folder."""
    from med_assets.catalog import Catalog
    from med_assets.landing import batches

    ws = workspace()
    shown = {"to predict": Status.TO_PREDICT, "quarantined": Status.QUARANTINED, "notes": Status.NOTE}
    catalog, rows = Catalog(ws, program), []
    for batch in batches.known(ws, program):
        states, audit = Counter(case.status for case in catalog.case_versions(batch)), catalog.audit(batch)
        counted = {title: states[status] for title, status in shown.items()}
        held_back = {"held back": "yes" if audit and audit.held_back else "no"}
        rows.append({"batch": batch, "cases": states.total() - states[Status.NOTE], **counted, **held_back})
    print(table(rows))
    print(f"waiting in the landing folder: {len(batches.untaken(ws, program))}")


@SECTION.command("dataset-versions")
@program
@click.argument(
    "version",
    type=Value("VERSION", names.DATASET.check),
    required=False,
    help="show the cases of this version, or of the one that has these first characters",
)
@click.option("--export", type=Value("FOLDER", Path), help="write its tables as Parquet files into this folder")
def dataset_versions(program: str, version: str | None, export: Path | None) -> None:
    """List the versions of the dataset that there ever were, with the models of each, or show one as it was."""
    from med_assets.dataset.versions import exported, listed, shown

    ws = workspace()
    if version is None:
        if export is not None:
            raise ConfigurationError("expected --export with a version, got none; the command without it lists them")
        print(table(listed(ws, program)))
        return
    print(table(shown(ws, program, version)))
    for path in exported(ws, program, version, export) if export is not None else ():
        print(path)
