"""`med-assets serve` over real HTTP: a process of its own on a free port, with an untrained champion."""

import http.client
import io
import json
import os
import re
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image

from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.serving.server import token_of
from med_assets.settings import SERVE_TOKEN, Settings, Workspace
from med_assets.storage import preloaded
from tests.cases.test_to_predict import champion, files_of, phantoms, strip
from tests.conftest import settings_of

PROGRAM = "breast_us"
PATIENCE_S = 120.0
TOKEN = "d41f8c0b9a2e47f6b3c5918e7d60a4f2"
SECRET_NAME = "Phantom^Unmistakable"


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def unpacked(self, folder: Path) -> Path:
        with zipfile.ZipFile(io.BytesIO(self.body)) as archive:
            archive.extractall(folder)
        return folder


@dataclass(frozen=True)
class Server:
    """A running server: its port, its home, and the file with what it logged."""

    port: int
    ws: Workspace
    log: Path
    process: preloaded.Process

    def ask(self, path: str, body: Any = None, **headers: str) -> Reply:
        """POST a body, or GET without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request("POST" if body is not None else "GET", path, body, named)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def wait(self, path: str, status: int) -> Reply:
        """Ask until the answer has a status."""
        end = time.monotonic() + PATIENCE_S
        while (reply := self.ask(path)).status != status:
            assert time.monotonic() < end, f"{path}: {reply.status} {reply.body!r}"
            time.sleep(0.1)
        return reply

    def samples(self, **headers: str) -> dict[str, float]:
        """The samples of /metrics by name with labels; every line has the form of Prometheus' text format."""
        found = {}
        for line in self.ask("/metrics", **headers).body.decode().splitlines():
            if line.startswith("#"):
                assert re.fullmatch(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge|histogram))", line)
                continue
            sample = re.fullmatch(r'([a-z_]+(?:\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})?) (\S+)', line)
            assert sample, line
            found[sample[1].removeprefix("med_assets_serve_")] = float(sample[2])
        return found


