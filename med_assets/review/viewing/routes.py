"""The HTTP routes of the viewer: what a case consists of, single slices, and whole layers as NIfTI."""

from collections.abc import Awaitable, Callable

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from med_assets.errors import ArtifactCorrupt
from med_assets.review.site import Site
from med_assets.review.viewing.cases import Cases, OpenCase, UnknownCase, models_of, viewable_program
from med_assets.review.viewing.compare import Comparer, experiments_of
from med_assets.review.viewing.contract import Layer, View
from med_assets.review.viewing.description import describe
from med_assets.review.viewing.nifti import header, voxels
from med_assets.review.viewing.responses import JsonResponse, VoxelResponse, kept_headers, unchanged

Handler = Callable[[Request], Awaitable[Response]]


def routes(site: Site) -> list[BaseRoute]:
    """Routes that only read, below /PROGRAM/cases/CASE."""
    ws, cases, comparer = site.ws, Cases(site.ws), Comparer(site.ws)

    def opened(request: Request) -> OpenCase:
        path = request.path_params
        return cases.open(path["program"], path["case"], request.query_params.get("model"))

    def view(request: Request) -> Response:
        case = opened(request)
        return JsonResponse(
            describe(case, models_of(ws, case.program, case.case)), headers={"cache-control": "no-store"}
        )

    def layer_of(request: Request) -> tuple[OpenCase, View, Layer]:
        case = opened(request)
        return (case, *case.view_of(request.path_params["layer"]))

    def volume(request: Request) -> Response:
        case, view, layer = layer_of(request)
        headers = kept_headers(request, case.key, f"{case.key}-{layer.name}")
        if unchanged(request, headers):
            return Response(None, 304, headers)
        name = f"{case.program}_{case.case.case_id}_{layer.name}.nii"
        body = voxels(layer, view.grid).data.cast("B")
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        return VoxelResponse(request, header(layer, view.grid), body, headers | disposition)

    def one_slice(request: Request) -> Response:
        case, view, layer = layer_of(request)
        axis, index = request.path_params["axis"], request.path_params["index"]
        if axis > 2 or index >= view.grid.shape[axis]:
            raise UnknownCase(
                f"expected an axis from 0 to 2 and one of its slices in {view.grid.shape}, got {axis} and {index}"
            )
        headers = kept_headers(request, case.key, f"{case.key}-{layer.name}-{axis}-{index}")
        if unchanged(request, headers):
            return Response(None, 304, headers)
        array = layer.slice(axis, index)
        body = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return VoxelResponse(request, b"", body.data.cast("B"), headers)

    def compare(request: Request) -> Response:
        name = site.catalog(request).program
        viewable_program(name)
        known = experiments_of(ws, name)
        usual = dict(zip("ab", known, strict=False))
        first, second = (request.query_params.get(field) or usual.get(field, "") for field in "ab")
        comparison = comparer.compare(name, first, second) if first and second else None
        return site.page(
            request,
            "compare.html",
            program_name=name,
            experiments=known,
            first=first,
            second=second,
            comparison=comparison,
        )

    def compare_case(request: Request) -> Response:
        path, (first, second) = request.path_params, (request.query_params.get(field, "") for field in "ab")
        for model in (first, second):
            cases.open(path["program"], path["case"], model)
        return site.page(
            request, "case_compare.html", program_name=path["program"], case_id=path["case"], first=first, second=second
        )

    base = "/{program}/cases/{case}"
    return [
        Route("/{program}/compare", _page(compare)),
        Route(f"{base}/compare", _page(compare_case)),
        Route(f"{base}/view.json", _answering(view)),
        Route(f"{base}/layers/{{layer}}.nii", _answering(volume)),
        Route(f"{base}/layers/{{layer}}/{{axis:int}}/{{index:int}}", _answering(one_slice)),
    ]


def _answering(respond: Callable[[Request], Response]) -> Handler:
    """A handler that runs `respond` on a thread, and answers 404 for what there is not and 409 for what is damaged."""

    async def handler(request: Request) -> Response:
        try:
            return await run_in_threadpool(respond, request)
        except UnknownCase as unknown:
            return JsonResponse({"error": str(unknown)}, 404)
        except ArtifactCorrupt as corrupt:
            return JsonResponse({"error": str(corrupt)}, 409)

    return handler


def _page(respond: Callable[[Request], Response]) -> Handler:
    """The same for a page that people read."""

    async def handler(request: Request) -> Response:
        try:
            return await run_in_threadpool(respond, request)
        except UnknownCase as unknown:
            raise HTTPException(404, str(unknown)) from None

    return handler
