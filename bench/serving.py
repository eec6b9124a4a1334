"""Throughput and latency of `med-assets serve`, with one, two and four clients at a time, and what a prediction by a command of its own takes.

`python -m bench.serving [REQUESTS]`, for each program and number of clients. Models are untrained networks of the demo: it is the way to and from
the network that is measured, on phantoms of the demo's size.
"""

import http.client
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.common import KEY, show, workspace
from med_assets.cli import stages
from med_assets.landing import batches
from med_assets.launch.training import checkpoint_of
from med_assets.program import get
from med_assets.promotion.champions import BY_NAME, crown
from med_assets.settings import Workspace

EXPERIMENTS = {"breast_us": "tinyusfm", "rt_dose": "mean_dose"}
CLIENTS = (1, 2, 4)
CASES = 12
ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 600.0


def champion(ws: Workspace, program: str) -> None:
    """Train one epoch of an experiment on phantoms and make it the champion, without asking the gate."""
    get(program).write_phantoms(batches.landing_folder(ws, program), CASES, 0)
    batch = batches.take(ws, program, batches.untaken(ws, program), time.time())
    stages.intake(ws, program, batch)
    stages.prepare(ws, program, batch)
    stages.dataset(ws, program)
    stages.splits(ws, program)
    overrides = () if program == "rt_dose" else ("schedule.epochs=1",)
    stages.train(ws, program, EXPERIMENTS[program], overrides)
    crown(ws, checkpoint_of(ws, program, EXPERIMENTS[program]), BY_NAME, "a bench")


def archive(program: str, folder: Path, seed: int) -> bytes:
    """A zip of a case that the model has not seen."""
    get(program).write_phantoms(folder, 1, seed)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            packed.write(path, path.relative_to(folder).as_posix())
    return content.getvalue()


@contextmanager
def server(ws: Workspace, program: str) -> Iterator[int]:
    """A server, ready; its port."""
    environment = {"MED_ASSETS_HOME": str(ws.home), "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_PURPOSE": "demo"}
    environment |= {"MED_ASSETS_PROFILE": "demo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-m", "med_assets.cli", "serve", program, "--port", "0", "--waiting", "8"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r":(\d+) ", process.stdout.readline())
        if found is None:
            sys.exit("the server did not start")
        end = time.monotonic() + PATIENCE_S
        while ask(int(found[1]), "GET", "/ready", None) != 200:
            if time.monotonic() > end:
                sys.exit("the server is not ready")
            time.sleep(0.2)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, method: str, path: str, body: bytes | None) -> int:
    """The HTTP status of an answer that was read to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def measure(port: int, body: bytes, clients: int, requests: int) -> list[float]:
    """Seconds of each of so many requests, by so many clients at a time; ends the bench where one is not answered."""

    def one(_: int) -> float:
        started = time.perf_counter()
        if (status := ask(port, "POST", "/predict", body)) != 200:
            sys.exit(f"expected 200, got {status}")
        return time.perf_counter() - started

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(one, range(requests)))


def command(ws: Workspace, program: str, folder: Path, out: Path) -> float:
    """Seconds that `med-assets predict` takes for the same case, with all that it imports and loads."""
    environment = {"MED_ASSETS_HOME": str(ws.home), "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_PURPOSE": "demo"}
    environment |= {"MED_ASSETS_PROFILE": "demo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    words = [sys.executable, "-m", "med_assets.cli", "predict", program, str(folder), "--out", str(out)]
    started = time.perf_counter()
    subprocess.run(words, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """A table for each program."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for program in EXPERIMENTS:
        with tempfile.TemporaryDirectory() as name:
            ws, folder = workspace(Path(name) / "home"), Path(name) / "case"
            champion(ws, program)
            body, rows = archive(program, folder, 100), []
            alone = command(ws, program, folder, Path(name) / "out")
            with server(ws, program) as port:
                started = time.perf_counter()
                ask(port, "POST", "/predict", body)
                first = time.perf_counter() - started
                for clients in CLIENTS:
                    started = time.perf_counter()
                    seconds = measure(port, body, clients, requests)
                    wall = time.perf_counter() - started
                    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
                    rows.append((clients, requests / wall, statistics.median(seconds), p95))
        show(
            f"{program}: `med-assets serve`, {requests} requests of {len(body) / 1e6:.2f} MB (first {first:.2f} s, command of its own {alone:.1f} s)",
            ("clients", "cases/s", "p50, s", "p95, s"),
            rows,
        )


if __name__ == "__main__":
    main()
