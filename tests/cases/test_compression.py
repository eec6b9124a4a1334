"""Compressed pixels: deflated frames are read, what cannot be decoded is named, and loss is seen in the streams too."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from med_assets.dicom.discover import load
from med_assets.dicom.elements import decoded
from med_assets.dicom.geometry import read_ct_series
from med_assets.dicom.seg import place, read_segments
from med_assets.errors import CaseRejected
from med_assets.settings import Workspace
from tests.invented import Study, ct, ingest, volume_seg, write

DEFLATED = UID("1.2.840.10008.1.2.8.1")
NODULE = np.zeros((25, 64, 64), bool)
NODULE[8:14, 30:38, 20:28] = True


def deflate(ds: Dataset, frames: list[bytes]) -> None:
    packed = []
    for frame in frames:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        stream = packer.compress(frame) + packer.flush()
        packed.append(stream + b"\0" * (len(stream) % 2))
    ds.PixelData = encapsulate(packed)
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = (
        JPEGBaseline8Bit  # of the same length: pydicom writes no syntax that it does not know
    )


def write_deflated(datasets: list[Dataset], folder: Path) -> list[Path]:
    """Write datasets whose pixels `deflate` packed."""
    paths = sorted(write(datasets, folder).iterdir())
    for path in paths:
        data = path.read_bytes()
        assert data.count(JPEGBaseline8Bit.encode()) == 1
        path.write_bytes(data.replace(JPEGBaseline8Bit.encode(), DEFLATED.encode() + b"\0"))
    return paths


def bit_frames(masks: np.ndarray) -> list[bytes]:
    return [np.packbits(mask.ravel(), bitorder="little").tobytes() for mask in masks]


def test_deflated_frames_are_read_with_the_values_of_plain_ones(workspace: Workspace) -> None:
    study = Study("deflated")
    slices = ct(study)
    expected = read_ct_series(slices)
    seg = volume_seg(study, slices, [("lung tumor", NODULE)])
    deflate(seg, bit_frames(NODULE[8:14]))
    for one in slices:
        deflate(one, [one.PixelData])
    loaded = [load(path) for path in write_deflated([*slices, seg], workspace.landing / "lung_ct" / "a")]
    assert np.array_equal(read_ct_series(loaded[:-1]).array, expected.array)
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["target_ml"] == pytest.approx(48.0)
    assert (facts["lossy"], facts["lossy_ratio"]) == (False, None)


def test_deflated_bits_of_an_odd_size_end_with_a_byte_each(tmp_path: Any) -> None:
    study = Study("odd")
    slices = ct(study, n=5, size=(13, 11))
    mask = np.random.default_rng(0).random((5, 13, 11)) < 0.5
    seg = volume_seg(study, slices, [("a", mask)])
    deflate(seg, bit_frames(mask))
    (path,) = write_deflated([seg], tmp_path / "a")
    placed, _ = place(read_segments(load(path)), read_ct_series(slices).geometry)
    assert np.array_equal(placed["a"], mask)


@pytest.mark.parametrize(
    ("stream", "code"), [(b"no deflated bytes at all", "undecodable_pixels"), (b"\x4b\x04\x00", "truncated_file")]
)
def test_deflated_frames_that_are_none_or_too_short_are_named(tmp_path: Any, stream: bytes, code: str) -> None:
    (one,) = ct(Study("broken"), n=1, positions=[0.0])
    one.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    one["PixelData"].VR = "OB"
    one.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    (path,) = write_deflated([one], tmp_path / "a")
    with pytest.raises(CaseRejected) as refused:
        load(path)
    assert refused.value.code == code
    assert "Deflated Image Frame Compression" in refused.value.message


def test_a_frame_that_would_inflate_to_gigabytes_takes_what_its_header_declares(tmp_path: Any) -> None:
    (one,) = ct(Study("bomb"), n=1, positions=[0.0])
    deflate(one, [one.PixelData + bytes(50_000_000)])
    (path,) = write_deflated([one], tmp_path / "a")
    assert len(load(path).PixelData) == 64 * 64 * 2


@pytest.mark.parametrize(("syntax", "name"), [(RLELossless, "RLE Lossless"), (JPEG2000Lossless, "JPEG 2000 Image")])
def test_advice_about_pixels_that_cannot_be_decoded_names_their_syntax_and_another(syntax: UID, name: str) -> None:
    one = ct(Study("advice"), n=2)[0]
    one.compress(syntax, generate_instance_uid=False)
    one.PixelData = encapsulate([b"\x05" * 300])
    with pytest.raises(CaseRejected) as refused:
        decoded(one, (64, 64))
    assert refused.value.code == "undecodable_pixels"
    message, advice = refused.value.message.split("To do: ")
    assert name in message
    assert advice == "export it uncompressed (Explicit VR Little Endian)."


@pytest.mark.parametrize(("ratio", "lossy"), [(None, False), (10, True)])
@pytest.mark.parametrize("stated", [True, False])
def test_jpeg_2000_without_a_word_in_its_header_is_told_by_its_wavelet(
    workspace: Workspace, ratio: int | None, lossy: bool, stated: bool
) -> None:
    study = Study("wavelet")
    slices = ct(study)
    for one in slices:
        if ratio:
            one.compress(JPEG2000, generate_instance_uid=False, j2k_cr=[ratio])
        else:
            one.compress(JPEG2000Lossless, generate_instance_uid=False)
            one.file_meta.TransferSyntaxUID = JPEG2000
        if stated and ratio:
            one.LossyImageCompression, one.LossyImageCompressionRatio = "01", ["4.5", str(ratio)]
    write([*slices, volume_seg(study, slices, [("lung tumor", NODULE)])], workspace.landing / "lung_ct" / "a")
    (raw,), (row,) = ingest(workspace, "lung_ct")
    assert (raw["reason"], row["reason"]) == (None, None)
    (facts,) = workspace.lake.rows("lung_ct_facts", "lung_ct")
    assert facts["lossy"] is lossy
    assert facts["lossy_ratio"] == (ratio if stated and ratio else None)
