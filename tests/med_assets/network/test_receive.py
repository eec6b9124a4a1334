"""`med-assets receive` as a process, with real peers: DCMTK, and senders that are killed and lied to."""

import random
import re
import time
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    CTImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from med_assets.errors import RemoteFailed
from med_assets.landing import batches
from med_assets.network.association import association, keep_answers
from med_assets.network.configuration import Node, NodeTls
from med_assets.settings import Workspace
from tests.invented import uid
from tests.peers import (
    CALLED,
    CALLING,
    CT_SOP,
    Running,
    conflicts,
    describe_network,
    entity,
    free_port,
    in_threads,
    landed,
    listens,
    no_open_sockets,
    orthanc_of,
    receiver_of,
    run_dcmtk,
    send,
    small_study,
    start_receiver,
    unsettled,
    wait_for,
    write_certificates,
)

OUT_OF_RESOURCES, UNSUPPORTED, NOT_UNDERSTOOD = 0xA700, 0x0122, 0xC000


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def test_a_study_of_storescu_is_one_entry_with_the_bytes_that_were_sent(workspace: Workspace, tmp_path: Path) -> None:
    describe_network(workspace.home)
    study = small_study("storescu", 5)
    source = tmp_path / "source"
    source.mkdir()
    for k, ds in enumerate(study):
        ds.save_as(source / f"{k}.dcm", enforce_file_format=True)
    with receiver_of(workspace.home) as running:
        echo = run_dcmtk("echoscu", "-v", "-aet", CALLING, "-aec", CALLED, "127.0.0.1", running.port)
        assert echo.returncode == 0, echo.stderr
        # Two transfer syntaxes are offered, so that one is taken as it is sent.
        words = ("-aet", CALLING, "-aec", CALLED, "+sd", "127.0.0.1", running.port, source)
        done = run_dcmtk("storescu", *words)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: len(landed(workspace.home)) == 5, 10)
    assert {path.parent.name for path in landed(workspace.home)} == {study[0].StudyInstanceUID}
    assert names(landed(workspace.home)) == sorted(ds.SOPInstanceUID for ds in study)
    for path in landed(workspace.home):
        ds = pydicom.dcmread(path)
        original = next(one for one in study if one.SOPInstanceUID == ds.SOPInstanceUID)
        assert ds == original
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert [entry.n_files for entry in batches.entries(workspace, "lung_ct")] == [5]
    log = running.log.read_text()
    assert re.search(r"sender: 5 stored; 1 studies settled", log)
    for secret in ("Invented", "PAT-", study[0].StudyInstanceUID, study[0].SOPInstanceUID):
        assert secret not in log


def test_who_is_not_configured_is_rejected_by_title_address_and_called_title(workspace: Workspace) -> None:
    describe_network(workspace.home, nodes={"elsewhere": {"ae_title": "ELSEWHERE", "host": "192.0.2.7"}})
    study = small_study("stranger")
    with receiver_of(workspace.home) as running:
        assert send(running.port, study, title="STRANGER") == []
        assert send(running.port, study, title="ELSEWHERE") == []
        assert send(running.port, study, called="ANOTHER") == []
        assert send(running.port, study) == [0, 0]
    log = running.log.read_text()
    assert log.count("is rejected") == 3
    assert not any(title in log for title in ("STRANGER", "ELSEWHERE", "ANOTHER"))


def test_the_same_instance_again_is_one_file_and_another_content_is_kept_as_a_conflict(workspace: Workspace) -> None:
    describe_network(workspace.home)
    study = small_study("again")
    with receiver_of(workspace.home) as running:
        assert send(running.port, study) == [0, 0]
        assert send(running.port, study) == [0, 0]
        study[0].PixelData = bytes(32)
        assert send(running.port, study[:1] * 2) == [0, 0]
        wait_for(lambda: "2 conflict" in running.log.read_text(), 10)
    assert "2 repeated" in running.log.read_text()
    assert names(landed(workspace.home)) == sorted(ds.SOPInstanceUID for ds in study)
    kept = conflicts(workspace.home)
    assert [pydicom.dcmread(path).PixelData for path in kept] == [bytes(32)]
    assert len(batches.entries(workspace, "lung_ct")) == 1
    with receiver_of(workspace.home) as running:
        assert "1 instances in .conflicts" in running.log.read_text()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")
