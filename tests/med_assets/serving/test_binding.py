"""The process that runs a server."""

import http.client
import signal
import subprocess
import sys
import time
from contextlib import closing

import psutil

from med_assets.serving.binding import TURN_S

SERVER = """
from med_assets.serving.binding import bound, run

async def answer(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

listener = bound("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
run(answer, listener, 1)
"""

IDLE_S = 3.0


def ask(port: int) -> tuple[int, str | None]:
    """Status and date of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/")
        with connection.getresponse() as answer:
            return answer.status, answer.getheader("date")


def test_an_idle_server_hardly_wakes_up_and_still_answers_and_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            status, first = ask(port)
            assert (status, bool(first)) == (204, True)
            process = psutil.Process(server.pid)
            before = process.num_ctx_switches().voluntary
            time.sleep(IDLE_S)
            assert process.num_ctx_switches().voluntary - before <= 2 * IDLE_S / TURN_S  # uvicorn's own loop: 30
            status, second = ask(port)
            assert (status, second != first) == (204, True)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) in (0, -signal.SIGTERM)
