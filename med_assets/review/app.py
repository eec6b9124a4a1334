"""The review page as one application: the routes of its modules behind one gate.

To add pages, write a module with a function `routes(site: Site) -> list[BaseRoute]` and add it to ROUTES. Paths start with
`/{program}/`; `site.catalog(request)` and `case_of(request)` check what a path names. A write needs nothing more: the gate refuses
those without the token, which a form holds as the field `token` and a script as the header `X-Review-Token`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from med_assets.errors import MedAssetsError
from med_assets.review import correction_pages, pages, worklist_pages
from med_assets.review.access import Access
from med_assets.review.gate import Gate
from med_assets.review.site import Site, refused
from med_assets.review.viewing import routes as viewing
from med_assets.review.viewing import trial_pages
from med_assets.serving.binding import LOCAL_NAMES
from med_assets.settings import Settings

STATIC = Path(__file__).parent / "static"
"""Scripts and styles, which the installed package has beside this module."""

ROUTES: tuple[Callable[[Site], Sequence[BaseRoute]], ...] = (
    pages.routes,
    worklist_pages.routes,
    correction_pages.routes,
    viewing.routes,
    trial_pages.routes,
)
"""The pages, in the order in which a path is looked for."""


def application(ws: Settings, access: Access, names: Sequence[str] = LOCAL_NAMES) -> Starlette:
    """The ASGI application for a home; without logins only requests to one of `names` are answered."""
    site = Site(ws, access)

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refused(site, request, error.status_code, error.detail)

    def med_assets_error(request: Request, error: Exception) -> Response:
        return refused(site, request, 409, str(error))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        site.datasets.close()
        for close in site.closers:
            close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            *(route for routes in ROUTES for route in routes(site)),
            Mount("/static", StaticFiles(directory=STATIC), name="static"),
        ],
        middleware=[Middleware(Gate, site=site, names=tuple(names))],
        exception_handlers={HTTPException: http_error, MedAssetsError: med_assets_error},
    )
