"""Elements that repeat are decided once, and never for another patient, character set, sign of pixels or private block."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from med_assets.deidentification import deidentify
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.discover import load, scan
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.parsing import Shelf
from med_assets.dicom.repeated import Repeated, in_order
from med_assets.dicom.undecoded import LONGEST_BYTES
from med_assets.intake.reading import EntryReader, StoredCase, Task
from med_assets.settings import Workspace
from tests import invented
from tests.shared_phantoms import write_phantoms

KEY = b"a key of the tests, thirty-two b"
PROGRAMS = ("breast_us", "lumbar_mr", "lung_ct", "retinal_oct", "rt_dose")


def raw(keyword: str, value: bytes, representation: str = "LO") -> RawDataElement:
    """An element that is not decoded yet."""
    return RawDataElement(Tag(keyword), representation, len(value), value, 0, False, True)


def dataset(*elements: RawDataElement, encoding: str = "iso8859") -> Dataset:
    """An object with these elements, read in a character set."""
    ds = Dataset({element.tag: element for element in elements})
    ds.set_original_encoding(False, True, encoding)
    return ds


MODEL = raw("ManufacturerModelName", b"M\xfcller")
PLAIN = dataset(MODEL)


@pytest.mark.parametrize(
    ("other", "patient"),
    [
        (dataset(MODEL), "another"),
        (dataset(MODEL, encoding="iso8859_5"), "one"),
        (dataset(MODEL, raw("SpecificCharacterSet", b"ISO_IR 144", "CS")), "one"),
        (dataset(MODEL, raw("PixelRepresentation", b"\1\0", "US")), "one"),
        (dataset(MODEL, raw("PixelData", b"\1\0", "OW")), "one"),
        (dataset(MODEL._replace(VR="SH")), "one"),
        (dataset(MODEL._replace(value=b"M\xfcllex")), "one"),
        (dataset(MODEL._replace(is_little_endian=False)), "one"),
        (dataset(MODEL._replace(tag=Tag("Manufacturer"))), "one"),
    ],
)
def test_what_an_element_depends_on_is_never_shared(other: Dataset, patient: str) -> None:
    repeated: Repeated[str] = Repeated()
    for ds, whose, made in ((PLAIN, "one", "first"), (PLAIN, "one", "unused"), (other, patient, "second")):
        stored = next(element for tag, element in in_order(ds) if tag.group == 8 and tag != 0x00080005)
        got = repeated.of(ds, stored, repeated.surroundings(ds, whose), partial(str, made))
        assert got == ("second" if ds is other else "first")


@pytest.mark.parametrize(
    "stored", [raw("ImageComments", b"x" * (LONGEST_BYTES + 1)), MODEL._replace(tag=Tag(0x00091001))]
)
def test_long_and_private_elements_are_never_kept(stored: RawDataElement) -> None:
    repeated, ds = Repeated[int](), dataset(stored)
    made = iter(range(2))
    assert [repeated.of(ds, stored, 0, lambda: next(made)) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_files_are_written_as_pydicom_writes_the_decoded_object(tmp_path: Path, name: str) -> None:
    write_phantoms(name, tmp_path, 1, 2)
    keys, shelf = Deidentifier(KEY), Shelf(1 << 30)
    for one in scan(tmp_path, shelf=shelf).instances:
        stored = keys.apply(load(one))
        alone = Deidentifier(KEY).apply(pydicom.dcmread(one.path))
        decoded = pydicom.dcmread(BytesIO(to_bytes(stored)))
        for _ in decoded.iterall():  # so that pydicom encodes each element anew
            pass
        target = BytesIO()
        decoded.save_as(target, enforce_file_format=True)
        assert to_bytes(stored) == to_bytes(alone) == target.getvalue()


def test_two_patients_of_an_entry_share_nothing() -> None:
    keys = Deidentifier(KEY)
    for tag, charset in (("a", "ISO_IR 100"), ("b", "ISO_IR 100"), ("a", "ISO_IR 144"), ("a", "ISO_IR 100")):
        for ds in invented.ct(invented.Study(tag))[:3]:
            ds.SpecificCharacterSet, ds.StudyDate = charset, "20240102"
            content = BytesIO()
            ds.save_as(content, enforce_file_format=True)
            together, alone = (
                one.apply(pydicom.dcmread(BytesIO(content.getvalue()))) for one in (keys, Deidentifier(KEY))
            )
            assert to_bytes(together) == to_bytes(alone)


def test_native_pixels_are_taken_over_without_a_copy(tmp_path: Path) -> None:
    invented.write(invented.ct(invented.Study("p"))[:1], tmp_path)
    ds = load(scan(tmp_path, shelf=Shelf(1 << 30)).instances[0])
    pixels = ds.get_item("PixelData").value
    assert Deidentifier(KEY).apply(ds)["PixelData"].value is pixels


def _taken_in(ws: Workspace, folder: Path, scratch: Path) -> list[object]:
    scratch.mkdir()
    files = tuple(sorted(folder.iterdir()))
    task = Task(ws, "lung_ct", "b", "source", folder, files, scratch)
    return list(EntryReader(task, Deidentifier(ws.key), lambda step: None).messages())


def test_each_file_of_a_case_is_opened_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invented.write(invented.ct(invented.Study("o")), tmp_path / "case")
    opened, open_path = Counter[Path](), Path.open

    def counted(path: Path, *args: object, **more: object) -> object:
        opened[path] += 1
        return open_path(path, *args, **more)  # type: ignore[call-overload]  # what it is given is passed on

    monkeypatch.setattr(Path, "open", counted)
    (case,) = _taken_in(workspace, tmp_path / "case", tmp_path / "scratch")
    assert isinstance(case, StoredCase)
    assert {opened[path] for path in (tmp_path / "case").iterdir()} == {1}


def test_elements_that_repeat_from_slice_to_slice_are_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decided, read_element = Counter[int](), deidentify.read_element

    def counted(ds: Dataset, tag: pydicom.tag.BaseTag) -> pydicom.DataElement:
        decided[tag] += 1
        return read_element(ds, tag)

    monkeypatch.setattr(deidentify, "read_element", counted)
    keys, slices = Deidentifier(KEY), invented.ct(invented.Study("n"))
    for ds in slices:
        content = BytesIO()
        ds.save_as(content, enforce_file_format=True)
        keys.apply(pydicom.dcmread(BytesIO(content.getvalue())))
    differ = {tag for tag, n in decided.items() if n > 1}
    # pydicom itself decodes the character set when it reads a file
    varying = ("SOPInstanceUID", "InstanceNumber", "SliceLocation", "SpecificCharacterSet")
    assert differ <= {Tag(keyword) for keyword in varying}
    assert len(decided) > 20


Keep = Callable[[], bool]


@pytest.mark.parametrize(("keep", "calls"), [(lambda: True, 1), (lambda: False, 2)])
def test_what_depends_on_more_is_not_kept(keep: Keep, calls: int) -> None:
    repeated, made = Repeated[int](), count(1)
    results = [repeated.of(PLAIN, MODEL, 0, lambda: next(made), keep) for _ in range(2)]
    assert results[-1] == calls


def test_objects_of_the_object_before_take_what_was_made_of_them_and_what_depends_on_more_is_made_again() -> None:
    repeated: Repeated[str] = Repeated()
    name, number = raw("Manufacturer", b"a maker "), raw("SeriesDescription", b"words")
    private, long = raw("StudyDescription", b"x" * (LONGEST_BYTES + 2)), raw("ImageComments", b"other")
    made: list[str] = []

    def results(*elements: RawDataElement, patient: str = "one") -> list[str]:
        ds = dataset(*elements)
        around = repeated.surroundings(ds, patient)

        def make(stored: object) -> str:
            assert isinstance(stored, RawDataElement)
            made.append(f"{patient} {str(stored.value)[:8]}")
            return made[-1]

        return list(repeated.each(ds, elements, around, make, lambda: "other" not in made[-1]))

    first = results(name, number, private, long)
    assert len(made) == 4
    assert results(name, number, private, long) == first
    assert len(made) == 6, "what is long, and what is not to be kept"
    assert results(number, name) == [first[1], first[0]], "in another order"
    assert results(name, raw("SeriesDescription", b"new"), number) == [first[0], "one b'new'", first[1]]
    assert results(name, number, patient="two") == ["two b'a make", "two b'words'"]
    assert results(name, number) == first[:2]
