"""One bucket and prefix, its client, and what an S3 error means in words.

Endpoint, region and credentials come from the environment alone, never from a file or an instance's role: what runs is what the
environment says. No secret is kept here, and no text of the server's or of boto3's goes into a message, since either may quote one.
"""

import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from threading import Lock
from typing import Any, cast
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from med_assets.errors import ConfigurationError, RemoteFailed

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Variables whose values are never shown, logged or handed to a training."""

ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")

THREADS = 10
"""Transfers at once, the number that boto3 takes too; as many again for parts of large objects."""

ATTEMPTS = 6
"""Tries of one request: with every tenth request failing, one in a million fails all of them."""

BACK_OFF_S, LONGEST_BACK_OFF_S = 1.0, 20.0
"""Pause before a request is sent again once boto3 repeats none: at most this long, doubled each time."""

TIMEOUT_S = 60.0

SMALL_BYTES = 1 << 20
"""Bytes of a body up to which it is sent at once; a larger one waits until the server has seen the headers, and refuses or not."""

MEANING = {
    "NoSuchBucket": "there is no such bucket; correct the name, or make it",
    "NoSuchKey": "there is no such object",
    "AccessDenied": "the credentials are known, but may not do this; ask the owner of the bucket for the permission",
    "InvalidAccessKeyId": "the access key is not known there; set AWS_ACCESS_KEY_ID to one of this endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; set AWS_SECRET_ACCESS_KEY again",
    "ExpiredToken": "the session token has expired; get a new one and set AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is not valid; set AWS_SESSION_TOKEN again, or unset it",
    "RequestTimeTooSkewed": "the clocks of this machine and of the server differ by more than they may; set this machine's clock",
    "PermanentRedirect": "the bucket lies in another region; set AWS_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket lies in another region; set AWS_REGION to it",
    "SlowDown": "the server asks for fewer requests; try again later",
    "ConnectTimeoutError": "the endpoint does not answer in time; is the network or a firewall in between?",
    "ReadTimeoutError": "the server stopped sending; try again later, or raise MED_ASSETS_S3_TIMEOUT_S",
    "EndpointConnectionError": "nothing answers at the endpoint; is S3_ENDPOINT_URL right, and the server running?",
    "ConnectionClosedError": "the server closed the connection; try again later",
    "SSLError": "the endpoint's certificate is not accepted; is it https, and is the name the certificate's?",
    "ProxyConnectionError": "the HTTP proxy does not let the request through",
    "InvalidEndpoint": "S3_ENDPOINT_URL is no URL such as https://s3.example.org",
    "Truncated": "fewer bytes came than were announced, at every try",
    "Corrupt": "the bytes do not match the object's checksum, at every try",
    "Changed": "the object changed while it was read; it is taken as it is now in a later batch",
}  # fmt: skip
ALIKE = {
    "404": "NoSuchKey",
    "403": "AccessDenied",
    "301": "PermanentRedirect",
    "429": "SlowDown",
    "TooManyRequests": "SlowDown",
    "ValueError": "InvalidEndpoint",
    "AllAccessDisabled": "AccessDenied",
    "Forbidden": "AccessDenied",
}
"""A HEAD request has no body that says what went wrong; its status stands for the usual reason."""


class Refused(RemoteFailed):
    """A transfer that came to an end without the right bytes; `code` is one of those in MEANING."""

    def __init__(self, code: str) -> None:
        super().__init__(f"{code}: {MEANING[code]}")
        self.code = code


def code_of(error: BaseException) -> str:
    """Short name of what went wrong: the server's code, or the type of the error."""
    if isinstance(error, Refused):
        return error.code
    reply = getattr(error, "response", None)
    if isinstance(reply, Mapping):
        found = str(reply.get("Error", {}).get("Code") or reply.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        return ALIKE.get(found, found if found.isalnum() else "unknown")
    return ALIKE.get(type(error).__name__, type(error).__name__)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a server refused a request with; None where it did not answer."""
    reply = getattr(error, "response", None)
    return reply.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(reply, Mapping) else None


def explain(error: BaseException) -> str:
    """What went wrong in words, without a name, key or secret."""
    code = code_of(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{code}: {error.strerror}, on this machine"
    status = status_of(error)
    known = MEANING.get(code) or (f"the server answered with status {status}" if status else "the request failed")
    return f"{code}: {known}"


@contextmanager
def in_words(doing: str) -> Iterator[None]:
    """Raise RemoteFailed in place of what boto3 raises. `from None`: a traceback would carry boto3's own text."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        message = f"{doing} failed: {explain(error)}; `med-assets doctor s3` looks at it"
    else:
        return
    raise RemoteFailed(message)


@dataclass(frozen=True)
class Location:
    """A bucket and the prefix under which something lies, without slashes at its ends."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """Key of the object that is called `name` relative to the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def name(self, key: str) -> str:
        """The reverse of `key`."""
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key


def location(text: str, variable: str) -> Location | None:
    """The location that `s3://bucket/prefix` names, None for a path; raises ConfigurationError for another URL."""
    if "://" not in text:
        return None
    url = urlsplit(text)
    if url.scheme != "s3" or not url.hostname or "@" in url.netloc or url.query:
        raise ConfigurationError(
            f"expected {variable} to be a folder or s3://bucket/prefix, got a URL of another form (not shown, it may hold a "
            "secret); credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return Location(url.netloc, url.path.strip("/"))


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """The endpoint, None for AWS itself; raises ConfigurationError when neither it nor a region is given."""
    found = _first(environ, ENDPOINTS)
    if not found and not _first(environ, REGIONS):
        raise ConfigurationError(
            "expected the S3 endpoint in S3_ENDPOINT_URL, such as https://s3.example.org, got none; for AWS itself set AWS_REGION"
        )
    if found:
        url = urlsplit(found)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password:
            raise ConfigurationError(
                "expected S3_ENDPOINT_URL of the form https://host:port without user or password, got another (not shown)"
            )
    return found or None


def missing_credentials(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that must be set and are not."""
    return [name for name in SECRETS[:2] if not environ.get(name)]


VARIABLES = (*SECRETS, *ENDPOINTS, *REGIONS, "AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS", "MED_ASSETS_S3_TIMEOUT_S")
"""All that a client is made of."""


def variables(environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, str], ...]:
    """Those of VARIABLES that are set: where they are the same, so is the client. They hold secrets."""
    return tuple((name, environ[name]) for name in VARIABLES if name in environ)


@cache
def _session() -> Any:
    """One session: it reads the description of S3 once, which takes longer than all else about a client. It has no credentials."""
    import boto3
    import botocore.session

    found = botocore.session.get_session()
    found.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=time_of)
    return boto3.session.Session(botocore_session=found)


def aware_time_of(value: Any) -> datetime:
    """A time with its zone, as botocore's `parse_to_aware_datetime` gives it: that of a time without one is UTC."""
    found = value if isinstance(value, datetime) else time_of(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def time_of(value: Any) -> datetime:
    """A time of an answer as boto3 reads it, one in the two forms of S3 much faster: a listing has a thousand. Raises ValueError for another text."""
    from botocore.utils import parse_timestamp

    with suppress(ValueError, TypeError):
        if str(value).endswith("Z"):
            return datetime.fromisoformat(value)
        if str(value).endswith(" GMT"):
            return parsedate_to_datetime(value)
    return cast(datetime, parse_timestamp(value))


_making = Lock()
"""A session makes one client at a time."""

_clients: WeakValueDictionary[tuple[int, tuple[tuple[str, str], ...], str], Any] = WeakValueDictionary()
"""Clients in use, by process, environment and options: one serves any number of threads, and keeps its connections open."""


def client(environ: Mapping[str, str] = os.environ, **options: Any) -> Any:
    """A boto3 client for S3 as the environment describes it; raises ConfigurationError that says which variable is missing.

    Whoever asks for one like another that is in use gets that one. A forked process makes its own.
    """
    which = os.getpid(), variables(environ), repr(sorted(options.items()))
    with _making:
        if (found := _clients.get(which)) is None:
            found = _clients[which] = _made(environ, options)
    return found


def _send_at_once(request: Any, **_: Any) -> None:
    """Send a small body with its headers: else boto3 asks first whether it may, which is a round trip more."""
    if int(request.headers.get("Content-Length") or 0) <= SMALL_BYTES:
        request.headers.pop("Expect", None)


def _send_again(
    attempts: int,
    response: tuple[Any, Mapping[str, Any]] | None,
    caught_exception: Exception | None,
    most: int,
    **_: Any,
) -> float | None:
    """Seconds until a request is sent again that boto3 would send again, had it not used up its quota; None for any other.

    The quota is for programs that ask a few times. Each repetition of a request takes 14 of 500, and only replies with content give some
    back: of a server that fails one request in ten, those after some three hundred questions for absent objects are not repeated at all.
    """
    from botocore.exceptions import HTTPClientError

    refused = response is not None and "RetryQuotaReached" in response[1].get("ResponseMetadata", {})
    if attempts >= most or not (refused or isinstance(caught_exception, HTTPClientError)):
        return None
    return random.random() * min(BACK_OFF_S * 2 ** (attempts - 1), LONGEST_BACK_OFF_S)


def _made(environ: Mapping[str, str], options: dict[str, Any]) -> Any:
    from botocore.config import Config

    url = endpoint(environ)
    if absent := missing_credentials(environ):
        raise ConfigurationError(
            f"expected credentials for S3 in the environment, got no {' and no '.join(absent)}; they are read from nowhere else"
        )
    # Their debug lines quote signatures, and URLs, in which keys can name patients.
    for talkative in ("boto3", "botocore", "s3transfer", "urllib3"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    timeout_s = float(environ.get("MED_ASSETS_S3_TIMEOUT_S", TIMEOUT_S))
    config: dict[str, Any] = {
        "connect_timeout": min(10.0, timeout_s),
        "read_timeout": timeout_s,
        "max_pool_connections": 2 * THREADS,
        "retries": {
            "mode": environ.get("AWS_RETRY_MODE", "standard"),
            "total_max_attempts": int(environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS)),
        },
        # What these add to each request is not understood by all servers that speak S3; bodies are checked here anyway.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        # The one that boto3 makes, anew for each request and in a tenth of its time, describes this machine: nobody needs that.
        "user_agent": "med-assets",
    }
    config |= options
    try:
        made = _session().client(
            "s3",
            endpoint_url=url,
            config=Config(**config),
            aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=environ.get("AWS_SESSION_TOKEN") or None,
            region_name=_first(environ, REGIONS) or "us-east-1",
        )
    except ValueError:
        reason = explain(ValueError())
    else:
        made.meta.events.register("before-send.s3", _send_at_once)
        again = partial(_send_again, most=config["retries"]["total_max_attempts"])
        made.meta.events.register("needs-retry.s3", again)
        return made
    raise ConfigurationError(reason)
