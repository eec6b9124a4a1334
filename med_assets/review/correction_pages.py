"""The DICOM files of a case for a program that edits them, and the corrected label that comes back."""

import tempfile
import zipfile
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from med_assets.errors import ConfigurationError
from med_assets.review.corrections import MAX_LABEL_BYTES, stored_files, submit
from med_assets.review.site import Site, case_of, reader_of
from med_assets.settings import Workspace
from med_assets.storage.files import disk_full_guard
from med_assets.storage.scratch import scratch


def routes(site: Site) -> list[BaseRoute]:
    """Download of a case, and upload of its corrected label."""

    def download(request: Request) -> Response:
        catalog, case_id = site.catalog(request), case_of(request)
        try:
            stored = stored_files(site.ws, catalog.program, case_id)
        except ConfigurationError as error:
            raise HTTPException(404, str(error)) from error
        with tempfile.NamedTemporaryFile(dir=scratch(site.ws.home), suffix=".zip", delete=False) as made:
            packed = Path(made.name)
        with disk_full_guard(site.ws.home), zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in stored:
                archive.write(path, f"{case_id}/{path.name}")
        name = f"{catalog.program}-{case_id}.zip"
        return FileResponse(
            packed, filename=name, media_type="application/zip", background=BackgroundTask(packed.unlink)
        )

    async def upload(request: Request) -> Response:
        catalog, case_id = site.catalog(request), case_of(request)
        if not isinstance(site.ws, Workspace):
            raise HTTPException(
                409, "expected a home with its pseudonym key, got one without; start the page with the key"
            )
        note = request.query_params.get("note", "")
        with tempfile.TemporaryDirectory(dir=scratch(site.ws.home)) as folder:
            label = Path(folder) / "label.dcm"
            n_bytes = 0
            with disk_full_guard(site.ws.home), label.open("wb") as stream:
                async for chunk in request.stream():
                    n_bytes += len(chunk)
                    if n_bytes > MAX_LABEL_BYTES:
                        raise HTTPException(413, f"expected a file of at most {MAX_LABEL_BYTES / 2**20:.0f} MiB")
                    stream.write(chunk)
            try:
                done = await run_in_threadpool(
                    submit, site.ws, catalog.program, case_id, label, note, reader_of(request)
                )
            except ConfigurationError as error:
                raise HTTPException(422, str(error)) from error
        site.decided[catalog.program] += 1
        return PlainTextResponse(
            f"{done.entry} lies in the landing zone; intake makes a new version of this case of it", 201
        )

    return [
        Route("/{program}/cases/{case}/dicom.zip", download),
        Route("/{program}/cases/{case}/correction", upload, methods=["POST"]),
    ]
