"""An HTTP proxy in front of an S3 endpoint that fails as networks and servers do, the same way in every run.

Whether a request fails depends on the seed, on what is asked for, and on how often it was asked before: not on the order in
which threads ask. Only a listing that lags and a limit of requests per second depend on the time.

`python -m tests.med_assets.s3.faults --help` serves a bucket behind such a proxy, for machines that are processes of their own.
"""

import argparse
import hashlib
import http.client
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

from tests.med_assets.s3.lagging import Lag, Listed

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
    """Requests that the server carries out, and answers as if it had not."""
    closing: float = 0.0
    """Requests that the server carries out, and whose connection closes without a reply."""
    lag_s: float = 0.0
    """A listing shows what was there so long ago."""
    rate_per_s: float = 0.0
    """Requests per second beyond which the server asks for fewer, with 503 SlowDown and with 429; 0 for any number."""
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
    _allowed: float | None = None
    _allowed_at: float = 0.0
    _lag: Lag | None = None

    @property
    def lag(self) -> Lag | None:
        """What listings do not show yet; None where they show all."""
        with self.lock:
            if self.lag_s and self._lag is None:
                self._lag = Lag(self.lag_s)
            if self._lag is not None:
                self._lag.lag_s = self.lag_s
            return self._lag if self.lag_s else None

    def too_many(self) -> bool:
        """Whether this request is one too many, of a bucket of tokens that holds those of a second."""
        with self.lock:
            now = time.monotonic()
            allowed = self.rate_per_s if self._allowed is None else self._allowed
            allowed = min(self.rate_per_s, allowed + (now - self._allowed_at) * self.rate_per_s)
            self._allowed_at, too_many = now, allowed < 1
            self._allowed = allowed - (not too_many)
            return too_many

    def choose(self, request: str) -> str:
        """Name of the fault of this try, or "" for none."""
        with self.lock:
            self.seen[request] += 1
            text = f"{self.seed} {request} {self.seen[request]}"
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
        for name in ("failing", "truncated", "hanging", "corrupt", "lost", "closing"):
            if point < (share := getattr(self, name)):
                return name
            point -= share
        return ""

    def count(self, what: str) -> int:
        """Remember that this happened; returns how often by now."""
        with self.lock:
            self.done[what] += 1
            return self.done[what]


def changes(method: str, query: str) -> bool:
    """Whether a request about an object writes or deletes it; the parts of a large one do not until they are put together."""
    parameters = parse_qs(query, keep_blank_values=True)
    if method in ("PUT", "DELETE"):
        return "uploadId" not in parameters
    return method == "POST" and "uploadId" in parameters


def _handler(upstream: str, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # headers and body are sent apart: else a body waits 40 ms for an acknowledgement
        )

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
            self.bucket, _, key = unquote(path.path).lstrip("/").partition("/")
            if faults.rate_per_s and faults.too_many():
                self._error(503, "SlowDown") if faults.count("throttled") % 2 else self._error(429, "TooManyRequests")
                return
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
            headers = {name: value for name, value in self.headers.items() if name not in faults.ignored_headers}
            lag = faults.lag if key and changes(self.command, urlsplit(self.path).query) else None
            before = self._listed() if lag else None
            reply, body = self._ask(self.command, self.path, content, headers)
            if lag and reply.status < 300:
                lag.changed(self.bucket, key, before)
            if fault == "closing":
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault == "lost":
                self._error(500, "InternalError")
                return
            if self.command == "GET" and not key and reply.status == 200 and (lag := faults.lag):
                body, late = lag.listing(self.bucket, urlsplit(self.path).query, body)
                faults.count("late listings" if late else "listings")
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

        def _ask(
            self, method: str, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None
        ) -> tuple[http.client.HTTPResponse, bytes]:
            """The server's reply, by the connection that belongs to the client's."""
            if not hasattr(self, "upstream"):
                self.upstream = http.client.HTTPConnection(upstream)
            self.upstream.request(method, path, content, dict(headers or {}))
            reply = self.upstream.getresponse()
            return reply, reply.read()

        def finish(self) -> None:
            super().finish()
            if hasattr(self, "upstream"):
                self.upstream.close()

        def _listed(self) -> Listed | None:
            """How a listing shows the object that the request is about."""
            signed = {name: self.headers[name] for name in ("Host", "Authorization") if name in self.headers}
            reply, _ = self._ask("HEAD", urlsplit(self.path).path, headers=signed)
            if reply.status != 200:
                return None
            modified = parsedate_to_datetime(reply.headers["Last-Modified"]).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            return Listed(reply.headers["ETag"], int(reply.headers["Content-Length"]), modified)

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


SHARES = ("failing", "truncated", "hanging", "corrupt", "lost", "closing")
"""Faults whose share of requests can be given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve an endpoint without faults and one with them until interrupted; a line of JSON names both."""
    from med_assets.storage.s3 import bucket
    from tests import s3_servers

    parser = argparse.ArgumentParser(
        prog="python -m tests.med_assets.s3.faults",
        description="Serve S3 behind a proxy that fails as it is asked to, until the standard input ends.",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses which requests fail")
    for name in SHARES:
        parser.add_argument(f"--{name}", type=float, default=0.0, help=f"share of requests that are {name}")
    parser.add_argument("--lag-s", type=float, default=0.0, help="a listing shows what was there so long ago")
    parser.add_argument("--rate-per-s", type=float, default=0.0, help="requests beyond which fewer are asked for")
    parser.add_argument("--bucket", default="site-bucket", help="bucket to make")
    options = parser.parse_args(arguments)
    faults = Faults(
        seed=options.seed,
        lag_s=options.lag_s,
        rate_per_s=options.rate_per_s,
        **{name: getattr(options, name) for name in SHARES},
    )
    with ExitStack() as stack:
        good = stack.enter_context(s3_servers.endpoint())
        bad = stack.enter_context(proxy(good["S3_ENDPOINT_URL"], faults))
        bucket.client(good).create_bucket(Bucket=options.bucket)
        print(json.dumps({"good": good["S3_ENDPOINT_URL"], "bad": bad, "bucket": options.bucket}), flush=True)
        for _ in sys.stdin:  # a line asks for the counts
            print(json.dumps(dict(faults.done)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
