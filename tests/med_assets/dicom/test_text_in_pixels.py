"""Text burnt into pixels is found, blanked or refused; its pictures stay beside the landing zone, and without the policy nothing changes."""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless, RLELossless

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import residual_phi
from med_assets.deidentification.text_in_pixels import TextInPixels, may_hold_text
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.text_detection import as_picture, find_text
from med_assets.dicom.ultrasound import write_us
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.programs.breast_us.phantom import phantom
from med_assets.programs.breast_us.phantom import write_case as write_breast
from med_assets.settings import Workspace
from med_assets.storage.files import file_sha256
from tests.conftest import settings_of
from tests.invented import ingest

TEXT = "TEST PATIENT 0001"
LETTERS = (slice(120, 144), slice(40, 280))
IDENTITY = Identity("P-1", derived_uid("text in pixels"), "", study_date="20240102")


def with_text(picture: np.ndarray, text: str = TEXT) -> np.ndarray:
    """A picture with bright letters of 24 pixels in LETTERS."""
    image = Image.fromarray(picture)
    place = LETTERS[1].start, LETTERS[0].start
    ImageDraw.Draw(image).text(place, text, fill=255, font=ImageFont.load_default(size=24))
    return np.asarray(image)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Ultrasound without border or text, 240 x 320."""
    made = phantom(3, (240, 320), "normal")
    return made.pixels[made.region]


@pytest.fixture
def search(tmp_path: Path) -> TextInPixels:
    return TextInPixels(quarantine=False, pictures=tmp_path / "pictures", case_id="0123456789ab")


def ultrasound(path: Path, pixels: np.ndarray, **options: object) -> pydicom.Dataset:
    write_us(path, pixels, IDENTITY, **options)  # type: ignore[arg-type]  # the variety is the point of the test
    return pydicom.dcmread(path)


def nothing() -> None:
    """What is done before a frame."""


def letters_left(pixels: np.ndarray, ds: pydicom.Dataset) -> int:
    """Pixels of letters that are still as bright as they were planted."""
    planted = pixels == 255
    planted[: LETTERS[0].start] = planted[LETTERS[0].stop :] = False
    return int((ds.pixel_array[..., planted] == 255).sum())


def test_text_is_found_where_it_is_and_nowhere_else(tissue: np.ndarray) -> None:
    found = find_text(with_text(tissue))
    assert len(found) == 1
    rows, columns = found[0]
    assert rows.start <= 124 < 140 <= rows.stop
    assert rows.stop - rows.start < 50
    assert columns.start <= 42
    assert 230 < columns.stop < 300
    assert find_text(tissue) == []


def test_a_part_of_the_picture_that_is_too_high_for_text_is_no_text(
    tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("med_assets.dicom.text_detection.MAX_HEIGHT_SHARE", 0.02)
    assert find_text(with_text(tissue)) == []


def test_sixteen_bits_are_stretched_without_the_brightest_and_darkest_pixels() -> None:
    frame = np.full((64, 64, 1), 1000, np.uint16)
    frame[:32] = 1200
    frame[0, 0] = 65535
    assert set(np.unique(as_picture(frame))) == {0, 255}


def test_text_in_tissue_is_blanked_and_the_header_says_so(
    tmp_path: Path, tissue: np.ndarray, search: TextInPixels
) -> None:
    pixels = with_text(tissue)
    found = search.cleaned(ultrasound(tmp_path / "us.dcm", pixels, burnt_in=True), 0, nothing)
    assert found.boxes == 1
    out = Deidentifier(b"key").apply(found.ds, text_blanked=True)
    assert not residual_phi([out])
    assert letters_left(pixels, out) == 0
    outside = np.ones(pixels.shape, bool)
    outside[100:164, 20:310] = False
    assert np.array_equal(out.pixel_array[outside], pixels[outside])
    assert out.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in out.DeidentificationMethodCodeSequence]
    with Image.open(search.pictures / "0123456789ab-0000.png") as picture:
        assert picture.size == (320, 240)


def test_declared_text_that_is_not_found_is_still_refused(
    tmp_path: Path, tissue: np.ndarray, search: TextInPixels
) -> None:
    found = search.cleaned(ultrasound(tmp_path / "us.dcm", tissue, burnt_in=True), 0, nothing)
    assert found.boxes == 0
    assert not search.pictures.exists()
    with pytest.raises(CaseRejected) as refused:
        Deidentifier(b"key").apply(found.ds)
    assert refused.value.code == "burned_in_annotation"


def test_text_of_one_frame_is_blanked_in_all_and_each_frame_is_announced(
    tmp_path: Path, tissue: np.ndarray, search: TextInPixels
) -> None:
    ds = ultrasound(tmp_path / "us.dcm", tissue)
    frames = np.stack([tissue, with_text(tissue)])
    ds.NumberOfFrames, ds.PixelData = 2, frames.tobytes()
    announced: list[int] = []
    found = search.cleaned(ds, 0, lambda: announced.append(1))
    assert (found.boxes, len(announced)) == (1, 2)
    assert (found.ds.pixel_array[0][LETTERS] == 0).mean() > 0.9
    assert letters_left(frames[1], found.ds) == 0


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_pixels_are_written_back_uncompressed_and_without_loss(
    syntax: str, tmp_path: Path, tissue: np.ndarray, search: TextInPixels
) -> None:
    pixels = with_text(tissue)
    ds = ultrasound(tmp_path / "us.dcm", pixels)
    compress(ds, syntax, generate_instance_uid=False)
    out = search.cleaned(ds, 0, nothing).ds
    assert not out.file_meta.TransferSyntaxUID.is_compressed
    assert letters_left(pixels, out) == 0
    assert np.array_equal(out.pixel_array[180:], pixels[180:])
    assert "LossyImageCompression" not in out


@pytest.mark.parametrize(
    ("changes", "searched"),
    [
        ({"Modality": "CT"}, True),
        ({"BurnedInAnnotation": "NO"}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, False),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "BurnedInAnnotation": "YES"}, True),
        ({"SOPClassUID": pydicom.uid.SegmentationStorage}, False),
        ({"SOPClassUID": pydicom.uid.UltrasoundImageStorage, "BurnedInAnnotation": "NO"}, True),
    ],
)
def test_tags_say_whether_an_image_is_searched(changes: dict[str, object], searched: bool) -> None:
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.ImageType, ds.PixelData = pydicom.uid.CTImageStorage, ["DERIVED", "SECONDARY"], b"\0\0"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    assert may_hold_text(ds) is searched


def test_of_grey_images_the_darkest_value_is_black(tmp_path: Path, tissue: np.ndarray, search: TextInPixels) -> None:
    ds = ultrasound(tmp_path / "us.dcm", tissue)
    ds.SOPClassUID, ds.Modality, ds.PixelRepresentation = pydicom.uid.CTImageStorage, "CT", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    del ds.BurnedInAnnotation
    pixels = with_text(tissue).astype(np.int16) * 5 - 1000
    ds.PixelData = pixels.tobytes()
    out = search.cleaned(ds, 0, nothing).ds.pixel_array
    changed = out != pixels
    assert changed.any()
    assert set(out[changed]) == {pixels.min()}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case of ultrasound with text in its tissue, and one without any."""
    folder = tmp_path_factory.mktemp("sent")
    for name, seed, planted in (("with", 3, True), ("without", 4, False)):
        write_breast(folder / name, seed, shape=(240, 320), kind="normal")
        if planted:
            path = folder / name / "us.dcm"
            ds = pydicom.dcmread(path)
            ds.PixelData = (made := with_text(ds.pixel_array)).tobytes() + b"\0" * (made.size % 2)
            ds.save_as(path)
    return folder


