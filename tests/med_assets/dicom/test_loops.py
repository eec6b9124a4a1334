"""Cine loops: frames one by one, their times, and what is refused."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from med_assets.dicom.loops import read_loop, write_us_loop
from med_assets.dicom.objects import Identity
from med_assets.errors import CaseRejected

IDENTITY = Identity("P", "1.2.3", frame_of_reference_uid="", synthetic=True)


def frames_of(n: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side), np.uint8)


def test_frames_are_those_written_and_have_their_times(tmp_path: Path) -> None:
    frames = frames_of(5)
    write_us_loop(tmp_path / "a.dcm", frames, IDENTITY, frame_ms=40)
    loop = read_loop(tmp_path / "a.dcm")
    assert loop.n_frames == 5
    assert [frame.tolist() for frame in loop.frames()] == frames.tolist()
    assert loop.times_s == pytest.approx((0, 0.04, 0.08, 0.12, 0.16))
    write_us_loop(tmp_path / "b.dcm", frames, IDENTITY, frame_ms=40)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"FrameTime": None, "FrameTimeVector": [0, 10, 30]}, (0, 0.01, 0.04)),
        ({"FrameTime": None, "CineRate": 25}, (0, 0.04, 0.08)),
        ({"FrameTime": None}, None),
        ({"FrameTime": 50, "FrameTimeVector": [0, 10]}, (0, 0.05, 0.1)),
    ],
)
def test_times_are_those_that_the_loop_states_and_none_otherwise(
    tmp_path: Path, changes: dict[str, object], times: tuple[float, ...] | None
) -> None:
    ds = write_us_loop(tmp_path / "a.dcm", frames_of(3), IDENTITY, frame_ms=40)
    for keyword, value in changes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    ds.save_as(tmp_path / "b.dcm")
    found = read_loop(tmp_path / "b.dcm").times_s
    assert found == (None if times is None else pytest.approx(times))


def test_one_frame_of_a_compressed_loop_is_decoded_at_a_time(tmp_path: Path) -> None:
    frames = np.zeros((40, 512, 512), np.uint8)
    frames[:, 100:200, 100:200] = np.arange(40, dtype=np.uint8)[:, None, None]
    ds = write_us_loop(tmp_path / "a.dcm", frames, IDENTITY, frame_ms=40)
    ds.compress(RLELossless)
    ds.save_as(tmp_path / "rle.dcm")
    loop, seen = read_loop(tmp_path / "rle.dcm"), []
    tracemalloc.start()
    for frame in loop.frames():
        seen.append(int(frame.max()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == list(range(40))
    assert peak < 12 * 512 * 512 < frames.nbytes / 3


def test_what_is_no_loop_of_ultrasound_and_a_loop_that_ends_before_are_refused(tmp_path: Path) -> None:
    write_us_loop(tmp_path / "a.dcm", frames_of(3), IDENTITY, frame_ms=40)
    for name, keyword, value, code in (
        ("ct", "Modality", "CT", "wrong_modality"),
        ("palette", "PhotometricInterpretation", "PALETTE COLOR", "unusual_pixels"),
        ("many", "NumberOfFrames", 10**6, "too_large"),
        ("cut", "NumberOfFrames", 4, "truncated_file"),
    ):
        ds = dcmread(tmp_path / "a.dcm")
        setattr(ds, keyword, value)
        ds.save_as(tmp_path / f"{name}.dcm")
        with pytest.raises(CaseRejected) as found:
            list(read_loop(tmp_path / f"{name}.dcm").frames())
        assert found.value.code == code, name
