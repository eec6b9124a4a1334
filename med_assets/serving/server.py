"""The process that serves: its address, its token, and its end."""

import os
from collections.abc import Mapping

from med_assets.deidentification.keys import key_weakness
from med_assets.errors import ConfigurationError
from med_assets.serving.app import application
from med_assets.serving.binding import bound, bracketed, checked_port, is_loopback, names_of, run
from med_assets.serving.service import Limits, Service
from med_assets.settings import SERVE_TOKEN, Workspace

MIN_TOKEN_CHARS = 32


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


def serve(ws: Workspace, program_name: str, host: str, port: int, limits: Limits) -> None:
    """Answer predictions until a signal ends it; requests that are here are answered first, within `limits.seconds`.

    Raises ConfigurationError.
    """
    token = token_of(host)
    listener = bound(host, checked_port(port))
    service = Service(ws, program_name, limits)
    needs = "a token" if token else "no token"
    print(
        f"serving {program_name} on http://{bracketed(host)}:{listener.getsockname()[1]} ({needs} needed)", flush=True
    )
    run(application(service, token, names_of(host)), listener, int(limits.seconds))
