"""`med-assets send` into a real Orthanc: under the original study or under pseudonyms, from a queue that survives."""

import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from med_assets.catalog import Catalog
from med_assets.cli.main import main
from med_assets.deidentification import audit_trail
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.errors import ConfigurationError
from med_assets.network.queue import FIRST_PAUSE_S, LONGEST_PAUSE_S, Item, Queue
from med_assets.network.send import Sender
from med_assets.settings import Workspace
from tests.cases.test_dciodvfy import complaints
from tests.cases.test_to_predict import champion, files_of, phantoms
from tests.invented import ingest
from tests.peers import Orthanc, describe_network, free_port, no_open_sockets, orthanc_of, small_study

WAYS = ("web", "store")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc_of(tmp_path_factory.mktemp("orthanc"), {}) as running:
        yield running


@pytest.fixture
def linked(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace that keeps links, and whose network is the Orthanc of these tests."""
    monkeypatch.setenv("MED_ASSETS_LINKS", str(tmp_path / "links"))
    with no_open_sockets():
        yield Workspace.from_env()


def nodes(orthanc: Orthanc) -> dict[str, dict[str, object]]:
    """One Orthanc as four nodes: by C-STORE or STOW-RS, relinked or for research."""
    by = {"web": orthanc.node(), "store": {**orthanc.node(), "dicomweb": None}}
    found = {f"{way}-clinic": {**by[way], "relinked": True} for way in WAYS}
    return found | {f"{way}-research": {**by[way], "research": True} for way in WAYS} | {"neither": orthanc.node()}


def received(orthanc: Orthanc, study: str) -> list[Dataset]:
    """What Orthanc has of a study, read through its REST API."""
    found = orthanc.ask("/tools/find", {"Level": "Instance", "Query": {"StudyInstanceUID": study}})
    return [pydicom.dcmread(io.BytesIO(orthanc.ask(f"/instances/{one}/file"))) for one in found]


def named(ds: Dataset) -> set[str]:
    return {str(element.value) for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"}


RESULTS = {"lung_ct": {"SEG", "RTSTRUCT", "SR"}, "rt_dose": {"RTDOSE", "SR"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rt_dose", pytest.param("lung_ct", marks=pytest.mark.drill)])
def test_results_of_a_case_come_to_the_original_study_with_the_same_pixels(
    name: str, linked: Workspace, orthanc: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe_network(linked.home, nodes=nodes(orthanc))
    champion(linked, name)
    (source,) = phantoms(linked.landing / name, name, 1, 5)
    originals = [pydicom.dcmread(path) for path in files_of(source)]
    ingest(linked, name)
    (case,) = [row for row in Catalog(linked, name).case_versions() if row.status == "ok"]
    way = WAYS[name == "lung_ct"]
    assert main(["send", case.case_id, "--to", f"{way}-research"]) == 0
    study = Deidentifier(linked.key).uid(originals[0].StudyInstanceUID)
    here = {ds.SOPInstanceUID: ds for ds in received(orthanc, study)}
    assert f"sent {len(here)} objects" in capsys.readouterr().out
    assert {ds.Modality for ds in here.values()} == RESULTS[name]
    assert {ds.PatientID for ds in here.values()} == {case.patient_id}
    stored = {str(ds.SOPInstanceUID) for ds in _stored(linked, case.artifact)}
    assert all(named(ds) & stored for ds in here.values()), "an object refers to none of our instances"

    sender = Sender(linked)
    sender.check(f"{way}-clinic", name, case.case_id)
    (tmp_path / "sent").mkdir()
    for number, ds in enumerate(here.values()):
        ds.save_as(tmp_path / "sent" / f"{number}.dcm")
    sender.queue.add(f"{way}-clinic", name, case.case_id, files_of(tmp_path / "sent"))
    assert main(["send", "--retry"]) == 0
    there = received(orthanc, originals[0].StudyInstanceUID)
    assert {ds.SOPInstanceUID for ds in there} == set(here)
    sources = {one.SOPInstanceUID for one in originals}
    for number, ds in enumerate(there):
        assert (ds.PatientID, ds.PatientName) == (originals[0].PatientID, originals[0].PatientName)
        if "PixelData" in ds:
            assert ds.PixelData == here[ds.SOPInstanceUID].PixelData
        assert named(ds) & sources, "the object refers to none of the clinic's own instances"
        assert named(ds) <= sources | set(here) | {originals[0].StudyInstanceUID}  # a structure set names the study too
        ds.save_as(tmp_path / f"{ds.Modality}-{number}.dcm")
    if (dciodvfy := shutil.which("dciodvfy")) or os.environ.get("NEEDS_DCIODVFY"):
        assert complaints(str(dciodvfy), sorted(tmp_path.glob("*.dcm"))) == {}
    uses = [entry.content["purpose"] for entry in audit_trail.entries(linked) if entry.kind == audit_trail.Kind.LINK]
    assert set(uses) == {f"sent to {way}-clinic"}
    assert Queue(linked).items() == []


def _stored(ws: Workspace, artifact: str) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in files_of(ws.store.fetch(artifact)) if path.suffix == ".dcm"]


def results(folder: Path, tag: str) -> list[Path]:
    """Objects that stand for results; for the queue they are bytes."""
    folder.mkdir()
    paths = []
    for number, ds in enumerate(small_study(tag)):
        paths.append(folder / f"{number}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


@pytest.mark.parametrize("way", WAYS)
def test_what_a_node_does_not_take_waits_on_the_disk_with_growing_pauses_until_it_does(
    way: str, linked: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = Orthanc(free_port(), free_port())
    describe_network(linked.home, nodes=nodes(away))
    item = Queue(linked).add(f"{way}-research", "lung_ct", "c1", results(tmp_path / "results", f"queue-{way}"))
    shutil.rmtree(tmp_path / "results")
    assert main(["send", "--retry"]) == 1
    capsys.readouterr()
    assert main(["send", "--queue"]) == 0
    assert re.search(rf"{item.id} +{way}-research +lung_ct +c1 +2 +1 +\S+ expected an", capsys.readouterr().out)
    assert main(["send", "--retry"]) == 0  # not yet due
    assert "sent 0 objects" in capsys.readouterr().out

    with orthanc_of(tmp_path / "orthanc", {}) as back:
        describe_network(linked.home, nodes=nodes(back))
        (waiting,) = Queue(linked).items()
        Queue(linked).update(replace(waiting, next_at=0.0))
        assert main(["send", "--retry"]) == 0
        assert "sent 2 objects" in capsys.readouterr().out
        assert len(received(back, small_study(f"queue-{way}")[0].StudyInstanceUID)) == 2
    assert Queue(linked).items() == []
    assert list((linked.home / "network" / "queue").iterdir()) == []


def test_a_node_that_is_neither_relinked_nor_for_research_gets_nothing(
    linked: Workspace, orthanc: Orthanc, tmp_path: Path
) -> None:
    describe_network(linked.home, nodes=nodes(orthanc))
    sender = Sender(linked)
    with pytest.raises(ConfigurationError, match="neither"):
        sender.check("neither", "lung_ct", "c1")
    with pytest.raises(ConfigurationError, match="link of this case"):
        sender.check("web-clinic", "lung_ct", "c1")
    for number, node in enumerate(("neither", "web-clinic")):
        sender.queue.add(node, "lung_ct", "c1", results(tmp_path / str(number), "neither"))
    assert [len(item.left) for item in sender.send(list(sender.queue.due()))] == [2, 2]
    assert received(orthanc, small_study("neither")[0].StudyInstanceUID) == []


def test_pauses_double_up_to_the_longest_and_survive_a_clock_that_goes_back() -> None:
    item, pauses = Item("i", "n", "p", "c", ("a.dcm",)), []
    for _ in range(12):
        item = item.failed("no answer", 1000.0)
        pauses.append(item.next_at - 1000.0)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
