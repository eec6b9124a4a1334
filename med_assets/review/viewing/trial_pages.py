"""The page on which a file is tried on the champion, and the routes of its script."""

import asyncio
import mimetypes
from pathlib import PurePosixPath

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from med_assets import program
from med_assets.review.site import Site, session_of
from med_assets.review.viewing.responses import JsonResponse
from med_assets.review.viewing.trials import KEPT_S, LIMITS, Trial, Trials
from med_assets.serving.app import Refused, receive
from med_assets.serving.service import ARCHIVE, Busy
from med_assets.settings import Workspace

SHOWN_TYPES = ("image/png", "text/csv")
"""Types of files that a browser may show; others are downloads."""


def routes(site: Site) -> list[BaseRoute]:
    """The page, the upload, its progress, the files of its answer, and their removal."""
    trials = Trials(site.ws) if isinstance(site.ws, Workspace) else None
    if trials is not None:
        site.closers.append(trials.close)

    def known() -> Trials:
        if trials is None:
            raise HTTPException(404, "expected a workspace with its key for files to try")
        return trials

    def page(request: Request) -> Response:
        catalog = site.catalog(request)
        return site.page(
            request, "try.html", program_name=catalog.program, program=program.get(catalog.program),
            champion=catalog.champion(), kept_minutes=round(KEPT_S / 60), most_mb=LIMITS.upload_bytes // 1_000_000,
        )  # fmt: skip

    async def upload(request: Request) -> Response:
        catalog = site.catalog(request)
        if catalog.champion() is None:
            raise HTTPException(409, f"{catalog.program} has no champion yet")
        if int(request.headers.get("content-length", 0)) > LIMITS.upload_bytes:
            raise HTTPException(413, f"expected at most {LIMITS.upload_bytes // 1_000_000} MB")
        try:
            trial = await run_in_threadpool(known().enter, catalog.program, session_of(request).id)
        except Busy as busy:
            headers = {"retry-after": str(busy.retry_after_s)}
            raise HTTPException(
                429, "expected a free place, got uploads that wait already; try again later", headers
            ) from None
        try:
            async with asyncio.timeout(LIMITS.seconds):
                await receive(request, trial.visit, LIMITS.upload_bytes)
            trial.job = trial.visit.predict(pictures=True, report=False)
        except (Refused, TimeoutError, ClientDisconnect) as refused:
            known().remove(trial)
            status, message = (
                (refused.status, refused.message)
                if isinstance(refused, Refused)
                else (408, "the upload did not arrive in time")
            )
            raise HTTPException(status, message) from None
        except BaseException:
            known().remove(trial)
            raise
        return JsonResponse({"trial": trial.id}, 202)

    def found(request: Request) -> Trial:
        trial = known().find(request.path_params["trial"], session_of(request).id, site.catalog(request).program)
        if trial is None:
            raise HTTPException(404, "there is no such upload any more")
        return trial

    def state(request: Request) -> Response:
        return JsonResponse(found(request).state())

    def remove(request: Request) -> Response:
        known().remove(found(request))
        return Response(None, 204)

    def file(request: Request) -> Response:
        trial, name = found(request), request.path_params["name"]
        if name == ARCHIVE and trial.job is not None and trial.state()["state"] == "done":
            return FileResponse(trial.job.result().archive, media_type="application/zip", filename=ARCHIVE)
        content = trial.file(name)
        if content is None:
            raise HTTPException(404, "there is no such file in the answer")
        kind = mimetypes.guess_type(name)[0]
        if kind in SHOWN_TYPES:
            return Response(content, media_type=kind)
        headers = {"content-disposition": f'attachment; filename="{PurePosixPath(name).name}"'}
        return Response(content, headers=headers, media_type="application/octet-stream")

    return [
        Route("/{program}/try", page),
        Route("/{program}/try", upload, methods=["POST"]),
        Route("/{program}/try/{trial}", state),
        Route("/{program}/try/{trial}", remove, methods=["DELETE"]),
        Route("/{program}/try/{trial}/files/{name:path}", file),
    ]