def test_kinds_that_no_program_reads_are_refused_with_a_status_and_a_count(workspace: Workspace) -> None:
    describe_network(workspace.home)
    report, wrong = small_study("report", 2)
    report.SOPClassUID = BasicTextSRStorage
    with receiver_of(workspace.home) as running:
        ae = entity()
        ae.add_requested_context(BasicTextSRStorage, ExplicitVRLittleEndian)
        assoc = keep_answers(ae.associate("127.0.0.1", running.port, ae_title=CALLED))
        assert assoc.send_c_store(report).Status == UNSUPPORTED
        wrong.StudyInstanceUID = "../../elsewhere"
        assert assoc.send_c_store(wrong).Status == NOT_UNDERSTOOD
        assoc.release()
        wait_for(lambda: "sender:" in running.log.read_text(), 10)
    log = running.log.read_text()
    assert "1 refused (unsupported_sop_class)" in log
    assert "1 refused (malformed_element)" in log
    assert landed(workspace.home) == unsettled(workspace.home) == []


def test_an_association_that_is_cut_leaves_its_study_to_settle_when_it_is_quiet(workspace: Workspace) -> None:
    describe_network(workspace.home, quiet_s=1.5)
    first, second = small_study("cut")
    with receiver_of(workspace.home) as running:
        assoc = keep_answers(entity().associate("127.0.0.1", running.port, ae_title=CALLED))
        assert assoc.send_c_store(first).Status == 0
        assoc.abort()
        time.sleep(0.3)
        assert landed(workspace.home) == []
        assert names(unsettled(workspace.home)) == [first.SOPInstanceUID]
        assert send(running.port, [second]) == [0]
        wait_for(lambda: len(landed(workspace.home)) == 2, 10)
        assoc = keep_answers(entity().associate("127.0.0.1", running.port, ae_title=CALLED))
        assert assoc.send_c_store(small_study("cut", 3)[2]).Status == 0
        assoc.abort()
        wait_for(lambda: len(landed(workspace.home)) == 3, 10)
    assert len(batches.entries(workspace, "lung_ct")) == 1


def test_connections_that_ask_for_nothing_take_no_place_of_a_peer(workspace: Workspace) -> None:
    describe_network(workspace.home, max_associations=2)
    with receiver_of(workspace.home) as running:
        assert all(listens(running.port) for _ in range(20))
        time.sleep(0.5)
        assert send(running.port, small_study("health")) == [0, 0]


def test_a_short_disk_puts_instances_off_and_takes_them_when_there_is_space(workspace: Workspace) -> None:
    describe_network(workspace.home, min_free_gb=10_000_000)
    study = small_study("full")
    with receiver_of(workspace.home) as running:
        assert send(running.port, study) == [OUT_OF_RESOURCES, OUT_OF_RESOURCES]
        wait_for(lambda: "2 put off (no_space)" in running.log.read_text(), 10)
        wait_for(lambda: "disk full" in running.log.read_text(), 10)
    assert landed(workspace.home) == []
    describe_network(workspace.home)
    with receiver_of(workspace.home) as running:
        assert send(running.port, study) == [0, 0]


def commitment(study: list[Dataset], transaction: str) -> Dataset:
    """A request for these instances and one that was never sent."""
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for sop in (*(ds.SOPInstanceUID for ds in study), uid("never", "sent")):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, sop
        request.ReferencedSOPSequence.append(item)
    return request