@contextmanager
def serving(home: Path, *arguments: str, **more: str) -> Iterator[Server]:
    """Run a server on a free port in a home."""
    settings = settings_of(home)
    inherited = {name: value for name, value in os.environ.items() if name not in ("MED_ASSETS_HOME", SERVE_TOKEN)}
    log = home.parent / "serve.log"
    command = [sys.executable, "-m", "med_assets.cli", "serve", PROGRAM, "--port", "0", *arguments]
    printed, written = os.pipe()
    with log.open("w") as stream:
        process = preloaded.start(command, {**inherited, **settings, **more}, written, stream.fileno(), tied=True)
    os.close(written)
    with open(printed) as output:
        try:
            line = output.readline()
            port = re.search(r":(\d+) ", line)
            assert port, line + log.read_text()
            yield Server(int(port[1]), Workspace.from_env(settings), log, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an untrained champion."""
    folder = tmp_path_factory.mktemp("serving")
    champion(Workspace.from_env(settings_of(folder / "home")), PROGRAM)
    return folder / "home"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    """A server that takes one upload of at most 3 MB at a time."""
    with serving(home, "--waiting", "0", "--max-mb", "3") as found:
        found.wait("/ready", 200)
        yield found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a case without label, whose patient has a name."""
    (found,) = phantoms(tmp_path_factory.mktemp("cases"), PROGRAM, 1, 5)
    for path in files_of(strip(found, PROGRAM)):
        ds = pydicom.dcmread(path)
        ds.PatientName = SECRET_NAME
        ds.save_as(path)
    return found


def packed(folder: Path) -> bytes:
    """A zip of a case."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in files_of(folder):
            archive.write(path, f"{SECRET_NAME}/{path.name}")
    return content.getvalue()


def kept(ws: Settings) -> set[Path]:
    """All files of a home that hold anything."""
    return {path for path in ws.home.rglob("*") if path.is_file() and path.stat().st_size}


def test_an_archive_is_answered_as_the_folder_is_and_nothing_of_it_is_kept_or_logged(
    server: Server, case: Path, tmp_path: Path
) -> None:
    before, counted = kept(server.ws), server.samples()
    reply = server.ask("/predict", packed(case))
    assert reply.status == 200, reply.body
    result = json.loads((reply.unpacked(tmp_path / "served") / "result.json").read_text())
    (row,) = result["cases"]
    (outcome,) = stages.predict_folder(server.ws, PROGRAM, case, None, tmp_path / "out")
    assert (row["case"], row["status"], row["reason"]) == (outcome.case_id, "predicted", "")
    assert row["measured"] == pytest.approx(dict(outcome.measured))
    assert row["measured"], "no size and no confidence"
    assert row["files"]
    for name in row["files"]:
        ours, theirs = tmp_path / "served" / name, tmp_path / "out" / name
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert reply.headers["med-assets-checkpoint"] == result["checkpoint"]
    assert server.ws.store.has(result["checkpoint"])
    assert kept(server.ws) - before == set()
    assert not list((server.ws.home / "tmp").glob("scratch-*/upload-*"))
    assert SECRET_NAME not in server.log.read_text()
    patient = pydicom.dcmread(files_of(case)[0]).PatientID
    assert patient not in server.log.read_text()
    now = server.samples()
    assert now['cases_total{status="predicted"}'] == counted.get('cases_total{status="predicted"}', 0) + 1
    assert now["prediction_seconds_count"] == counted["prediction_seconds_count"] + 1
    assert (now["ready"], now["places"], now["places_taken"]) == (1, 1, 0)
    assert f'model_info{{program="{PROGRAM}",experiment="tinyusfm",checkpoint="{result["checkpoint"]}"}}' in now


def test_one_dicom_file_or_a_picture_is_answered_and_json_alone_where_that_is_asked_for(
    server: Server, case: Path
) -> None:
    (path,) = files_of(case)
    of_file = server.ask("/predict", path.read_bytes(), accept="application/json")
    assert of_file.status == 200
    content = io.BytesIO()
    Image.fromarray(pydicom.dcmread(path).pixel_array).save(content, "PNG")
    of_picture = server.ask("/predict", content.getvalue(), accept="application/json")
    assert of_picture.status == 200, of_picture.body
    (one,), (other,) = of_file.json["cases"], of_picture.json["cases"]
    assert one["case"] != other["case"]
    assert [name.split("/")[1] for name in one["files"]] == [name.split("/")[1] for name in other["files"]]
    with_pictures = server.ask("/predict?pictures=true", path.read_bytes(), accept="application/json")
    assert len(with_pictures.json["cases"][0]["files"]) > len(one["files"])


def test_what_is_no_case_is_refused_with_its_reason(server: Server) -> None:
    reply = server.ask("/predict", b"no image at all")
    assert reply.status == 422
    (row,) = reply.json["cases"]
    assert (row["status"], row["files"]) == ("refused", [])
    assert "DICOM" in row["reason"]
    assert server.ask("/predict", b"").status == 400
    assert server.ask("/predict", b"x", content_encoding="gzip").status == 415
    assert server.samples()["places_taken"] == 0


def test_an_upload_beyond_the_bound_is_refused_however_it_is_sent(server: Server) -> None:
    large = bytes(4_000_000)
    with suppress_reset():
        assert server.ask("/predict", large).status == 413
    with suppress_reset():
        assert server.ask("/predict", iter([large[:2_000_000]] * 2)).status == 413
    assert server.samples()["places_taken"] == 0
    assert server.samples()['answers_total{status="413"}'] >= 2


@contextmanager
def suppress_reset() -> Iterator[None]:
    """A server that refuses a body closes the connection; a client that still sends may see that alone."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        return


def test_a_full_queue_says_when_to_come_again_and_a_client_that_goes_frees_its_place(
    server: Server, case: Path
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nDICM")
        end = time.monotonic() + PATIENCE_S
        while server.samples()["places_taken"] == 0:
            assert time.monotonic() < end
        reply = server.ask("/predict", packed(case))
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
    while server.samples()["places_taken"] == 1:
        assert time.monotonic() < end
    assert server.ask("/predict", packed(case)).status == 200


def test_without_a_token_only_requests_to_this_machine_are_answered(server: Server) -> None:
    assert server.ask("/metrics", host="clinic.example").status == 421
    assert server.ask("/health", host=f"localhost:{server.port}").status == 200


def test_a_champion_is_served_as_soon_as_there_is_one_and_another_when_it_changes(tmp_path: Path, case: Path) -> None:
    ws, bearer = Workspace.from_env(settings_of(tmp_path / "home")), {"authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path / "home", **{SERVE_TOKEN: TOKEN}) as found:
        assert found.ask("/health").status == 200
        end = time.monotonic() + PATIENCE_S
        while "no champion yet" not in found.ask("/ready").body.decode():
            assert time.monotonic() < end
            time.sleep(0.1)
        assert found.ask("/predict", packed(case)).status == 401
        assert found.ask("/metrics", authorization=f"Bearer {TOKEN[:-1]}0").status == 401
        assert found.ask("/predict", packed(case), **bearer).status == 503
        checkpoints = []
        for seed in (0, 1):
            checkpoints.append(champion(ws, PROGRAM, seed))
            found.wait("/ready", 200)
            reply = found.ask("/predict", packed(case), accept="application/json", **bearer)
            assert (reply.status, reply.headers["med-assets-checkpoint"]) == (200, checkpoints[-1])
            assert reply.json["checkpoint"] == checkpoints[-1]
        assert found.samples(**bearer)["model_loads_total"] == 2
        (ws.store.fetch(checkpoints[0]) / "weights.pt").chmod(0o600)
        (ws.store.fetch(checkpoints[0]) / "weights.pt").write_bytes(b"damaged")
        rows = ws.lake.rows("champions", PROGRAM)
        ws.lake.write("champions", PROGRAM, [*rows, {**rows[0], "action": "rolled back"}])
        refused = found.ask("/predict", packed(case), **bearer)
        assert refused.status == 503, "another model than the champion answered"
        assert checkpoints[0] in refused.json["error"]
        assert TOKEN not in found.log.read_text()
    assert found.process.returncode in (0, 143)
    assert not list((tmp_path / "home" / "tmp").glob("scratch-*/upload-*"))


def test_an_address_that_others_reach_needs_a_token_that_can_not_be_guessed() -> None:
    assert token_of("127.0.0.1", {}) == token_of("::1", {}) == token_of("localhost", {}) == ""
    assert token_of("0.0.0.0", {SERVE_TOKEN: TOKEN}) == TOKEN
    for host, token in (("0.0.0.0", ""), ("clinic.example", ""), ("127.0.0.1", "short"), ("::", "password" * 5)):
        with pytest.raises(ConfigurationError, match=SERVE_TOKEN):
            token_of(host, {SERVE_TOKEN: token} if token else {})
