"""Instances on disk: what is refused, and what a process that died in the middle left."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import SegmentationStorage as SEGMENTATION

from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.network.inbox import RECEIVING, RETRIEVING, TEMPORARY, Inbox, Outcome, instances_in
from tests.peers import CT_SOP, small_study


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    one = Inbox(tmp_path / "landing", 0, 60)
    yield one
    one.close()


def content(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def store(inbox: Inbox, ds: Dataset, sender: int = 1) -> Outcome:
    return inbox.store(content(ds), CT_SOP, ds.SOPInstanceUID, sender)


def files(inbox: Inbox) -> list[str]:
    """All files below the folder but the lock."""
    found = (path for path in inbox.folder.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(path.relative_to(inbox.folder).as_posix() for path in found)


def test_a_dataset_that_is_another_instance_than_the_request_names_is_refused(inbox: Inbox) -> None:
    first, second = small_study("mismatch")
    with pytest.raises(CaseRejected) as caught:
        inbox.store(content(first), CT_SOP, second.SOPInstanceUID, 1)
    assert caught.value.code == "mismatch"
    assert files(inbox) == []


@pytest.mark.parametrize("data", [b"", b"no dicom", bytes(128) + b"DICM" + b"\xff" * 64])
def test_bytes_that_are_no_object_are_refused_and_leave_nothing(inbox: Inbox, data: bytes) -> None:
    with pytest.raises(CaseRejected):
        inbox.store(data, CT_SOP, "1.2.3", 1)
    assert files(inbox) == []


def test_a_study_settles_when_the_last_of_its_senders_ends(inbox: Inbox) -> None:
    first, second = small_study("two")
    assert store(inbox, first, 1) is Outcome.STORED
    assert store(inbox, second, 2) is Outcome.STORED
    assert inbox.ended(1, properly=True) == 0
    assert inbox.ended(2, properly=False) == 0
    assert inbox.ended(3, properly=True) == 1
    assert files(inbox) == sorted(f"{ds.StudyInstanceUID}/{ds.SOPInstanceUID}.dcm" for ds in (first, second))
    assert instances_in(inbox.folder) == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_what_comes_later_joins_the_entry_and_what_is_there_is_known(inbox: Inbox) -> None:
    first, second = small_study("later")
    store(inbox, first)
    inbox.settle(first.StudyInstanceUID)
    assert store(inbox, first) is Outcome.REPEATED
    assert store(inbox, second) is Outcome.STORED
    assert inbox.settle(second.StudyInstanceUID)
    assert not inbox.settle(second.StudyInstanceUID)
    assert len(files(inbox)) == 2


def test_a_later_label_of_a_study_that_has_one_is_an_entry_of_its_own_and_the_first_joins(tmp_path: Path) -> None:
    images = small_study("labels")
    labels = small_study("labels", 5)[2:]
    for k, ds in enumerate(labels):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SEGMENTATION
        ds.Modality = "SEG"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
    study = images[0].StudyInstanceUID
    one = Inbox(tmp_path / "landing", 0, 60)
    for ds in images:
        store(one, ds)
    one.settle(study)
    for k, ds in enumerate(labels):
        assert one.store(content(ds), SEGMENTATION, ds.SOPInstanceUID, 2) is Outcome.STORED
        if k == 1:  # a process that is killed before it settles
            one.close()
            one = Inbox(tmp_path / "landing", 0, 60)
            assert one.recover() == 1
        else:
            assert one.settle(study)
    expected = [f"{study}/{ds.SOPInstanceUID}.dcm" for ds in (*images, labels[0])]
    expected += [f"{study}-1.2.3.{k}/1.2.3.{k}.dcm" for k in (1, 2)]
    assert files(one) == sorted(expected)
    assert one.store(content(labels[2]), SEGMENTATION, "1.2.3.2", 3) is Outcome.REPEATED
    changed = content(labels[2]).replace(bytes([4, 1] * 16), bytes([5, 1] * 16))
    assert one.store(changed, SEGMENTATION, "1.2.3.2", 3) is Outcome.CONFLICT
    assert one.holds(["1.2.3.0", "1.2.3.1", "1.2.3.2"]) == {"1.2.3.0", "1.2.3.1", "1.2.3.2"}
    one.close()


def test_a_restart_settles_what_was_acknowledged_and_removes_what_was_not(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, 0, 60)
    first, second = small_study("restart")
    store(inbox, first)
    inbox.settle(first.StudyInstanceUID)
    store(inbox, second)
    (inbox.folder / RECEIVING / TEMPORARY / "half.dcm").write_bytes(b"half")
    inbox.close()
    again = Inbox(inbox.folder, 0, 60)
    assert again.recover() == 1
    assert files(again) == sorted(f"{ds.StudyInstanceUID}/{ds.SOPInstanceUID}.dcm" for ds in (first, second))
    again.close()


def test_settling_that_was_killed_in_the_middle_overwrites_nothing(inbox: Inbox) -> None:
    """A file that somebody put into the entry meanwhile stays, and so does ours."""
    (ds,) = small_study("middle", 1)
    store(inbox, ds)
    entry = inbox.folder / ds.StudyInstanceUID
    entry.mkdir()
    (entry / f"{ds.SOPInstanceUID}.dcm").write_bytes(b"another")
    inbox.settle(ds.StudyInstanceUID)
    assert (entry / f"{ds.SOPInstanceUID}.dcm").read_bytes() == b"another"
    assert inbox.conflicts() == 1


def test_a_study_that_can_not_settle_now_is_tried_again(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, 0, 0)
    (ds,) = small_study("blocked", 1)
    store(inbox, ds)
    (tmp_path / ds.StudyInstanceUID).write_bytes(b"a file where the entry belongs")
    assert inbox.ended(1, properly=True) == 0
    assert instances_in(tmp_path) == {ds.SOPInstanceUID}
    (tmp_path / ds.StudyInstanceUID).unlink()
    assert inbox.settle_quiet() == 1
    assert files(inbox) == [f"{ds.StudyInstanceUID}/{ds.SOPInstanceUID}.dcm"]
    inbox.close()


def test_a_process_that_retrieves_works_beside_the_receiver(inbox: Inbox) -> None:
    first, second = small_study("beside")
    other = Inbox(inbox.folder, 0, 60, RETRIEVING)
    for one in (inbox, other):
        store(one, first)
    store(other, second)
    inbox.settle(first.StudyInstanceUID)
    other.settle(first.StudyInstanceUID)
    other.close()
    assert files(inbox) == sorted(f"{ds.StudyInstanceUID}/{ds.SOPInstanceUID}.dcm" for ds in (first, second))


def test_a_second_receiver_on_the_same_folder_is_refused(inbox: Inbox) -> None:
    with pytest.raises(ConfigurationError, match="second"):
        Inbox(inbox.folder, 0, 60)
