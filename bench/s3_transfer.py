"""Fetching from S3 beside plain boto3 in the same run: MB/s and ratios. `python -m bench.s3_transfer`

The endpoint is moto's on this machine, in a process of its own: it is slower than a real one and has no distance, so the
ratios count, not the MB/s. What plain boto3 does not do is included: every byte is checked by ETag, and hashed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import clock, show
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import THREADS, Location
from med_assets.storage.s3.index import RemoteObject, pages
from med_assets.storage.s3.staging import Staging, Wanted

SETS = {"200 slices of 0.5 MB": (200, 500_000), "2 volumes of 64 MB": (2, 64_000_000)}
REPEATS = 3
BUCKET = "bench"


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """An endpoint in a process of its own, and the variables that name it."""
    command = [sys.executable, "-m", "med_assets.storage.s3.local", "--bucket", BUCKET]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1 + len(local.PUBLIC))]
        try:
            yield dict(line.split()[1].split("=", 1) for line in lines)
        finally:
            process.terminate()


def ways(client: Any, found: dict[str, RemoteObject], staging: Path) -> dict[str, Callable[[Path], object]]:
    """Each way to bring all objects into a folder."""

    def one(key: str, out: Path) -> None:
        client.download_file(BUCKET, key, str(out / key.replace("/", "_")))

    def after_another(out: Path) -> None:
        for key in found:
            one(key, out)

    def side_by_side(out: Path) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda key: one(key, out), found))

    def fetch(root: Path, out: Path) -> None:
        wanted = [Wanted("", key) for key in found]
        _, failures = Staging(client, BUCKET, root, 1e12).fetch(wanted, out, found, progress=False)
        assert not failures

    return {
        "boto3, one after another": after_another,
        f"boto3, {THREADS} side by side": side_by_side,
        "med_assets, fetch": lambda out: fetch(out / "cache", out / "into"),
        "med_assets, fetch again from the cache": lambda out: fetch(staging, out),
    }


def main() -> None:
    """Alternate the ways, keep the best of each."""
    rows = []
    with server() as variables, tempfile.TemporaryDirectory() as name:
        client = bucket.client(variables)
        for title, (number, size) in SETS.items():
            prefix = f"set-{number}"
            for index in range(number):
                content = np.random.default_rng(index).bytes(size)
                client.put_object(Bucket=BUCKET, Key=f"{prefix}/{index:04d}", Body=content)
            found = {one.key: one for one in pages(client, Location(BUCKET, prefix))}
            seconds: dict[str, float] = {}
            all_ways = ways(client, found, Path(name) / prefix)
            all_ways["med_assets, fetch again from the cache"](Path(name) / f"{prefix}-first")
            for _ in range(REPEATS):
                for label, work in all_ways.items():
                    once: dict[str, float] = {}
                    with tempfile.TemporaryDirectory() as out, clock(once, label):
                        work(Path(out))
                    seconds[label] = min(once[label], seconds.get(label, float("inf")))
            plain = seconds[f"boto3, {THREADS} side by side"]
            rows += [
                (title, label, value, number * size / 1e6 / value, plain / value) for label, value in seconds.items()
            ]
    header = ("what", "how", "s", "MB/s", f"times as fast as boto3, {THREADS} side by side")
    show(f"Transfers from S3, best of {REPEATS}", header, rows)


if __name__ == "__main__":
    main()
