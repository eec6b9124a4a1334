"""The S3 server of this machine, as any HTTP client sees it."""

from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit


def test_a_connection_is_kept_for_the_next_request_whatever_the_last_one_was(
    endpoint: str, good: Any, name: str
) -> None:
    connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    sockets = set()
    for method, key, sent, status, expected in (
        ("PUT", "key", b"content", 200, b""),
        ("HEAD", "key", None, 200, b""),
        ("GET", "key", b"a body that nobody reads", 200, b"content"),
        ("HEAD", "absent", None, 404, b""),
        ("DELETE", "key", None, 204, b""),
        ("HEAD", "key", None, 404, b""),
    ):
        url = good.generate_presigned_url(f"{method.lower()}_object", {"Bucket": name, "Key": key})
        connection.request(method, url.removeprefix(endpoint), sent)
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (status, expected)
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1
    assert None not in sockets
