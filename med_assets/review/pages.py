"""The pages that every review has: login, the programs of the home, and the page of a case."""

from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.records import CaseVersion, Status
from med_assets.review.access import is_login
from med_assets.review.case_facts import case_facts
from med_assets.review.site import Site, case_of, form, session_of
from med_assets.review.worklist_pages import around


@dataclass(frozen=True)
class ProgramCounts:
    """A program of the home, and how many cases it has."""

    name: str
    title: str
    cases: int
    quarantined: int


def routes(site: Site) -> list[BaseRoute]:
    """Login, landing page, and the page of a case."""

    def landing(request: Request) -> Response:
        return site.page(
            request, "landing.html", counts=[_counts(Catalog(site.ws, name)) for name in program.registered()]
        )

    def case(request: Request) -> Response:
        catalog, case_id = site.catalog(request), case_of(request)
        facts = case_facts(catalog, case_id)
        if facts is None:
            raise HTTPException(404, "there is no such case")
        return site.page(request, "case.html", case=facts, more=around(site, request, catalog, case_id))

    def login_page(request: Request) -> Response:
        return site.page(request, "login.html", next=_local_path(request), failed=False)

    async def login(request: Request) -> Response:
        if site.access.logins is None:
            raise HTTPException(404, "nobody logs in here")
        given, sessions, session = await form(request), site.sessions, session_of(request)
        if not sessions.may_try():
            raise HTTPException(429, "expected fewer wrong passwords; wait a minute")
        name = given.get("reader", "").strip()
        if not await run_in_threadpool(is_login, site.access, name, given.get("password", "")):
            sessions.failed()
            return site.page(request, "login.html", 401, next=_local_path(request), failed=True)
        sessions.end(session)  # an id that was known before the login is worth nothing after it
        request.scope["state"]["session"] = sessions.start(name)
        return RedirectResponse(_local_path(request), 303)

    def logout(request: Request) -> Response:
        site.sessions.end(session_of(request))
        request.scope["state"]["session"] = site.sessions.start(site.access.reader)
        return RedirectResponse("/login" if site.access.logins is not None else "/", 303)

    return [
        Route("/", landing),
        Route("/login", login_page),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/{program}/cases/{case}", case),
    ]


def _local_path(request: Request) -> str:
    """The path of this server that a login leads to; the landing page for any other address."""
    path = parse_qs(request.url.query).get("next", ["/"])[0]
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


def _counts(catalog: Catalog) -> ProgramCounts:
    statuses = catalog.frame(CaseVersion, columns=("status",))["status"]
    return ProgramCounts(
        catalog.program,
        program.get(catalog.program).title,
        len(catalog.dataset()),
        int((statuses == Status.QUARANTINED).sum()),
    )
