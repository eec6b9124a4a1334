"""An S3 endpoint on this machine, for the demo, the tests and the benchmarks: `python -m med_assets.storage.s3.local --help`.

It is moto's server, a development dependency that `make setup` installs; it keeps everything in memory and forgets it at its end.
moto looks at the condition of a write (If-None-Match, If-Match) and writes in two steps, between which another thread may write; here
writes are one after the other, so that of several writers one is the first, as on Amazon S3.
"""

import argparse
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.bucket import Location

PUBLIC = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local-and-no-secret", "AWS_REGION": "us-east-1"}
"""Credentials of the local endpoint, which accepts any."""

STOP_POLL_S = 0.05
"""Time between two looks of the server whether it is to stop, s."""


@contextmanager
def endpoint(port: int = 0) -> Iterator[dict[str, str]]:
    """Serve S3 on this machine alone; yields the variables that name it. Raises ConfigurationError without moto."""
    try:
        from moto.core import serialize
        from moto.server import create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server
    except ImportError as error:
        raise ConfigurationError(f"a local S3 endpoint needs moto ({error}); install it with `make setup`") from error
    application = _one_write_at_a_time(create_backend_app("s3"))
    # moto keeps times as text and parses them again for each listing, which was half of what one cost.
    serialize.parse_to_aware_datetime = bucket.aware_time_of

    class Handler(WSGIRequestHandler):
        """Requests of a connection one after the other, each with its answer in one piece; werkzeug closes it after the first."""

        disable_nagle_algorithm = True  # else the rest of a large answer waits 40 ms for an acknowledgement
        wbufsize = -1

        def run_wsgi(self) -> None:
            environ = self.make_environ()
            # All of it, also where nobody looks at it: the next request begins after it. A slow client keeps nobody waiting.
            environ["wsgi.input"] = io.BytesIO(self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0)))
            status, headers = "", list[tuple[str, str]]()

            def start_response(line: str, fields: list[tuple[str, str]], _: Any = None) -> None:
                nonlocal status, headers
                status, headers = line, fields

            body = b"".join(application(environ, start_response))
            code, _, phrase = status.partition(" ")
            self.send_response(int(code), phrase)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD" and "content-length" not in {name.casefold() for name, _ in headers}:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_expect_100(self) -> bool:
            goes_on = super().handle_expect_100()
            self.wfile.flush()
            return goes_on

        def log_request(self, code: object = "", size: object = "") -> None:
            """Nothing: a line has a key."""

    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,), daemon=True)
    thread.start()
    try:
        yield {"S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"} | PUBLIC
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _one_write_at_a_time(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """A WSGI application whose requests that change something are answered one after the other."""
    writing = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        with writing:
            return list(application(environ, start_response))

    return serve


def upload(folder: Path, location: Location, client: Any) -> int:
    """Make the bucket unless it is there, and put all files of a folder below the prefix; returns how many."""
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # as servers answer in most regions
        client.create_bucket(Bucket=location.bucket)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        client.upload_file(str(path), location.bucket, location.key(path.relative_to(folder).as_posix()))
    return len(files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, upload, and run a command until it ends, or wait to be interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m med_assets.storage.s3.local",
        description="Serve S3 on this machine, from memory, while a command runs with the environment that names it.",
    )
    parser.add_argument("--port", type=int, default=0, help="port (default: any that is free)")
    parser.add_argument("--bucket", default="demo", help="bucket to make (default demo)")
    parser.add_argument("--prefix", default="landing", help="prefix for the uploads (default landing)")
    parser.add_argument("--upload", type=Path, metavar="FOLDER", help="folder whose files are put below the prefix")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="what to run, after --; without it, until Ctrl-C")
    options = parser.parse_args(arguments)
    location = Location(options.bucket, options.prefix.strip("/"))
    try:
        with endpoint(options.port) as variables:
            client = bucket.client({**os.environ, **variables})
            number = upload(options.upload or Path(os.devnull), location, client)
            print(
                f"serving {location} at {variables['S3_ENDPOINT_URL']}, {number} objects", file=sys.stderr, flush=True
            )
            if options.command:
                environ = {**os.environ, **variables}
                environ.setdefault("MED_ASSETS_LANDING", str(location))
                return subprocess.run(options.command, env=environ, check=False).returncode
            for name, value in variables.items():
                print(f"export {name}={value}", flush=True)
            threading.Event().wait()
    except MedAssetsError as error:
        sys.exit(f"local S3: {error}")
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
