"""The worklist of a program, and what readers decide on it."""

from collections.abc import Mapping
from dataclasses import fields
from math import ceil
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.records import CORRECT
from med_assets.review.agreement import agreements, readings
from med_assets.review.decisions import COMMON, answers_of, decide
from med_assets.review.site import Site, case_of, case_url, form, is_partial, reader_of, refused
from med_assets.review.worklist import MEANINGS, SORTS, Asked, Listed, listed, worklist

PAGE = 50
"""Cases of a page of the worklist."""

MAX_ASKED_CHARS = 200

QUERY = tuple(each.name for each in fields(Asked))


def routes(site: Site) -> list[BaseRoute]:
    """The worklist, and decisions about its cases."""

    def show(request: Request) -> Response:
        catalog = site.catalog(request)
        asked, found = asked_of(request.url.query), worklist(catalog, site.decided[catalog.program])
        chosen = listed(found, asked, reader_of(request))
        last = max(1, ceil(len(chosen.cases) / PAGE))
        number = min(last, max(1, _whole(dict(parse_qsl(request.url.query)).get("page", "1"))))
        template = "worklist_rows.html" if is_partial(request) else "worklist.html"
        return site.page(
            request,
            template,
            program_name=catalog.program,
            title=program.get(catalog.program).title,
            asked=asked,
            query=query_of(asked),
            query_with=lambda **changed: query_of(asked.others(**changed)),
            found=chosen,
            rows=chosen.cases[(number - 1) * PAGE : number * PAGE],
            page=number,
            pages=last,
            states=sorted({case.state for case in found.cases}),
            splits=sorted({case.split for case in found.cases} - {""}),
            sorts=SORTS,
            meanings=MEANINGS,
            drifted=found.drifted,
            dataset_state=site.datasets.state(catalog.program),
            answers=answers_of(catalog.program),
        )

    async def decided(request: Request) -> Response:
        catalog, case_id = site.catalog(request), case_of(request)
        given = await form(request)
        return await run_in_threadpool(_decided, site, request, catalog, case_id, given)

    def agreed(request: Request) -> Response:
        catalog = site.catalog(request)
        found = readings(catalog)
        disputed = [reading for reading in found if reading.is_disputed]
        return site.page(
            request,
            "agreement.html",
            program_name=catalog.program,
            found=agreements(found),
            disputed=disputed,
        )

    return [
        Route("/{program}/", show),
        Route("/{program}/agreement", agreed),
        Route("/{program}/cases/{case}/decisions", decided, methods=["POST"]),
    ]


def _decided(site: Site, request: Request, catalog: Catalog, case_id: str, given: Mapping[str, str]) -> Response:
    """Record a decision; the page of the case follows, or for a script an answer without text."""
    decision, note = given.get("decision", ""), given.get("note", "")
    if decision == CORRECT:
        return refused(
            site, request, 422, "expected a corrected label with a correction; a decision alone corrects nothing"
        )
    try:
        recorded = decide(site.ws, catalog.program, case_id, decision, note, reader_of(request))
    except ConfigurationError as error:
        return refused(site, request, 422, str(error))
    site.decided[catalog.program] += 1
    if recorded.changes_dataset:
        site.datasets.bring_up_to_date(catalog.program)
    if is_partial(request):
        return Response(status_code=204)
    query = query_of(asked_of(given.get("query", "")))
    return RedirectResponse(f"{case_url(catalog.program, case_id)}?{query}", 303)


def asked_of(query: str) -> Asked:
    """What a query asks for; values are bounded, and unknown ones ask for nothing."""
    given = dict(parse_qsl(query, max_num_fields=40))
    return Asked(**{name: given.get(name, "")[:MAX_ASKED_CHARS] for name in QUERY})


def query_of(asked: Asked) -> str:
    """The query that asks for this."""
    return urlencode({name: value for name in QUERY if (value := getattr(asked, name))})


def around(site: Site, request: Request, catalog: Catalog, case_id: str) -> dict[str, object]:
    """What the page of a case has of the worklist: what was asked for, the neighbours of the case, its decisions, and answers."""
    asked = asked_of(request.url.query)
    found = worklist(catalog, site.decided[catalog.program])
    # A case that was just read stays between its neighbours.
    in_question: Listed = listed(found, asked.others(read=""), reader_of(request))
    before, after = in_question.around(case_id)
    own = next((case for case in found.cases if case.case_id == case_id), None)
    return {
        "query": query_of(asked),
        "before": before,
        "after": after,
        "found": in_question,
        "decisions": own.decisions if own else (),
        "marks": own.marks if own else (),
        "meanings": MEANINGS,
        "common": COMMON,
        "answers": answers_of(catalog.program),
        "dataset_state": site.datasets.state(catalog.program),
    }


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 9 else 1
