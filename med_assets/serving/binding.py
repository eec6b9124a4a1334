"""What the servers share: the address they bind to, the names that requests may be addressed to, and the process that runs them."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Collection

import uvicorn

from med_assets.errors import ConfigurationError

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that a request may be addressed to where no secret is needed: a page of a browser can't pass as one."""

MAX_CONNECTIONS = 256
"""Connections at a time; more get 503 without being read."""

MAX_PORT = (1 << 16) - 1


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def checked_port(port: int) -> int:
    """The port as it is, 0 for any that is free. Raises ConfigurationError."""
    if not 0 <= port <= MAX_PORT:
        raise ConfigurationError(f"expected --port from 0 to {MAX_PORT}, got {port}")
    return port


def bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def names_of(host: str) -> tuple[str, ...]:
    """The names that a request to this machine may be addressed to."""
    return (*LOCAL_NAMES, bracketed(host))


def is_addressed_to(names: Collection[str], host_header: str) -> bool:
    """Whether the Host header of a request is one of these names, with or without a port."""
    has_port = not host_header.endswith("]") and ":" in host_header
    return (host_header.rpartition(":")[0] if has_port else host_header) in names


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


TURN_S = 0.5
"""Seconds between two looks of an idle server whether it is to end. uvicorn looks ten times a second, which was all that an idle server did."""


class _Server(uvicorn.Server):
    async def main_loop(self) -> None:
        """What uvicorn does ten times a second, less often; its counter is of tenths of seconds."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + round(10 * TURN_S)) % 864_000
            await asyncio.sleep(TURN_S)


def run(application: Callable[..., Awaitable[None]], listener: socket.socket, graceful_s: int) -> None:
    """Answer requests until a signal ends it; those that are here are answered first, within `graceful_s`."""
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,  # an address may hold what a client put there
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=graceful_s,
    )
    with listener:
        _Server(config).run(sockets=[listener])
