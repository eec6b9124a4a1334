"""Parts of the HTTP interface that need no model: uploads by their first bytes, and requests that take too long."""

import asyncio
import gzip
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import uvicorn

from med_assets.serving.app import application
from med_assets.serving.service import Busy, Limits, Service
from med_assets.serving.uploads import HEAD_BYTES, suffix_of
from med_assets.settings import Workspace


@pytest.mark.parametrize("image", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_nifti_file_is_known_packed_or_not(image: type[nibabel.Nifti1Image], tmp_path: Path) -> None:
    for name in ("plain.nii", "packed.nii.gz"):
        nibabel.save(image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / name)
        assert suffix_of((tmp_path / name).read_bytes()[:HEAD_BYTES]) == name[name.index(".") :]


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"\x89PNG\r\n\x1a\n", ".png"),
        (b"PK\x03\x04", ".zip"),
        (b"NRRD0004\n", ".nrrd"),
        (gzip.compress(b"x" * 600, mtime=0), ".tar.gz"),
        (b"\x1f\x8b and no gzip", ".tar.gz"),
        (bytes(128) + b"DICM", ".dcm"),
        (b"", ".dcm"),
    ],
)
def test_other_uploads_by_their_first_bytes(head: bytes, suffix: str) -> None:
    assert suffix_of(head) == suffix


class Hurried:
    """A server in a thread, whose model never loads, with half a second for each part of a request."""

    def __init__(self, ws: Workspace) -> None:
        self.service = Service(ws, "breast_us", Limits(waiting=1, upload_bytes=1000, seconds=0.5))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(application(self.service, ""), lifespan="off", log_config=None, ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[self.listener])), daemon=True
        )
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.service.close()
        self.listener.close()

    def until_free(self) -> None:
        end = time.monotonic() + 60
        while self.service.gauges()[1].samples[0].value:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def hurried(workspace: Workspace) -> Iterator[Hurried]:
    found = Hurried(workspace)
    yield found
    found.close()


def test_an_upload_that_takes_too_long_is_refused_and_its_place_is_free_again(hurried: Hurried) -> None:
    with socket.create_connection(("127.0.0.1", hurried.port), timeout=60) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nDICM")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    hurried.until_free()


def test_a_prediction_that_waits_too_long_is_called_off_and_nothing_of_it_is_left(hurried: Hurried) -> None:
    done = threading.Event()
    hurried.service.thread.submit(done.wait, 60)
    connection = http.client.HTTPConnection("127.0.0.1", hurried.port, timeout=60)
    connection.request("POST", "/predict", b"DICM")
    assert connection.getresponse().status == 504
    connection.close()
    hurried.until_free()
    assert not list((hurried.service.ws.home / "tmp").glob("scratch-*/upload-*"))
    done.set()


def test_there_are_as_many_places_as_may_wait_and_one_more(hurried: Hurried) -> None:
    visits = [hurried.service.enter() for _ in range(2)]
    with pytest.raises(Busy) as busy:
        hurried.service.enter()
    assert busy.value.retry_after_s >= 1
    visits[0].end()
    visits[0].end()
    assert hurried.service.gauges()[1].samples[0].value == 1, "one visit gave up two places"
    hurried.service.enter().end()
    visits[1].end()
    hurried.until_free()
