"""`/metrics` of a home over HTTP, for Prometheus to scrape."""

import logging
import threading

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from med_assets.errors import MedAssetsError
from med_assets.operations.metrics import Collector
from med_assets.serving.binding import bound, bracketed, checked_port, run
from med_assets.storage.exposition import CONTENT_TYPE, text

log = logging.getLogger(__name__)

GRACEFUL_S = 5


def application(collector: Collector) -> Starlette:
    """The HTTP application: GET /metrics, and nothing else."""
    lock = threading.Lock()

    def metrics(request: Request) -> Response:
        try:
            with lock:  # scrapes of two servers read the tables one after the other
                found = text(collector.families())
        except MedAssetsError as error:
            log.warning("no metrics: %s", error)
            return PlainTextResponse("no metrics now; the log of this process says why\n", 503)
        return Response(found, headers={"content-type": CONTENT_TYPE})

    return Starlette(routes=[Route("/metrics", metrics)])


def serve(collector: Collector, host: str, port: int) -> None:
    """Answer scrapes until a signal ends it. Raises ConfigurationError."""
    listener = bound(host, checked_port(port))
    print(f"metrics on http://{bracketed(host)}:{listener.getsockname()[1]}/metrics", flush=True)
    run(application(collector), listener, GRACEFUL_S)
