"""Downloads from a real HTTP server that drops connections, changes its file, wants credentials, or redirects to another server."""

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from med_assets.cli.main import main
from med_assets.errors import ConfigurationError, RemoteFailed
from med_assets.experiments import fetching, policies
from med_assets.experiments.policies import Hosted
from med_assets.storage.downloads import Download, download, sha256_path
from tests.conftest import REPOSITORY

CONTENT = bytes(range(256)) * 4000
"""The published file, 1 MB."""

SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Published:
    """What a server does, and what it was asked."""

    content: bytes = CONTENT
    tag: str | None = '"v1"'
    kind: str = "application/octet-stream"
    framing: str = "length"
    """How an answer says where it ends: its length, chunks, or none."""
    drop_after: list[int] = field(default_factory=list)
    """Bytes of each answer, in order, after which the connection is dropped."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the first answers, which have no file."""
    redirect: str | None = None
    authorization: str | None = None
    requests: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    published: Published

    def do_GET(self) -> None:
        does = self.published
        does.requests.append({"path": self.path, **{name.lower(): text for name, text in self.headers.items()}})
        if does.authorization not in (None, self.headers.get("Authorization")):
            return self._empty(403)
        if does.statuses:
            return self._empty(does.statuses.pop(0))
        if does.redirect:
            self.send_response(302)
            self.send_header("Location", does.redirect)
            self.end_headers()
            return None
        asked = self.headers.get("Range", "")
        whole = not asked or self.headers.get("If-Range") != does.tag
        start = 0 if whole else int(asked.removeprefix("bytes=").rstrip("-"))
        body = does.content[start:]
        self.send_response(200 if whole else 206)
        if does.framing != "none":
            chunks = does.framing == "chunks"
            self.send_header(*(("Transfer-Encoding", "chunked") if chunks else ("Content-Length", str(len(body)))))
        self.send_header("Content-Type", does.kind)
        if does.tag:
            self.send_header("ETag", does.tag)
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{len(does.content) - 1}/{len(does.content)}")
        self.end_headers()
        if does.framing == "chunks":
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        self.wfile.write(body[: does.drop_after.pop(0)] if does.drop_after else body)
        self.close_connection = True
        return None

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    does: Published


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Two servers of this machine."""
    running, found = [], []
    for _ in range(2):
        published = Published()
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"published": published}))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        found.append(Server(f"http://127.0.0.1:{server.server_port}", published))
    yield found
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(servers: list[Server]) -> Server:
    return servers[0]


def get(
    server: Server, path: Path, credentials: Mapping[str, str] | None = None, sha256: str | None = None
) -> Download:
    return download(f"{server.url}/file", path, credentials or {}, "accept it there", sha256, wait=lambda _: None)


def test_a_dropped_connection_is_gone_on_from_and_the_file_is_whole(server: Server, tmp_path: Path) -> None:
    server.does.drop_after = [500_000, 100]
    found = get(server, tmp_path / "a" / "file.bin")
    assert found.path.read_bytes() == CONTENT
    assert (found.sha256, found.size_bytes, found.existed) == (SHA256, len(CONTENT), False)
    assert [each.get("range") for each in server.does.requests] == [None, "bytes=500000-", "bytes=500100-"]
    assert sha256_path(found.path).read_text() == f"{SHA256}  file.bin\n"
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["file.bin", "file.bin.sha256"]


def test_what_a_call_that_ended_left_is_gone_on_from_by_the_next(server: Server, tmp_path: Path) -> None:
    server.does.drop_after = [300_000, 0, 0, 0, 0]
    with pytest.raises(RemoteFailed, match="failed 5 times in a row"):
        get(server, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    assert (tmp_path / "file.bin.part").stat().st_size == 300_000
    found = get(server, tmp_path / "file.bin")
    assert (found.resumed_at, found.path.read_bytes()) == (300_000, CONTENT)


@pytest.mark.parametrize("tag", ['"v2"', None, 'W/"v1"'])
def test_a_file_that_changed_or_says_no_version_is_started_over(
    server: Server, tmp_path: Path, tag: str | None
) -> None:
    server.does.drop_after = [300_000]
    server.does.tag = '"v1"' if tag == '"v2"' else tag
    changing = server.does.content

    def change(_: float) -> None:
        server.does.tag, server.does.content = tag, changing[::-1]

    found = download(f"{server.url}/file", tmp_path / "file.bin", {}, "", wait=change)
    assert found.path.read_bytes() == CONTENT[::-1]


def test_an_answer_in_chunks_that_ends_early_is_not_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    server.does.framing, server.does.drop_after = "chunks", [600_000]
    assert get(server, tmp_path / "file.bin").sha256 == SHA256
    assert len(server.does.requests) == 2


def test_an_answer_that_does_not_say_where_it_ends_is_refused(server: Server, tmp_path: Path) -> None:
    server.does.framing = "none"
    with pytest.raises(ConfigurationError, match="expected the length of the file"):
        get(server, tmp_path / "file.bin")


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.does.statuses = [503, 429]
    assert get(server, tmp_path / "file.bin").sha256 == SHA256


def test_another_file_than_the_published_one_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected file\.bin with SHA-256 0000"):
        get(server, tmp_path / "file.bin", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    assert get(server, tmp_path / "file.bin", sha256=SHA256).sha256 == SHA256


def test_a_file_that_is_there_is_checked_and_not_asked_for(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "file.bin")
    assert get(server, tmp_path / "file.bin").existed
    assert len(server.does.requests) == 1
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(ConfigurationError, match="another file or damaged"):
        get(server, tmp_path / "file.bin")


def test_credentials_go_to_the_first_server_alone(servers: list[Server], tmp_path: Path) -> None:
    first, other = servers
    first.does.authorization, first.does.redirect = "Bearer word", f"{other.url}/elsewhere"
    other.does.drop_after = [1000]
    assert get(first, tmp_path / "file.bin", {"Authorization": "Bearer word"}).sha256 == SHA256
    assert [each.get("range") for each in other.does.requests] == [None, "bytes=1000-"]
    assert not [each for each in other.does.requests if "authorization" in each]


def test_refused_credentials_and_web_pages_say_what_a_person_has_to_do(server: Server, tmp_path: Path) -> None:
    server.does.authorization = "Bearer other"
    with pytest.raises(ConfigurationError, match=r"HTTP 403\): accept it there"):
        get(server, tmp_path / "file.bin")
    server.does.authorization, server.does.kind = None, "text/html; charset=utf-8"
    with pytest.raises(ConfigurationError, match="got a web page"):
        get(server, tmp_path / "file.bin")
    server.does.statuses = [404]
    with pytest.raises(ConfigurationError, match="it may have moved"):
        get(server, tmp_path / "file.bin")


@pytest.mark.parametrize("url", ["http://example.org/file", "file:///etc/passwd", "ftp://127.0.0.1/file"])
def test_an_address_that_is_not_secure_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected an https address"):
        download(url, tmp_path / "file.bin", {}, "")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_checkpoint_of_kaggle_is_fetched_with_the_users_credentials(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
    assert main(["fetch", "lumbar_mr", "point_net"]) == 1
    message = capsys.readouterr().err
    assert "KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY" in message
    assert "https://www.kaggle.com/datasets/hengck23/rsna2024-demo-workflow" in message
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "word")
    server.does.drop_after = [400_000]
    server.does.authorization = "Basic " + base64.b64encode(b"someone:word").decode()
    monkeypatch.setattr("med_assets.storage.downloads.FIRST_WAIT_S", 0.01)
    assert main(["fetch", "lumbar_mr", "point_net"]) == 0
    assert f"SHA-256 {SHA256}" in capsys.readouterr().out
    assert (home / "weights/point_net/00002484.pth").read_bytes() == CONTENT
    assert {each["path"] for each in server.does.requests} == {
        "/api/v1/datasets/download/hengck23/rsna2024-demo-workflow/00002484.pth"
    }
    assert main(["fetch", "lumbar_mr"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == ["point_net", "rsna2024"]
    assert "there" in listed[1]
    assert SHA256 in listed[1]


def test_the_competition_data_and_the_weights_of_hugging_face_have_their_places(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "word")
    name = "rsna-2024-lumbar-spine-degenerative-classification"
    assert main(["fetch", "lumbar_mr", "rsna2024"]) == 0
    assert main(["fetch", "lung_ct", "vista3d132"]) == 0
    assert (home / f"downloads/lumbar_mr/{name}.zip").is_file()
    assert (home / "weights/vista3d/model.pt").is_file()
    assert [(each["path"], each.get("authorization")) for each in server.does.requests] == [
        (f"/api/v1/competitions/data/download-all/{name}", "Bearer word"),
        ("/nvidia/NV-Segment-CT/resolve/main/vista3d_pretrained_model/model.pt", None),
    ]


def test_a_file_that_no_command_can_get_says_who_has_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "retinal_oct", "multi_domain"]) == 1
    assert "get it from the authors of 3d-oct-foundation-model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "repository", "file"),
    [
        ("kaggle_dataset", "no-owner", "a"),
        ("kaggle_competition", "owner/name", None),
        ("hugging_face", "owner/name", None),
        ("hugging_face", "owner/name", "../secret"),
        ("kaggle_dataset", "owner/..", None),
    ],
)
def test_a_place_that_does_not_fit_its_host_is_refused(host: str, repository: str, file: str | None) -> None:
    with pytest.raises(ValueError, match=r"expected|String should match"):
        Hosted.model_validate({"host": host, "repository": repository, "file": file})


def test_the_usual_addresses_are_those_of_the_hosts() -> None:
    hosted = Hosted(host="kaggle_dataset", repository="hengck23/rsna2024-demo-workflow", file="00002484.pth")
    assert fetching.address(hosted, {}).startswith("https://www.kaggle.com/api/v1/datasets/download/hengck23/")


def test_the_page_of_sources_links_what_is_fetched_and_names_the_authors() -> None:
    text = (REPOSITORY / "docs" / "lumbar-data.md").read_text()
    named = policies.of("lumbar_mr")
    pages = [fetching.page(each.hosted) for each in (*named.released.values(), *named.data.values()) if each.hosted]
    assert len(pages) == 2
    # The notebook is read by people alone.
    links = [*(page.removesuffix("/rules") for page in pages), "https://www.kaggle.com/code/yujiariyasu/"]
    assert [link for link in links if f"({link}" not in text] == []
    assert [name for name in ("hengck23", "Yuji Ariyasu", "Ian Pan", "RSNA") if name not in text] == []
