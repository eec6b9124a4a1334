"""A marker planted in every place of a DICOM file that can hold bytes: none of it is in the home after intake and preparation,
and the pixels are those that were sent.
"""

import logging
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from med_assets.settings import Workspace
from tests.invented import ingest, plan_case, write
from tests.planted import FORMS, MARKER, PLANTS, RAW, block, found_in, is_planted, planted_stream, read
from tests.shared_phantoms import write_phantoms

PROGRAMS = ("rt_dose", "lung_ct", "lumbar_mr", "breast_us", "retinal_oct")


def hits(ws: Workspace) -> list[str]:
    """Files of the home, other than those of the landing zone, with a planted name in their content or path."""
    paths = [path for path in ws.home.rglob("*") if path.is_file() and not path.is_relative_to(ws.landing)]
    assert any(path.suffix == ".dcm" for path in paths)
    return found_in(paths)


def sent(ds: Dataset) -> bytes:
    return np.ascontiguousarray(ds.pixel_array).tobytes()


def kept_pixels(ws: Workspace, rows: list[dict]) -> Counter[bytes]:
    folders = [ws.store.fetch(row["artifact"]) for row in rows]
    return Counter(sent(ds) for folder in folders for ds in read(folder).values() if keeps_all(ds))


def keeps_all(ds: Dataset) -> bool:
    """Whether an object has pixels that are stored as they are: text beside the tissue of ultrasound is blanked."""
    return "PixelData" in ds and ds.Modality not in ("US", "RTSTRUCT", "RTPLAN")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_of_a_marker_in_every_place_is_in_the_home(
    program: str, workspace: Workspace, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    write_phantoms(program, workspace.landing / program, 1, 3)
    expected: Counter[bytes] = Counter()
    with disable_value_validation():
        for path, ds in read(workspace.landing / program).items():
            if keeps_all(ds):
                expected[sent(ds)] += 1
            for plant in PLANTS:
                plant(ds)
            ds.save_as(path, enforce_file_format=True)
            assert RAW[:-1] in path.read_bytes()
    raw, prepared = ingest(workspace, program)
    assert {(row["status"], row["reason"]) for row in (*raw, *prepared)} == {("ok", None)}
    assert hits(workspace) == []
    assert kept_pixels(workspace, raw) == expected
    assert MARKER.lower() not in (caplog.text + "".join(capsys.readouterr())).lower()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_nothing_of_a_marker_in_a_compressed_stream_is_in_the_home(syntax: str, workspace: Workspace) -> None:
    case = plan_case("planted")
    expected = Counter(sent(ds) for ds in case if keeps_all(ds))
    for ds in case:
        if ds.Modality == "CT":
            compress(ds, syntax, generate_instance_uid=False)
            stream = next(part for part in reversed(list(generate_fragments(ds.PixelData))) if part)
            ds.PixelData = encapsulate([planted_stream(stream), RAW])
            ds.ExtendedOffsetTable = block()
    write(case, workspace.landing / "rt_dose" / "planted")
    raw, prepared = ingest(workspace, "rt_dose")
    assert {(row["status"], row["reason"]) for row in (*raw, *prepared)} == {("ok", None)}
    assert hits(workspace) == []
    assert kept_pixels(workspace, raw) == expected


@pytest.mark.filterwarnings("ignore")
def test_dropped_bytes_do_not_make_another_case_of_the_same_images(workspace: Workspace) -> None:
    for name in ("first", "second"):
        case = plan_case("same")
        for ds in case:
            if name == "second":
                ds.PatientID, ds.StudyInstanceUID = "SOMEBODY-ELSE", "1.2.3.4.5"
                if ds.Modality == "CT":
                    ds.PixelData += block()
        write(case, workspace.landing / "rt_dose" / name)
        raw, _ = ingest(workspace, "rt_dose")
    assert [row["reason_code"] for row in raw] == ["duplicate_case"]


def test_a_file_in_memory_is_searched_too() -> None:
    """The search itself finds each form of the marker."""
    halves = np.array([half for letter in RAW for half in (letter & 15, letter >> 4)], "<u2") << 12
    for content in (*FORMS, (halves | 5).astype("<u2").tobytes()):
        stream = BytesIO(b"some bytes " + b"\0" + content).getvalue()
        assert is_planted(stream)
