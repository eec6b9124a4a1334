"""What all pages of the review share: templates, the reader of a request, forms, and answers for people."""

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.review.access import Access, Session, Sessions
from med_assets.review.datasets import Datasets
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.escaping import visible

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_FORM_BYTES, MAX_FIELDS = 64 << 10, 100
"""Largest form, and the most fields of one: a comment of a page of text fits. Uploads are read by their own routes."""


@dataclass(frozen=True)
class Site:
    """The review page of a home: what its routes work on."""

    ws: Settings
    access: Access
    sessions: Sessions = field(default_factory=Sessions)
    datasets: Datasets = field(init=False)
    decided: Counter[str] = field(default_factory=Counter)
    """Decisions of each program that this process recorded."""
    closers: list[Callable[[], None]] = field(default_factory=list)
    """What routes want to be called when the server ends."""
    assets_version: str = field(default_factory=lambda: secrets.token_hex(4))
    """Part of the addresses of scripts and styles, so that a browser fetches those of this process."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasets", Datasets(self.ws))

    @cached_property
    def templates(self) -> "Environment":
        """Templates that escape all they show."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("med_assets.review", "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, finalize=_shown,
        )  # fmt: skip
        environment.globals |= {"static": lambda path: f"/static/{path}?v={self.assets_version}", "case_url": case_url}
        return environment

    def page(
        self,
        request: Request,
        template: str,
        status: int = 200,
        *,
        more: Mapping[str, object] | None = None,
        **shown: object,
    ) -> HTMLResponse:
        """A template with what it shows, `more` of it by name, the reader, and the token of the session."""
        session = session_of(request)
        context = {
            "reader": session.reader,
            "token": session.token,
            "access": self.access,
            "programs": program.registered(),
        }
        return HTMLResponse(self.templates.get_template(template).render({**context, **shown, **(more or {})}), status)

    def catalog(self, request: Request) -> Catalog:
        """The catalog of the program that the path of a request names. Raises HTTPException for one that there is not."""
        name = str(request.path_params["program"])
        if not names.PROGRAM.fits(name) or name not in program.registered():
            raise HTTPException(404, "there is no such program")
        return Catalog(self.ws, name)


def case_of(request: Request) -> str:
    """The case id in the path of a request, which need not be known. Raises HTTPException for what can be none."""
    case_id = str(request.path_params["case"])
    if not names.CASE.fits(case_id):
        raise HTTPException(404, "there is no such case")
    return case_id


def case_url(program_name: str, case_id: str) -> str:
    """The address of the page of a case."""
    return f"/{quote(program_name, safe='')}/cases/{quote(case_id, safe='')}"


def session_of(request: Request) -> Session:
    """The session of a request."""
    session = request.scope["state"]["session"]
    assert isinstance(session, Session)
    return session


def reader_of(request: Request) -> str:
    """The reader who makes a request."""
    return session_of(request).reader


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a form. Raises HTTPException for what is none, or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "expected a form")
    return parsed_form(await bounded_body(request, MAX_FORM_BYTES))


async def bounded_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises HTTPException for more than `most` bytes, without reading more."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"expected at most {most} bytes")
    return bytes(body)


def parsed_form(body: bytes) -> dict[str, str]:
    """The fields of an encoded form, the last where one comes twice. Raises HTTPException."""
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise HTTPException(400, "expected the fields of a form") from None


def is_partial(request: Request) -> bool:
    """Whether a script asks, which puts the answer into its page."""
    return request.headers.get("x-partial") == "true"


def refused(site: Site, request: Request, status: int, message: str) -> Response:
    """An answer that says what was expected: a page, or for a script its text."""
    if is_partial(request) or "session" not in request.scope.get("state", {}):
        return Response(visible(message), status, media_type="text/plain")
    return site.page(request, "message.html", status, title="Not done", message=message)


def _shown(value: object) -> object:
    """A value as a template shows it: text with control characters written out."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
