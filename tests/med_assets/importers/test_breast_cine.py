"""Cine loops to single frames: which are taken, whose they are, and the masks that a SEG has of them."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UltrasoundImageStorage

from med_assets.cli.main import main
from med_assets.dicom.loops import key_frames, read_loop, single_image
from med_assets.dicom.segmentation_2d import read_segments_2d, write_segmentation_2d
from med_assets.errors import ConfigurationError
from med_assets.program import fact_table
from med_assets.programs.breast_us.importer_cine import import_loops
from med_assets.programs.breast_us.phantom import write_loop
from med_assets.settings import Workspace
from tests.invented import ingest


def write_seg_of_frames(path: Path, loop: Path, masks: np.ndarray, frames: Sequence[int], named: bool = True) -> None:
    """Write a SEG of some frames of a loop, numbered from 1; `named` is whether it says which they are."""
    read = read_loop(loop)
    first = next(iter(read.frames([frames[0]])))
    write_segmentation_2d(path, masks[frames[0] - 1], "malignant", single_image(read, frames[0], first), synthetic=True)
    ds = dcmread(path)
    items = []
    for number in frames:
        item = deepcopy(ds.PerFrameFunctionalGroupsSequence[0])
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPClassUID = read.dataset.SOPClassUID
        source.ReferencedSOPInstanceUID = read.dataset.SOPInstanceUID
        if named:
            source.ReferencedFrameNumber = number
        items.append(item)
    ds.PerFrameFunctionalGroupsSequence, ds.NumberOfFrames = items, len(frames)
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = read.dataset.SOPInstanceUID
    packed = np.packbits(masks[np.array(frames) - 1].ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    ds.save_as(path)


def test_key_frames_are_evenly_spaced_and_all_of_a_short_loop() -> None:
    assert key_frames(100, 5) == [11, 31, 51, 71, 91]
    assert key_frames(3, 5) == [1, 2, 3]
    assert key_frames(7, 7) == list(range(1, 8))
    assert key_frames(9, 1) == [5]


def test_key_frames_of_a_loop_are_images_of_its_patient_to_predict(tmp_path: Path) -> None:
    path = tmp_path / "src" / "a" / "loop.dcm"
    write_loop(path, 1, 9)
    report = import_loops(tmp_path / "src", tmp_path / "out", 3)
    assert report.imported == ("a-loop-frame-00002", "a-loop-frame-00005", "a-loop-frame-00008")
    loop, uids = dcmread(path), set()
    for name, number in zip(report.imported, (2, 5, 8), strict=True):
        (file,) = (tmp_path / "out" / name).iterdir()
        ds = dcmread(file)
        assert (ds.PatientID, ds.StudyInstanceUID) == (loop.PatientID, loop.StudyInstanceUID)
        assert (ds.SOPClassUID, ds.InstanceNumber) == (UltrasoundImageStorage, number)
        assert "NumberOfFrames" not in ds
        assert ds.pixel_array.tolist() == loop.pixel_array[number - 1].tolist()
        uids.add(ds.SOPInstanceUID)
    assert len(uids | {loop.SOPInstanceUID}) == 4
    assert import_loops(tmp_path / "src", tmp_path / "out", 3).existing == report.imported


def test_frames_that_a_seg_refers_to_are_taken_with_their_masks_through_intake(
    workspace: Workspace, tmp_path: Path
) -> None:
    src, landing = tmp_path / "src", workspace.landing / "breast_us"
    masks = write_loop(src / "loop.dcm", 1, 8)
    write_seg_of_frames(src / "seg.dcm", src / "loop.dcm", masks, (2, 3, 7))
    report = import_loops(src, landing, 5)
    assert report.imported == tuple(f"loop-frame-{number:05d}" for number in (2, 3, 7))
    for name, number in zip(report.imported, (2, 3, 7), strict=True):
        (segment,) = read_segments_2d(dcmread(landing / name / "seg.dcm"))
        assert segment.label == "malignant"
        assert segment.mask.tolist() == masks[number - 1].tolist()
    taken, _ = ingest(workspace, "breast_us")
    assert [row["status"] for row in taken] == ["ok"] * 3
    facts = list(workspace.lake.rows(fact_table("breast_us")))
    assert sorted(row["lesion_pixels"] for row in facts) == sorted(int(masks[n - 1].sum()) for n in (2, 3, 7))
    assert len({row["patient_id"] for row in taken}) == 1


def test_what_is_not_clear_is_left_out_and_the_other_loops_are_taken(tmp_path: Path) -> None:
    src = tmp_path / "src"
    masks = write_loop(src / "a.dcm", 1, 4)
    write_seg_of_frames(src / "a_seg.dcm", src / "a.dcm", masks, (1, 2), named=False)
    masks = write_loop(src / "b.dcm", 2, 4)
    write_seg_of_frames(src / "b_seg.dcm", src / "b.dcm", masks, (1, 2))
    ds = dcmread(src / "b_seg.dcm")
    ds.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 9
    ds.save_as(src / "b_seg.dcm")
    write_loop(src / "c.dcm", 3, 2)
    (src / "d.dcm").write_text("no DICOM")
    report = import_loops(src, tmp_path / "out", 2)
    assert report.imported == ("c-frame-00001", "c-frame-00002")
    assert {name: reason.partition(":")[0] for name, reason in report.skipped.items()} == {
        "a": "no_image", "b": "no_image", "d.dcm": "not_dicom",
    }  # fmt: skip
    assert "frame 9" in report.skipped["b"]


def test_the_command_imports_loops_and_refuses_a_folder_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_loop(tmp_path / "src" / "loop.dcm", 1, 9)
    wanted = ["import", "cine", str(tmp_path / "src"), str(tmp_path / "out"), "--frames-per-loop", "2"]
    assert main(wanted) == 0
    assert "imported 2 cases" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="found none"):
        import_loops(tmp_path / "out" / "nothing", tmp_path / "out", 2)
    with pytest.raises(ConfigurationError, match="1 or more"):
        import_loops(tmp_path / "src", tmp_path / "out", 0)
