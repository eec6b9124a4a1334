"""Files compared with the one before are read as they are when each is parsed alone."""

import random
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from med_assets.dicom.archives import is_archive
from med_assets.dicom.discover import Instance, Rejection, load, scan_file
from med_assets.dicom.elements import quietly
from med_assets.dicom.parsing import Shelf
from med_assets.programs.rt_dose.phantom import write_case

N = 8


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("alike") / "case"
    write_case(folder, 1, shape=(N, 8, 8), spacing_mm=(5.0, 20.0, 20.0))
    return sorted((folder / "CT").iterdir())


def found(path: Path, shelf: Shelf) -> tuple[Instance | Rejection, Dataset | None]:
    """What intake makes of a file: its header, and its elements as they are stored."""
    assert not is_archive(path, shelf.start)
    header = scan_file(path, shelf=shelf)
    return header, header.parsed.source if isinstance(header, Instance) and header.parsed else None


def require_same(path: Path, shelf: Shelf) -> None:
    """A file is read after those before it as it is alone."""
    header, one = found(path, shelf)
    alone, other = found(path, Shelf(1 << 30))
    assert header == alone
    assert (one is None) == (other is None)
    if one is None or other is None:
        return
    assert list(one.items()) == list(other.items())
    assert list(one.file_meta.items()) == list(other.file_meta.items())
    state = [
        {name: value for name, value in vars(ds).items() if name not in ("_dict", "file_meta")} for ds in (one, other)
    ]
    assert state[0] == state[1]
    with quietly():  # warnings of values that were damaged
        assert not isinstance(header, Instance) or load(header) == load(path)


def changed(path: Path, to: Path, change: Callable[[Dataset], None]) -> Path:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(to)
    return to


def test_slices_of_a_series_are_read_as_alone_and_share_the_elements_that_do_not_differ(series: list[Path]) -> None:
    shelf = Shelf(1 << 30)
    datasets = [found(path, shelf)[1] for path in series]
    for path, ds in zip(series, datasets, strict=True):
        alone = found(path, Shelf(1 << 30))[1]
        assert ds is not None
        assert alone is not None
        assert list(ds.items()) == list(alone.items())
    first, last = datasets[2], datasets[-1]
    assert first is not None
    assert last is not None
    shared = {tag for tag, stored in first.items() if last.get_item(tag, keep_deferred=True) is stored}
    assert pydicom.tag.Tag("PatientName") in shared
    assert shared.isdisjoint(map(pydicom.tag.Tag, ("SOPInstanceUID", "ImagePositionPatient", "PixelData")))
    assert len(shared) > len(first) / 2
    assert shelf.bytes_left == (1 << 30) - sum(path.stat().st_size for path in series)


def long_text() -> Dataset:
    """More bytes than the start of a file that is compared."""
    item = Dataset()
    item.TextValue = "x" * 20_000
    return item


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: setattr(ds, "PatientName", "OTHER^NAME"),
        lambda ds: setattr(ds, "SpecificCharacterSet", "ISO_IR 192"),
        lambda ds: setattr(ds, "ImageComments", "one more element"),
        lambda ds: delattr(ds, "PatientName"),
        lambda ds: setattr(ds, "ImagePositionPatient", [1.25, -1000.123456, 7]),
        lambda ds: setattr(ds, "SOPInstanceUID", ""),
        lambda ds: ds.add_new(0x00091001, "UN", b"\0\1"),
        lambda ds: setattr(ds, "PixelData", ds.PixelData + b"\0\0"),
        lambda ds: setattr(ds, "DataSetTrailingPadding", bytes(20)),
        lambda ds: setattr(ds, "ReferencedImageSequence", [Dataset()]),
        lambda ds: ds.compress(RLELossless, generate_instance_uid=False),
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian),
        lambda ds: ds.add_new("IconImageSequence", "SQ", [long_text()]),
    ],
)
def test_a_file_of_another_form_in_a_series_is_read_as_alone_and_so_are_those_after_it(
    series: list[Path], tmp_path: Path, change: Callable[[Dataset], None]
) -> None:
    other = changed(series[4], tmp_path / "other.dcm", change)
    shelf = Shelf(1 << 30)
    for path in (*series[:4], other, *series[5:], other, *series[:4]):
        require_same(path, shelf)


def test_damaged_bytes_are_refused_or_read_as_they_are_alone(series: list[Path], tmp_path: Path) -> None:
    chance, outcomes = random.Random(5), set()
    for number in range(300):
        shelf, content = Shelf(1 << 30), bytearray(series[4].read_bytes())
        for path in series[:3]:
            found(path, shelf)
        place = chance.randrange(128, len(content))
        match chance.randrange(4):
            case 0:
                content[place] = chance.randrange(256)
            case 1:
                del content[place:]
            case 2:
                content[place:place] = bytes(chance.randrange(1, 9))
            case 3:
                del content[place : place + chance.randrange(1, 9)]
        (path := tmp_path / f"{number}.dcm").write_bytes(content)
        require_same(path, shelf)
        header = found(path, shelf)[0]
        outcomes.add(header.code if isinstance(header, Rejection) else "read")
    assert {"read", "truncated_file"} <= outcomes


def test_a_file_that_shrinks_while_it_is_read_is_no_part_of_a_series(series: list[Path]) -> None:
    shelf = Shelf(1 << 30)
    for path in series[:3]:
        found(path, shelf)
    content = series[4].read_bytes()
    whole = shelf.alike.cut(content[:16384], len(content), lambda at, n: content[at : at + n])
    assert whole is not None
    assert isinstance(whole.get_item("PixelData"), RawDataElement)
    assert shelf.alike.cut(content[:16384], len(content), lambda at, n: content[at : at + n - 1]) is None
    assert shelf.alike.cut(content[:16384], len(content) - 2, lambda at, n: content[at : at + n]) is None
