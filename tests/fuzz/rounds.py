"""One round: mutated files, each an entry of its own, beside a good case, taken in by `med-assets ingest PROGRAM --now`."""

import contextlib
import io
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from med_assets import batches, program
from med_assets.cli import main
from med_assets.settings import Workspace
from tests.fuzz.mutations import MARK, MUTATIONS

MEMORY_LIMIT_BYTES = 2 << 30
SECONDS_LIMIT_PER_ROUND = 600


@dataclass
class Round:
    """What a round gave: failures in words that repeat it, the reasons of all rows, seconds and the process's peak memory."""

    files: int
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_bytes: int = 0


def run(ws: Workspace, name: str, seed: int, files: int, seeds: Path) -> Round:
    """Take in `files` mutated files of a program. `seeds` is a folder for its phantoms, written where absent.

    The workspace must be new, and the one that the environment names.
    """
    chosen = program.get(name)
    if not seeds.exists():
        chosen.write_phantoms(seeds / "mutated", 1, 2)
    originals = [path.read_bytes() for path in sorted((seeds / "mutated").rglob("*.dcm"))]
    landing = ws.landing / name
    chosen.write_phantoms(landing, 1, 100)
    expected = {
        path.name for path in landing.iterdir() if path.is_dir() and not path.name.startswith(".")
    }  # loose files are one entry of another name
    rng, done = random.Random(f"{name} {seed}"), []
    for number in range(files):
        mutation = rng.choice(MUTATIONS)
        entry = landing / f"f{number:05d}-{MARK.decode()}"
        entry.mkdir(parents=True)
        (entry / rng.choice(("a.dcm", "b.zip", MARK.decode()))).write_bytes(mutation(rng.choice(originals), rng))
        done.append(mutation.__name__)
        expected.add(entry.name)
    output, result, begin = io.StringIO(), Round(files), time.monotonic()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(["ingest", name, "--now"])
    result.seconds = time.monotonic() - begin
    result.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = ws.lake.rows("raw_cases", name)
    result.reasons.update(str(row["reason_code"] or row["status"]) for row in rows)
    listed = {one for batch in batches.known(ws, name) for one in batches.manifest(ws, name, batch)}
    checks = {
        f"ended with {code}": code != 0,
        f"{len(expected - listed)} entries in no manifest": bool(expected - listed),
        "the good case was not accepted": "ok" not in {row["status"] for row in rows},
        "a planted name in the output or the rows": MARK.decode() in output.getvalue() + str(rows),
        "a traceback in the output": "Traceback" in output.getvalue(),
        f"{result.peak_bytes >> 20} MiB": result.peak_bytes > MEMORY_LIMIT_BYTES,
        f"{result.seconds:.0f} s": result.seconds > SECONDS_LIMIT_PER_ROUND,
    }
    which = ",".join(sorted(set(done)))
    result.failures = [
        f"--program {name} --seed {seed} --files {files} ({which}): {text}" for text, bad in checks.items() if bad
    ]
    return result
