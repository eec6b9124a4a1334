"""One round: mutated files and cases, each an entry of its own, beside good cases, taken in by `med-assets ingest PROGRAM --now`."""

import csv
import logging
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from med_assets.cli.main import main
from med_assets.intake.stage import files_table
from med_assets.landing import batches
from med_assets.settings import Workspace
from tests.fuzz.archives import archive
from tests.fuzz.mutations import MARK, MUTATIONS
from tests.fuzz.seeds import Case, cases, files_below
from tests.shared_phantoms import write_phantoms

MEMORY_LIMIT_BYTES = 2 << 30
SECONDS_LIMIT_PER_ROUND = 600
SMALL_CASE_FILES = 4
"""Cases of more files are mutated as a whole less often: reading the files that are not mutated takes the time."""


@dataclass
class Round:
    """What a round gave: failures in words that repeat it, the reasons of all rows, seconds and the process's peak memory."""

    files: int
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def captured(path: Path) -> Iterator[None]:
    """All that this process and those that it starts write to standard output and error goes to a file."""
    kept = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    handlers, logging.root.handlers = (
        logging.root.handlers,
        [],
    )  # of a test runner; main adds the one of the command line
    with path.open("wb") as target:
        os.dup2(target.fileno(), 1)
        os.dup2(target.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.root.handlers = handlers
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


@dataclass(frozen=True)
class Memory:
    """Memory at a moment, KiB: of this process, and the peak of those that it started and that ended."""

    own: int
    ended: int

    @classmethod
    def now(cls) -> "Memory":
        """What is taken now; peaks of this process and of those that it started begin anew."""
        for path, _ in _family():
            with suppress(OSError):
                path.with_name("clear_refs").write_text("5")
        own = next(int(values["VmRSS"].split()[0]) for _, values in _family() if int(values["Pid"]) == os.getpid())
        return cls(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

    def peak_bytes(self) -> int:
        """The most that a process of the family has taken since: this one beside what it had, each other one in all.

        Of those that ended since it is known only where it is more than that of those that ended before.
        """
        ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peaks = [ended if ended > self.ended else 0]
        for _, values in _family():
            mine = int(values["Pid"]) == os.getpid()
            peaks.append(int(values.get("VmHWM", "0").split()[0]) - (self.own if mine else 0))
        return max(peaks) * 1024


def _family() -> list[tuple[Path, dict[str, str]]]:
    """Status of this process and of those that it started and that still live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            values = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if os.getpid() in (int(values["Pid"]), int(values["PPid"])):
                found.append((path, values))
    return found


def _of_patient(case: Case, number: int) -> Case:
    """The case of another patient, whose id has the same length."""
    out = {}
    for name, content in case.items():
        at = content.find(b"\x10\x00\x20\x00LO")
        if at >= 0:
            size = content[at + 6]
            content = content[: at + 8] + f"{number:0{size}d}".encode()[-size:] + content[at + 8 + size :]
        out[name] = content
    return out


def _write(folder: Path, files: Case) -> None:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _plant(landing: Path, seeds: list[Case], good: Case, files: int, rng: random.Random) -> list[str]:
    """Write `files` entries with mutated files; returns what was done in each."""
    done = []
    for number in range(files):
        entry = landing / f"f{number:05d}-{MARK.decode()}"
        case, mutation = _of_patient(rng.choice(seeds), number), rng.choice(MUTATIONS)
        name = rng.choice(sorted(case))
        whole = rng.random() < (0.6 if len(case) <= SMALL_CASE_FILES else 0.08)
        changed = {**(case if whole else {}), name: mutation(case[name], rng)}
        done.append(mutation.__name__)
        if rng.random() < 0.2:
            kind, content = archive(changed, rng)
            done[-1] += f" in {kind}"
            changed = {rng.choice(("a.dcm", "b.zip", MARK.decode())): content}
        elif not whole:
            changed = {rng.choice(("a.dcm", "b.zip", f"{MARK.decode()}/c")): changed[name]}
        if rng.random() < (0.1 if len(good) <= SMALL_CASE_FILES else 0.02):
            changed |= {f"good/{one}": content for one, content in good.items()}
            done[-1] += " beside a good case"
        _write(entry, changed)
    return done


def run(ws: Workspace, name: str, seed: int, files: int, seeds: Path) -> Round:
    """Take in `files` mutated entries of a program. `seeds` is a folder for its phantoms, written where absent.

    The workspace must be new, and the one that the environment names.
    """
    forms = _seeds(name, seeds)
    landing, away = ws.landing / name, Path(tempfile.mkdtemp(dir=seeds.parent))
    write_phantoms(name, away / "good", 1, 100)
    good = files_below(away / "good")
    rng = random.Random(f"{name} {seed}")
    done = _plant(landing, forms, good, files, rng)
    _write(landing / "good", good)
    debug, memory, begin = ["--debug"] if seed % 2 else [], Memory.now(), time.monotonic()
    with captured(away / "output"):
        code = main([*debug, "ingest", name, "--now"])
    result = Round(files, seconds=time.monotonic() - begin, peak_bytes=memory.peak_bytes())
    output = (away / "output").read_bytes()
    rows = ws.lake.rows("raw_cases", name)
    result.reasons.update(str(row["reason_code"] or row["status"]) for row in rows)
    failed = {
        row["case_id"] for row in ws.lake.rows("prepared_cases", name) if row["reason_code"] == "preparation_failed"
    }
    checks = {
        f"ended with {code}": code != 0,
        "a planted name in the output or the rows": MARK in output or MARK.decode() in str(rows),
        "a traceback in the output": b"Traceback" in output,
        "a warning of a library in the output": b"Warning" in output,
        f"{len(failed)} cases that could not be prepared": bool(failed),
        "a planted name in the home": _planted_in(ws),
        "a step was longer than it may be": "reader_time_limit" in result.reasons,
        "a failure that no reason foresees": "unreadable" in result.reasons,
        f"{result.peak_bytes >> 20} MiB": result.peak_bytes > MEMORY_LIMIT_BYTES,
        f"{result.seconds:.0f} s": result.seconds > SECONDS_LIMIT_PER_ROUND,
        **_account(ws, name, rows),
    }
    result.failures = [
        f"--program {name} --seed {seed} --files {files} ({', '.join(sorted(set(done)))}): {text}"
        for text, bad in checks.items()
        if bad
    ]
    return result


_known: dict[tuple[str, Path], list[Case]] = {}


def _seeds(name: str, folder: Path) -> list[Case]:
    if (name, folder) not in _known:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _known[name, folder] = cases(name, folder)
    return _known[name, folder]


def _planted_in(ws: Workspace) -> bool:
    """Whether the planted name is in the home: in the name of a file, or in one that holds no pixels."""
    for path in ws.home.rglob("*"):
        if not path.is_relative_to(ws.landing) and (
            MARK.decode() in path.name
            or (path.is_file() and path.suffix not in (".dcm", ".npy", ".npz") and MARK in path.read_bytes())
        ):
            return True
    return False


def _account(ws: Workspace, name: str, rows: list[dict[str, object]]) -> dict[str, bool]:
    """What is wrong with the account of files: by name in the lists of the batches, by count in the rows."""
    landing, lines = ws.landing / name, []
    for batch in batches.known(ws, name):
        with files_table(ws, name, batch).open(newline="", errors="surrogateescape") as stream:
            lines += list(csv.DictReader(stream))
    there = {path.relative_to(landing).as_posix() for path in landing.rglob("*") if path.is_file()}
    named = {line["file"] for line in lines}
    places = Counter((line["file"], line["member"]) for line in lines)
    unpacked = {line["file"]: int(line["outcome"].split()[1]) for line in lines if line["kind"] == "archive"}
    members = Counter(line["file"] for line in lines if line["kind"] == "member")
    counted = sum(line["kind"] in ("file", "member") for line in lines)
    in_rows = sum(int(str(row["n_instances"])) for row in rows)
    accepted = {f"case {row['case_id']}" for row in rows if row["status"] == "ok"}
    good = {line["outcome"] for line in lines if line["file"].startswith("good/")}
    return {
        f"{len(there - named)} files in no list": bool(there - named),
        f"{len(named - there)} files in a list that are not there": bool(named - there),
        "a file twice in the lists": max(places.values(), default=0) > 1,
        "members of an archive in no list": dict(members) != unpacked,
        f"{counted} files in the lists and {in_rows} in the rows": counted != in_rows,
        "a file that is in no case and has no reason": any(line["outcome"] == "in no case" for line in lines),
        "the good case was not accepted": not good or not good <= accepted,
    }
