"""The process that serves: its address, its token, and its end."""

import ipaddress
import os
import socket
from collections.abc import Mapping

import uvicorn

from med_assets.deidentification.keys import key_weakness
from med_assets.errors import ConfigurationError
from med_assets.serving.app import LOCAL_NAMES, application
from med_assets.serving.service import Limits, Service
from med_assets.settings import SERVE_TOKEN, Workspace

MIN_TOKEN_CHARS = 32

MAX_CONNECTIONS = 256
"""Connections at a time; more get 503 without being read."""


def token_of(host: str, environ: Mapping[str, str] = os.environ) -> str:
    """The token that requests need, empty for none. Raises ConfigurationError where another machine could ask without one."""
    token = environ.get(SERVE_TOKEN, "")
    make = "make one with `python -c 'import secrets; print(secrets.token_hex(32))'`"
    if not token and not is_loopback(host):
        raise ConfigurationError(
            f"expected {SERVE_TOKEN} for an address that other machines reach, got none; {make}, or bind to 127.0.0.1"
        )
    if token and len(token) < MIN_TOKEN_CHARS:
        raise ConfigurationError(
            f"expected {SERVE_TOKEN} with at least {MIN_TOKEN_CHARS} characters, got {len(token)}; {make}"
        )
    if token and (weakness := key_weakness(token)):
        raise ConfigurationError(f"expected {SERVE_TOKEN} to be random, got one that {weakness}; {make}")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, port 0 for any that is free. Raises ConfigurationError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()  # so that who connects before the server runs waits for it
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else type(error).__name__
        raise ConfigurationError(f"expected an address that can be bound, got {host}:{port} ({reason})") from None
    return found


def serve(ws: Workspace, program_name: str, host: str, port: int, limits: Limits) -> None:
    """Answer predictions until a signal ends it; requests that are here are answered first, within `limits.seconds`.

    Raises ConfigurationError.
    """
    token = token_of(host)
    listener = bound(host, port)
    service = Service(ws, program_name, limits)
    config = uvicorn.Config(
        application(service, token, (*LOCAL_NAMES, f"[{host}]" if ":" in host else host)),
        log_config=None,
        access_log=False,  # an address may hold what a client put there
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(limits.seconds),
    )
    address = f"[{host}]" if ":" in host else host
    needs = "a token" if token else "no token"
    print(f"serving {program_name} on http://{address}:{listener.getsockname()[1]} ({needs} needed)", flush=True)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
