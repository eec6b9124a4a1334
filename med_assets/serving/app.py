"""The HTTP interface: predictions, health, readiness and metrics."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from med_assets.errors import DiskFull, MedAssetsError
from med_assets.serving.binding import LOCAL_NAMES, is_addressed_to
from med_assets.serving.model import LOADING, NotReady
from med_assets.serving.service import ARCHIVE, POLL_S, Answer, Busy, Service, Visit, refusal
from med_assets.serving.uploads import HEAD_BYTES, suffix_of
from med_assets.storage.exposition import CONTENT_TYPE

OPEN_PATHS = ("/health", "/ready")
"""Paths that need no token: they say nothing of a case."""

TICK_S = 0.5
"""Seconds between two looks whether a client that waits is still there."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class Refused(Exception):
    """A request that gets no prediction: HTTP status, message, and headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers

    def response(self) -> Response:
        """The answer."""
        return Response(refusal(self.message), self.status, self.headers, "application/json")


class Guard:
    """Lets requests through that have the token, or, where there is none, that are addressed to this machine by its own name."""

    def __init__(self, app: ASGIApp, token: str, names: Sequence[str]) -> None:
        self.app, self.token, self.names = app, token.encode(), names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (refused := self._refusal(scope["path"], Headers(scope=scope))) is None:
            await self.app(scope, receive, send)
            return
        await refused.response()(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> Refused | None:
        if self.token:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            allowed = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self.token)
            if allowed or path in OPEN_PATHS:
                return None
            return Refused(401, "expected the token as Authorization: Bearer ...", {"www-authenticate": "Bearer"})
        if is_addressed_to(self.names, headers.get("host", "")):
            return None
        return Refused(421, "expected a request to this machine's own name")


class PackedAnswer(FileResponse):
    """The archive of an answer, which is removed when it was sent, or could not be."""

    def __init__(self, visit: Visit, answer: Answer, headers: dict[str, str]) -> None:
        super().__init__(answer.archive, 200, headers, "application/zip", filename=ARCHIVE)
        self.visit = visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.visit.service.limits.seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:  # the connection is closed before the end that it declared
            log.warning("%s: an answer was not fetched in time", self.visit.service.program)
        finally:
            self.visit.end()


def application(service: Service, token: str, names: Sequence[str] = LOCAL_NAMES) -> Callable[..., Awaitable[None]]:
    """The ASGI application of a service; without a token only requests to one of `names` are answered."""

    async def predict(request: Request) -> Response:
        try:
            response = await _predict(service, request)
        except Refused as refused:
            response = refused.response()
        service.metrics.answered(response.status_code)
        return response

    async def health(request: Request) -> Response:
        return Response(b'{"alive": true}', media_type="application/json")

    async def ready(request: Request) -> Response:
        if service.model.loaded is None:
            return Refused(503, service.model.problem).response()
        return Response(b'{"ready": true}', media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(service.gauges()), headers={"content-type": CONTENT_TYPE})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.warm_up()
        polling = asyncio.create_task(_poll(service))
        try:
            yield
        finally:
            polling.cancel()
            service.close()

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
    ]
    return Guard(Starlette(routes=routes, lifespan=lifespan), token, names)


async def _poll(service: Service) -> None:
    while True:
        await asyncio.sleep(POLL_S)
        service.poll()


async def _predict(service: Service, request: Request) -> Response:
    """Answer one upload. Raises Refused."""
    most = service.limits.upload_bytes
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "expected a body without Content-Encoding; archives and .nii.gz are sent as they are")
    if int(request.headers.get("content-length", 0)) > most:
        raise _too_large(most)
    if service.model.loaded is None and service.model.problem != LOADING:
        raise Refused(503, service.model.problem, {"retry-after": "10"})
    try:
        visit = service.enter()
    except Busy as busy:
        message = f"expected a free place, got {service.limits.waiting + 1} uploads that are here already; send it again later"
        raise Refused(429, message, {"retry-after": str(busy.retry_after_s)}) from None
    try:
        return await _answered(service, request, visit)
    except BaseException as error:
        visit.end()
        raise _refused(service, error) from None


async def _answered(service: Service, request: Request, visit: Visit) -> Response:
    """Receive, predict and answer; where this raises nothing, the visit ends here or with the response."""
    await _within(service, "an upload", receive(request, visit, service.limits.upload_bytes))
    answer = await _within(service, "a prediction", _waited(request, visit))
    headers = {"med-assets-experiment": answer.experiment, "med-assets-checkpoint": answer.checkpoint}
    if answer.any_predicted and "application/json" not in request.headers.get("accept", ""):
        return PackedAnswer(visit, answer, headers)
    visit.end()
    return Response(answer.result, 200 if answer.any_predicted else 422, headers, "application/json")


def _refused(service: Service, error: BaseException) -> BaseException:
    """What is raised for an error of a prediction: an answer, unless the server itself is ended."""
    if isinstance(error, Refused) or not isinstance(error, Exception):
        return error
    if isinstance(error, NotReady):
        return Refused(503, str(error), {"retry-after": "10"})
    if isinstance(error, DiskFull):
        return Refused(507, "expected space on the server's disk, got none left; nothing was kept")
    if isinstance(error, ClientDisconnect):
        return Refused(499, "the client went away")
    # The text of a foreign error may hold values of the upload.
    log.error("%s: a prediction failed with %s", service.program, type(error).__name__)
    reason = str(error) if isinstance(error, MedAssetsError) else type(error).__name__
    return Refused(500, f"predicting failed with {reason}")


async def _within(service: Service, what: str, work: Awaitable[T]) -> T:
    """What `work` gives, within the seconds of a part of a request. Raises Refused."""
    seconds = service.limits.seconds
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        status = 408 if what == "an upload" else 504
        raise Refused(status, f"expected {what} within {seconds:g} s (--timeout), got one that takes longer") from None


async def receive(request: Request, visit: Visit, most: int) -> None:
    """Write the body of a request, of at most `most` bytes, into the folder of its visit. Raises Refused, ClientDisconnect."""
    part, head, n_bytes = visit.uploads / "part", b"", 0
    with part.open("wb") as stream:
        async for chunk in request.stream():
            n_bytes += len(chunk)
            if n_bytes > most:
                raise _too_large(most)
            head += chunk[: max(0, HEAD_BYTES - len(head))]
            await asyncio.to_thread(stream.write, chunk)
    visit.service.metrics.received(n_bytes)
    if not n_bytes:
        raise Refused(400, "expected an image, a DICOM file, or an archive of them as the body, got nothing")
    part.rename(visit.uploads / f"upload{suffix_of(head)}")


async def _waited(request: Request, visit: Visit) -> Answer:
    """The answer to what was uploaded; where the client goes away its prediction is called off. Raises ClientDisconnect."""
    pictures, report = (request.query_params.get(name) == "true" for name in ("pictures", "sr"))
    job = asyncio.wrap_future(visit.predict(pictures=pictures, report=report))
    job.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs what nobody waited for
    while not (await asyncio.wait({job}, timeout=TICK_S))[0]:
        if await request.is_disconnected():
            raise ClientDisconnect
    return job.result()


def _too_large(most: int) -> Refused:
    return Refused(413, f"expected at most {most / 1e6:g} MB (--max-mb), got more")