@pytest.mark.parametrize("stays", [True, False])
def test_storage_commitment_is_reported_on_the_same_association_or_on_a_new_one(
    workspace: Workspace, stays: bool
) -> None:
    port = free_port()
    describe_network(workspace.home, nodes={"asker": {"ae_title": "ASKER", "host": "127.0.0.1", "port": port}})
    study, reports = small_study("commit"), []

    def reported(event: evt.Event) -> tuple[int, None]:
        reports.append((event.assoc.is_acceptor, event.event_type, event.event_information))
        return 0, None

    ae = entity("ASKER")
    ae.add_requested_context(StorageCommitmentPushModel)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, reported)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        with receiver_of(workspace.home) as running:
            assoc = keep_answers(ae.associate("127.0.0.1", running.port, ae_title=CALLED, evt_handlers=handlers))
            assert [assoc.send_c_store(ds).Status for ds in study] == [0, 0]
            status, _ = assoc.send_n_action(
                commitment(study, "1.2.3"), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            assert status.Status == 0
            if not stays:
                assoc.release()
            wait_for(lambda: reports, 20)
            if stays:
                assoc.release()
    finally:
        ae.shutdown()
        server.server_close()
    ((on_new, kind, report),) = reports
    assert on_new is not stays
    assert kind == 2
    assert report.TransactionUID == "1.2.3"
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [
        ds.SOPInstanceUID for ds in study
    ]
    (failed,) = report.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (uid("never", "sent"), 0x0112)


def kill_while_sending(home: Path, n_studies: int, n_kills: int, seed: int) -> None:
    """Four associations send studies while the receiver is killed; every acknowledged instance is there, none twice.

    The kills come after random shares of all instances, a few milliseconds after one of them was acknowledged.
    """
    describe_network(home, port=free_port())
    studies = [small_study(f"kill-{seed}-{k}") for k in range(n_studies)]
    rng, acknowledged = random.Random(seed), list[str]()
    with no_open_sockets():
        running: Running = start_receiver(home)
        threads = in_threads(4, [running.port], studies, acknowledged)
        for n_before in sorted(rng.sample(range(1, 2 * n_studies - 8), n_kills)):
            while len(acknowledged) < n_before:
                assert any(thread.is_alive() for thread in threads)
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            running.process.kill()
            running.process.wait()
            here = names(landed(home)) + names(unsettled(home))
            assert set(acknowledged) <= set(here)
            assert len(here) == len(set(here))
            running = start_receiver(home)
        for thread in threads:
            thread.join()
    running.process.terminate()
    running.process.wait()
    sent = sorted(str(ds.SOPInstanceUID) for study in studies for ds in study)
    assert sorted(acknowledged) == sent
    assert sorted(names(landed(home))) == sent
    assert unsettled(home) == conflicts(home) == []
    assert len({path.parent for path in landed(home)}) == n_studies


@pytest.mark.drill
def test_a_receiver_that_is_killed_twice_loses_nothing_acknowledged_and_has_nothing_twice(workspace: Workspace) -> None:
    kill_while_sending(workspace.home, 40, 2, 7)


@pytest.mark.drill
def test_500_studies_by_four_associations_and_ten_kills(workspace: Workspace) -> None:
    kill_while_sending(workspace.home, 500, 10, 11)


def test_orthanc_sends_a_study_and_has_it_committed(workspace: Workspace, tmp_path: Path) -> None:
    port = free_port()
    study = small_study("orthanc", 3)
    with orthanc_of(tmp_path / "orthanc", {"us": (CALLED, port)}) as orthanc:
        describe_network(workspace.home, nodes={"pacs": orthanc.node()}, port=port)
        orthanc.upload(study)
        with receiver_of(workspace.home):
            ids = orthanc.ask("/instances")
            sent = orthanc.ask(
                "/modalities/us/store", {"Resources": ids, "StorageCommitment": True, "Synchronous": True}
            )
            assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (3, 0)
            report = f"/storage-commitment/{sent['StorageCommitmentTransactionUID']}"
            wait_for(lambda: orthanc.ask(report)["Status"] != "Pending", 20)
            answer = orthanc.ask(report)
    assert answer["Status"] == "Success"
    assert len(answer["Success"]) == 3
    assert names(landed(workspace.home)) == sorted(ds.SOPInstanceUID for ds in study)


def test_tls_needs_a_certificate_of_the_authority(workspace: Workspace) -> None:
    write_certificates(workspace.home)
    tls = {"certificate": "own.pem", "key": "own.key", "ca": "own.pem"}
    describe_network(workspace.home, tls=tls)
    folder = workspace.home
    with receiver_of(workspace.home) as running:
        assert "(TLS)" in running.log.read_text()
        words = ("-aet", CALLING, "-aec", CALLED)
        peer = ("127.0.0.1", running.port)
        plain = run_dcmtk("echoscu", "-ta", 3, "-td", 3, *words, *peer)
        assert plain.returncode != 0
        own = ("+tls", folder / "own.key", folder / "own.pem", "+cf", folder / "own.pem", "-pw")
        assert run_dcmtk("echoscu", *own, *words, *peer).returncode == 0
        stranger = ("+tls", folder / "other.key", folder / "other.pem", "+cf", folder / "own.pem", "-pw")
        assert run_dcmtk("echoscu", *stranger, *words, *peer).returncode != 0

        tls = {"ca": "own.pem", "certificate": "own.pem", "key": "own.key"}
        node = Node(ae_title=CALLED, host="127.0.0.1", port=running.port, tls=NodeTls.model_validate(tls))
        study = small_study("tls")
        contexts = [(CT_SOP, (ExplicitVRLittleEndian,))]
        with association(node, CALLING, contexts, folder) as assoc:
            assert [assoc.send_c_store(ds).Status for ds in study] == [0, 0]
        untrusted = node.model_copy(update={"tls": NodeTls.model_validate({**tls, "ca": "other.pem"})})
        with pytest.raises(RemoteFailed), no_open_sockets(), association(untrusted, CALLING, contexts, folder):
            pass
