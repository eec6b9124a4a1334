"""Commands that speak DICOM with other nodes, and give results back to original studies: receive, retrieve, link, send."""

import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

from med_assets.capabilities import Measurements
from med_assets.cli import stages
from med_assets.cli.commands import Section, Value, launch, launcher, model, one_of, program, table, workspace
from med_assets.errors import ConfigurationError
from med_assets.storage import names
from med_assets.storage.scratch import scratch

if TYPE_CHECKING:
    from med_assets.network.send import Sender
    from med_assets.settings import Workspace

SECTION = Section("DICOM over the network")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"expected a day such as 2024-01-31, got {names.escaped(text)}") from None


DAY, NODE = Value("DAY", _day), Value("NODE")


@SECTION.command()
def receive() -> None:
    """Receive DICOM objects from other nodes into the landing zone, until Ctrl-C.

    `network.yaml` in the home, or the file that MED_ASSETS_NETWORK names, has address, AE titles with their programs, the nodes that
    may send, and TLS. An instance is on the disk before it is acknowledged; a study becomes an entry of the landing zone when the
    association that sent it ends, or when nothing more came of it. C-ECHO and storage commitment are answered too.
    """
    from med_assets.network.receiver import receive as run
    from med_assets.settings import Settings

    run(Settings.from_env())


@SECTION.command()
@program
@click.option("--from", "node", type=NODE, required=True, help="node of network.yaml that is asked")
@click.option("--since", type=DAY, help="studies of this day or later")
@click.option("--until", type=DAY, help="studies of this day or earlier")
@click.option("--description", type=Value("TEXT"), help="studies whose description contains this")
@click.option("--modality", type=Value("MODALITY"), help="studies with a series of this modality, such as CT")
@click.option("--accession", type=Value("NUMBER"), help="the study of this accession number")
@click.option(
    "--by",
    type=one_of("web", "move", "get"),
    help="DICOMweb, C-MOVE to our own receiver, or C-GET; by default web where the node has dicomweb, else move",
)
@click.option("--limit", type=Value("N", int), help="only the first N studies that the node names")
@click.option("--per-minute", type=Value("N", int), default=0, help="most instances per minute, 0 for no limit")
@click.option("--again", is_flag=True, help="also series that came before and are no longer in the landing zone")
@click.option("--dry-run", is_flag=True, help="only list what would be asked for")
def retrieve(
    program: str,
    node: str,
    since: date | None,
    until: date | None,
    description: str | None,
    modality: str | None,
    accession: str | None,
    by: str | None,
    limit: int | None,
    per_minute: int,
    again: bool,
    dry_run: bool,
) -> int:
    """Bring studies of a node, such as a PACS, into the landing zone: those of the program's modalities that are not here.

    The list shows a keyed hash for each study and nothing of the patient. The same command goes on where it was interrupted.
    Fails when an instance did not come.
    """
    from med_assets.network.retrieve import Asked, Retrieval

    if per_minute < 0 or (limit is not None and limit < 1):
        raise ConfigurationError("expected --per-minute of 0 or more and --limit of 1 or more, got less")
    retrieval = Retrieval(workspace(), program, node, by)
    plan = retrieval.plan(Asked(since, until, description, modality, accession), limit, again=again)
    print(table(asdict(line) for line in retrieval.listed(plan)))
    if dry_run:
        return 0
    done = retrieval.run(plan, per_minute)
    print(f"retrieved {done.instances} instances, {done.series} series whole; {done.failed} instances did not come")
    return int(done.failed > 0)


@SECTION.command()
@click.argument("case", type=Value("CASE", names.CASE.check), required=False, help="case id, or its first characters")
@click.option("--study", type=Value("UID"), help="original or pseudonymous Study Instance UID")
def link(case: str | None, study: str | None) -> None:
    """Show which original patient and studies stand behind a case, or which cases are of a study.

    Only where MED_ASSETS_LINKS keeps links, and only for who has the key. Every use is recorded in the audit trail with the person.
    """
    from med_assets.deidentification.deidentify import Deidentifier
    from med_assets.deidentification.links import LinkTable, record_use
    from med_assets.review.explain import find_case

    if (case is None) == (study is None):
        raise ConfigurationError("expected a case, or --study with a UID, and not both")
    ws = workspace()
    links, pseudonyms = LinkTable(ws), Deidentifier(ws.key)
    if study is not None:
        pseudonym, found = links.of_study(study)
        record_use(ws, "", pseudonym, "study to cases")
        print(table({"program": each.program, "case": each.case_id} for each in found))
        print(f"pseudonym of the study: {pseudonym}")
        return
    program, case_id = find_case(ws, str(case))
    record_use(ws, program, case_id, "case to study")
    linked = links.get(program, case_id)
    if linked is None:
        raise ConfigurationError(
            "expected a link of this case, got none: it was taken in while links were off, or its files came in no form that has them; "
            "take its batch in again with `med-assets ingest PROGRAM --batch BATCH`"
        )
    for header in linked.headers:
        print(f"study {header.study}, here {pseudonyms.uid(header.study)}")
        for keyword, value in header.texts.items():
            if value:
                print(f"  {keyword}: {value}")


@SECTION.command()
@click.argument("case", type=Value("CASE", names.CASE.check), required=False, help="case id, or its first characters")
@click.option("--to", "node", type=NODE, help="node of network.yaml that gets the results")
@model()
@click.option("--queue", is_flag=True, help="only show what waits to be sent")
@click.option("--retry", is_flag=True, help="send what waits and is due, such as from a timer")
@launcher
def send(case: str | None, node: str | None, model: str | None, queue: bool, retry: bool, launcher: str | None) -> int:
    """Send the prediction of a case to a node: SEG, RTSTRUCT or RTDOSE, and measurements as DICOM SR where the program has some.

    A node with `relinked` gets them under the original patient and study, one with `research` under pseudonyms, and no other gets any.
    What a node does not take stays in a queue on the disk, and is tried again by the next `send` or `send --retry`, with growing
    pauses. Fails when something is left.
    """
    from med_assets.network.queue import Queue

    if queue + retry + (case is not None) != 1 or (case is None) != (node is None):
        raise ConfigurationError("expected CASE --to NODE, --queue or --retry, and only one of them")
    ws = workspace()
    if queue:
        print(table(asdict(line) for line in Queue(ws).listed()))
        return 0
    from med_assets.network.send import Sender

    sender = Sender(ws)
    if case is not None and node is not None:
        _enqueue(ws, sender, case, node, model, launcher)
    due = list(sender.queue.due())
    left = sender.send(due)
    print(f"sent {sum(len(item.left) for item in due) - sum(len(item.left) for item in left)} objects")
    if left:
        print(table(asdict(line) for line in sender.queue.listed()))
    return int(bool(left))


def _enqueue(ws: "Workspace", sender: "Sender", case: str, node: str, model: str | None, launcher: str | None) -> None:
    """Predict a case, unless that was done before, and put the objects of it into the queue."""
    from med_assets.program import get
    from med_assets.review.explain import find_case

    program, case_id = find_case(ws, case)
    sender.check(node, program, case_id)
    report = isinstance(get(program), Measurements)
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as folder:
        written = stages.predict(ws, program, case_id, model, Path(folder), launch(ws, launcher), report=report)
        objects = [path for path in written if path.suffix == ".dcm"]
        if not objects:
            raise ConfigurationError(f"expected a program that writes predictions as DICOM, got {program}")
        sender.queue.add(node, program, case_id, objects)
