"""An HTTP proxy in front of an S3 endpoint that fails as networks and servers do, the same way in every run.

Whether a request fails depends on the seed, on what is asked for, and on how often it was asked before: not on the order in
which threads ask.
"""

import hashlib
import http.client
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'


@dataclass
class Faults:
    """What goes wrong: shares of requests, keys that are missing, and an answer that all requests get."""

    seed: int = 0
    failing: float = 0.0
    truncated: float = 0.0
    hanging: float = 0.0
    corrupt: float = 0.0
    lost: float = 0.0
    """Requests that the server answers, and whose reply does not come."""
    hang_s: float = 2.0
    missing: set[str] = field(default_factory=set)
    always: tuple[int, str] | None = None
    always_after: int = 0
    """How many GETs of objects are answered before that."""
    read_only: bool = False
    shifted_date: str | None = None
    message: str = "made by a test"
    lies_about_length: bool = False
    ignored_headers: set[str] = field(default_factory=set)
    """Headers of requests that do not get to the server, as on one that does not know them."""
    seen: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    bodies: list[tuple[str, int]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def choose(self, request: str) -> str:
        """Name of the fault of this try, or "" for none."""
        with self.lock:
            self.seen[request] += 1
            text = f"{self.seed} {request} {self.seen[request]}"
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
        for name in ("failing", "truncated", "hanging", "corrupt", "lost"):
            if point < (share := getattr(self, name)):
                return name
            point -= share
        return ""

    def count(self, what: str) -> int:
        """Remember that this happened; returns how often by now."""
        with self.lock:
            self.done[what] += 1
            return self.done[what]


def _handler(upstream: str, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def _error(self, status: int, code: str) -> None:
            body = ERROR.format(code=code, message=faults.message).encode()
            self.send_response_only(status)
            if faults.shifted_date:
                self.send_header("Date", faults.shifted_date)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _all(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(length)
            path = urlsplit(self.path)
            key = unquote(path.path).lstrip("/").partition("/")[2]
            fault = faults.choose(
                f"{self.command} {key} {path.query} {self.headers.get('Range', '')}"
            )  # buckets bear random names
            faults.count(fault or "good")
            number = faults.count(f"{self.command} object" if key else f"{self.command} bucket")
            if faults.always and not (key and number <= faults.always_after):
                self._error(*faults.always)
            elif faults.read_only and self.command in ("PUT", "POST", "DELETE"):
                self._error(403, "AccessDenied")
            elif key in faults.missing and self.command in ("GET", "HEAD"):
                self._error(404, "NoSuchKey")
            elif fault == "failing":
                self._error(503, "SlowDown") if faults.seen.total() % 2 else self._error(500, "InternalError")
            else:
                self._forward(content, key, fault)

        def _forward(self, content: bytes, key: str, fault: str) -> None:
            if fault == "hanging":
                time.sleep(faults.hang_s)
            connection = http.client.HTTPConnection(upstream)
            headers = {name: value for name, value in self.headers.items() if name not in faults.ignored_headers}
            connection.request(self.command, self.path, content, headers)
            reply = connection.getresponse()
            body = reply.read()
            connection.close()
            if fault == "lost":
                self._error(500, "InternalError")
                return
            is_body = self.command == "GET" and key and reply.status in (200, 206)
            if is_body:
                with faults.lock:
                    faults.bodies.append((key, len(body)))
            announced = len(body)
            if is_body and body and fault == "truncated":
                body = body[: len(body) // 2]
                announced = len(body) if faults.lies_about_length else announced
            if is_body and body and fault == "corrupt":
                body = bytes([body[0] ^ 1]) + body[1:]
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                    self.send_header(name, value)
            self.send_header("Date", faults.shifted_date or reply.getheader("Date") or "")
            self.send_header(
                "Content-Length", reply.getheader("Content-Length") or "0" if self.command == "HEAD" else str(announced)
            )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if announced != len(body):
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _all

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is no news."""


@contextmanager
def proxy(upstream_url: str, faults: Faults) -> Iterator[str]:
    """URL of a proxy in front of an endpoint."""
    server = _Server(("127.0.0.1", 0), _handler(urlsplit(upstream_url).netloc, faults))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
