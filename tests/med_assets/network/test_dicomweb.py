"""DICOMweb by Python's own HTTP: what servers answer that is not what was asked, and where credentials go."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from med_assets.errors import ConfigurationError, RemoteFailed
from med_assets.network.configuration import Node
from med_assets.network.dicomweb import Client, parts

KIND = 'multipart/related; type="application/dicom"; boundary="mark"'


def test_parts_keep_their_bytes_also_those_that_look_like_an_end_of_line() -> None:
    contents = [b"\r\n", b"x--mark", b"a\r\n\r\nb", b""]
    body = b"".join(b"--mark\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in contents)
    assert list(parts(KIND, body + b"--mark--\r\n")) == contents


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, b"--mark\r\nContent-Type: application/dicom\r\n\r\nhalf"),
        (KIND, b""),
        (KIND, b"--mark\r\nno header\r\n--mark--"),
        ("multipart/related", b"--mark--"),
        ("text/html; boundary=mark", b"--mark--"),
    ],
)
def test_an_answer_that_is_cut_or_of_another_kind_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(RemoteFailed):
        list(parts(kind, body))


@contextmanager
def server(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[int, list[str | None]]]:
    """A server that answers all the same; its port, and the header Authorization of each request."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running.server_port, seen
        finally:
            running.shutdown()
            thread.join()


def node(port: int, **more: object) -> Node:
    web = f"http://127.0.0.1:{port}/dicom-web/"
    return Node.model_validate({"ae_title": "PACS", "host": "127.0.0.1", "dicomweb": web, **more})


def test_no_redirect_is_followed_and_no_answer_is_quoted(tmp_path: Path) -> None:
    with server(200, {}, b"[]") as (other, reached):
        with (
            server(302, {"Location": f"http://127.0.0.1:{other}/studies"}, b"secret of a patient") as (port, _),
            pytest.raises(RemoteFailed, match="HTTP 302") as caught,
        ):
            Client(node(port), tmp_path).find("/studies", {})
        assert "secret" not in str(caught.value)
        assert reached == []


def test_what_is_no_dicom_json_is_refused(tmp_path: Path) -> None:
    with server(200, {}, b'{"no": "list"}') as (port, _), pytest.raises(RemoteFailed, match="DICOM JSON"):
        Client(node(port), tmp_path).find("/studies", {})


def test_credentials_come_from_a_file_of_the_owner_and_go_by_https_or_to_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer of-the-tests\n")
    (tmp_path / "token").chmod(0o600)
    with server(200, {}, b"[]") as (port, seen):
        assert Client(node(port, authorization="token"), tmp_path).find("/studies", {}) == []
    assert seen == ["Bearer of-the-tests"]
    with pytest.raises(ConfigurationError, match="https"):
        Client(node(0, authorization="token", dicomweb="http://pacs.invalid/dicom-web"), tmp_path)
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Client(node(port, authorization="token"), tmp_path)


@pytest.mark.parametrize(
    "address", ["https://user:password@pacs/dicom-web", "file:///etc", "https://pacs/dicom-web?x=1"]
)
def test_an_address_with_a_user_a_query_or_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="http"):
        node(0, dicomweb=address)
