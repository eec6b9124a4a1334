"""Readers as a user's machine starts them, and readers whose parser and decoders of DICOM crash or hang."""

import os
from collections.abc import Iterator

import pytest

from med_assets.intake import reader
from med_assets.storage import preloaded
from tests.conftest import REPOSITORY

FAULTY = """
import os, time
import pydicom
import pydicom.pixels
init, good_decoder, read = pydicom.dataset.FileDataset.__init__, pydicom.pixels.get_decoder, pydicom.dcmread
def faulty_init(self, name, elements, *args, **options):
    values = [element.value for element in elements.values() if element.tag == 0x0008103E]
    if flags := os.environ.get("PYTEST_FLAGS"):
        flag = flags + "/once"
        if b"ABORT-ONCE" in values and not os.path.exists(flag):
            open(flag, "w").close()
            os.abort()
        if b"ABORT-HEADER" in values or b"HANG-HEADER " in values:
            with open(flags + "/begun", "a") as log:
                log.write(f"{os.getpid()}\\n")
    if b"ABORT-HEADER" in values:
        os.abort()
    if b"HANG-HEADER " in values:
        time.sleep(600)
    init(self, name, elements, *args, **options)
def get_decoder(syntax):
    fault = os.environ.get("PYTEST_FAULTY_PIXELS") if syntax.is_compressed else None
    if fault == "abort":
        os.abort()
    if fault == "hang":
        time.sleep(600)
    return good_decoder(syntax)
def dcmread(*args, **options):
    found = read(*args, **options)
    if (uid := os.environ.get("PYTEST_CRASHES_ON")) and found.get("SOPInstanceUID") == uid:
        os.abort()
    return found
pydicom.dataset.FileDataset.__init__, pydicom.pixels.get_decoder, pydicom.dcmread = faulty_init, get_decoder, dcmread
"""
"""pydicom as it would be with parsers and decoders that crash or hang, by marks in files and by PYTEST_FAULTY_PIXELS and PYTEST_CRASHES_ON.

In the folder PYTEST_FLAGS a file says that the parser has crashed on what makes it do so once, and another has a line for each time that it
began to crash or hang on the rest.
"""


@pytest.fixture(scope="session")
def faulty_parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables with which readers have that pydicom, which processes of Python import by its name, forked from one that has imported it."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "sitecustomize.py").write_text(FAULTY)
    searched = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}"}
    with preloaded.parents(reader.PRELOADED, os.environ | searched) as found:
        yield searched | found


@pytest.fixture
def faulty_readers(faulty_parent: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that are started during a test have that pydicom."""
    for name, value in faulty_parent.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ordinary_readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Readers are started as on a user's machine, not forked from a preloaded parent."""
    reader.end_idle()
    monkeypatch.setenv(preloaded.VARIABLE, "")
    yield
    reader.end_idle()