def taken_in(sent: Path, home: Path, **settings: str) -> tuple[Workspace, list[dict]]:
    """A home that took the two cases in with these settings, and its rows of raw_cases."""
    ws = Workspace.from_env({**settings_of(home), **settings})
    ws.landing.mkdir(parents=True)
    (ws.landing / "breast_us").symlink_to(sent, target_is_directory=True)
    raw, _ = ingest(ws, "breast_us")
    return ws, sorted(raw, key=lambda row: row["case_id"])


def stored(ws: Workspace, rows: list[dict]) -> dict[str, list[str]]:
    """Hashes of the stored files by case."""
    folders = {row["case_id"]: ws.store.fetch(row["artifact"]) for row in rows if row["artifact"]}
    return {case: [file_sha256(path) for path in sorted(folder.glob("*.dcm"))] for case, folder in folders.items()}


def test_intake_blanks_what_it_finds_and_all_else_keeps_its_bytes(sent: Path, tmp_path: Path) -> None:
    off, before = taken_in(sent, tmp_path / "off")
    ws, rows = taken_in(sent, tmp_path / "blank", MED_ASSETS_OCR="blank")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    unlike = [case for case, hashes in stored(ws, rows).items() if hashes != stored(off, before)[case]]
    assert len(unlike) == 1
    (picture,) = ws.home.rglob("*.png")
    assert picture.is_relative_to(ws.landing / ".batches")
    assert picture.name == f"{unlike[0]}-0000.png" or picture.name == f"{unlike[0]}-0001.png"
    assert not list(off.home.rglob("*.png"))


def test_intake_quarantines_what_it_finds_where_the_policy_says_so(sent: Path, tmp_path: Path) -> None:
    ws, rows = taken_in(sent, tmp_path / "home", MED_ASSETS_OCR="quarantine")
    assert sorted((row["status"], row["reason_code"]) for row in rows) == [
        ("ok", None),
        ("quarantined", "text_found_in_pixels"),
    ]
    assert len(list((ws.landing / ".batches").rglob("*.png"))) == 1


def test_a_policy_without_the_extra_names_it_and_takes_nothing_in(
    sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"rapidocr": None}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("med_assets.dicom.text_detection.find_spec", lambda name: absent.get(name, find_spec("json")))
    with pytest.raises(ConfigurationError, match=r"med-assets\[ocr\]"):
        taken_in(sent, tmp_path / "home", MED_ASSETS_OCR="blank")


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="MED_ASSETS_OCR"):
        Workspace.from_env({**settings_of(tmp_path), "MED_ASSETS_OCR": "maybe"})
