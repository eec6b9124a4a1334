"""The process of the review page: its address, who may use it, and its end."""

from med_assets.deidentification.audit_trail import person
from med_assets.review.access import Access, access_of
from med_assets.review.app import application
from med_assets.serving.binding import bound, bracketed, checked_port, names_of, run
from med_assets.settings import Workspace

GRACEFUL_S = 10
"""Seconds that requests which are here have when the server ends."""


def review(ws: Workspace, host: str, port: int, reader: str | None) -> None:
    """Show the review page of a home until a signal ends it. Raises ConfigurationError."""
    access = access_of(ws, host, reader or person())
    listener = bound(host, checked_port(port))
    print(f"review on http://{bracketed(host)}:{listener.getsockname()[1]} ({_readers(access)})", flush=True)
    run(application(ws, access, names_of(host)), listener, GRACEFUL_S)


def _readers(access: Access) -> str:
    """How readers are known, for people."""
    if access.proxies is not None:
        return f"readers are named by the header {access.proxies.header}"
    if access.logins is not None:
        return f"{len(access.logins)} readers log in"
    return f"this machine alone, as {access.reader}"
