"""One try: a damaged source through the real `med-assets import`, in a process of its own with bounded memory and time."""

import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from med_assets.cli.main import main
from med_assets.storage.files import folder_hashes
from tests.fuzz.import_sources import FORMS, Form
from tests.fuzz.mutations import MARK, bits
from tests.fuzz.rounds import captured

MEMORY_LIMIT_BYTES = 2 << 30
SECONDS_LIMIT = 60
NAMES = ("ä ö" * 20, "n" * 240, "\u200f\u4e00", "-rf", "a\nb", os.fsdecode(b"\xff\xfe"), "%s{0}", "..a", "'\"<b>")
"""Names of files that are odd or long, and that a file system has."""


@dataclass
class Tries:
    """What tries gave: failures in words that repeat them, reasons of what was skipped, and the peak memory of one, bytes."""

    files: int = 0
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_bytes: int = 0


def _text(data: bytes, rng: random.Random) -> bytes:
    """A token of text or of a table more, less or other."""
    tokens = list(re.finditer(rb"[^\s,:\"\[\]{}]+|[,:\"\[\]{}\n\t]", data))
    if not tokens:
        return MARK
    at = rng.choice(tokens)
    new = rng.choice(
        (b"", MARK, at[0] * 2, b"-1", b"1e999", b"nan", b"9" * 5000, b"[" * 2000, b"null", b"\"", b"\0", b"\xff", "²".encode(),
         b"\"\\ud800\"", b"x" * 300, b"../../../etc/passwd", b"\n", b",", b"0", b"true", b"{}", b"[1]")
    )  # fmt: skip
    return data[: at.start()] + new + data[at.end() :]


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((MARK, MARK * 50, bytes(rng.randrange(1, 600)), rng.randbytes(40))) + data[at:]


def _zeros(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes(min(rng.choice((4, 64, len(data))), len(data) - at)) + data[at + 64 :]


def _header(data: bytes, rng: random.Random) -> bytes:
    """A number in the first 400 bytes, unpacked where they are gzip, that is large, negative or not finite."""
    import gzip

    packed = data[:2] == b"\x1f\x8b"
    try:
        plain = bytearray(gzip.decompress(data) if packed else data)
    except (OSError, EOFError):
        return bits(data, rng)
    at = rng.randrange(max(1, min(len(plain), 352) - 4)) & ~1
    new = rng.choice(
        (b"\xff\xff", b"\x00\x80", b"\x00\x00", struct.pack("<f", float("nan")), struct.pack("<f", 1e30), MARK)
    )
    plain[at : at + len(new)] = new
    return gzip.compress(bytes(plain)) if packed else bytes(plain)


def _empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def _bits(data: bytes, rng: random.Random) -> bytes:
    return bits(data, rng) if data else data


CONTENTS = (_bits, _text, _truncated, _inserted, _zeros, _header, _empty)
PLACES = (
    "removed",
    "renamed",
    "link to another",
    "link to nothing",
    "link to itself",
    "pipe",
    "folder",
    "swapped",
    "other bytes",
)


def _place(path: Path, others: list[Path], how: str, rng: random.Random) -> None:
    content = path.read_bytes()
    if how == "swapped":
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return
    path.unlink()
    match how:
        case "renamed":
            path.with_name(rng.choice(NAMES)[:200] + path.suffix).write_bytes(content)
        case "link to another":
            path.symlink_to(rng.choice(others))
        case "link to nothing":
            path.symlink_to("/nowhere")
        case "link to itself":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "other bytes":
            path.write_bytes(MARK * rng.choice((1, 100)))


def _damage(src: Path, form: Form, rng: random.Random) -> tuple[str, bool, bool]:
    """Damage a source; returns what was done, whether a shared table was, and whether names of cases may have changed."""
    files = sorted(path for path in src.rglob("*") if path.is_file())
    mine = [path for path in files if form.victim in path.relative_to(src).as_posix()]
    if form.shared and rng.random() < 0.3:
        path = src / rng.choice(form.shared)
        if rng.random() < 0.2:
            how = rng.choice(("removed", "link to itself", "pipe", "folder", "other bytes"))
            _place(path, files, how, rng)
            return f"{path.name} {how}", True, True
        mutation = rng.choice((_text, _text, _text, _bits, _truncated, _inserted, _empty))
        path.write_bytes(mutation(path.read_bytes(), rng))
        return f"{path.name} {mutation.__name__}", True, True
    if rng.random() < 0.35:
        path, how = rng.choice(mine), rng.choice(PLACES)
        others = [one for one in mine if one != path] or [path]
        _place(path, others, how, rng)
        return f"{path.suffix} {how}", False, how in ("renamed", "removed")
    done = []
    for path in rng.sample(mine, rng.choice((1, 1, len(mine)))):
        mutation = rng.choice(CONTENTS)
        path.write_bytes(mutation(path.read_bytes(), rng))
        done.append(f"{path.suffix} {mutation.__name__}")
    return ", ".join(done[:3]), False, False


def _import(form: Form, src: Path, dest: Path, output: Path) -> tuple[int, int, float]:
    """The exit code (-9 where it was too slow), peak memory in bytes and seconds of the command, forked from this process."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_LIMIT_BYTES, resource.RLIM_INFINITY))
            signal.alarm(SECONDS_LIMIT)
            # The streams of a test runner are not those that the file replaces.
            sys.stdout = open(1, "w", errors="surrogateescape", closefd=False)  # noqa: SIM115 - ends with the process
            sys.stderr = open(2, "w", errors="surrogateescape", closefd=False)  # noqa: SIM115 - as the other
            with captured(output):
                paths = [str(src / name) for name in form.arguments]
                code = main(["import", form.kind, *paths, str(dest), *form.options])
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), max(0, usage.ru_maxrss - before) * 1024, time.monotonic() - begin


def once(name: str, seed: int, scratch: Path) -> Tries:
    """Import a source of the form `name` damaged by `seed`; `scratch` keeps the undamaged sources and what they become."""
    form, rng, result = FORMS[name], random.Random(f"{name} {seed}"), Tries(1)
    whole = scratch / f"{name}-whole"
    if not whole.exists():
        (scratch / name).mkdir(parents=True)
        shutil.rmtree(scratch / name)
        form.write(scratch / name)
        code, _, _ = _import(form, scratch / name, whole, scratch / f"{name}-output")
        assert code == 0, (scratch / f"{name}-output").read_text()
    cases = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        src, dest = Path(folder, name), Path(folder, "out")
        shutil.copytree(scratch / name, src)
        done, shared, renamed = _damage(src, form, rng)
        code, result.peak_bytes, result.seconds = _import(form, src, dest, Path(folder, "output"))
        output = Path(folder, "output").read_bytes()
        text = output.decode(errors="replace")
        there = {path.name for path in dest.iterdir() if not path.name.startswith(".")} if dest.is_dir() else set()
        errors = dest / ".ai_readi" / "data_errors.csv"
        report = text + (errors.read_text() if errors.is_file() else "")
        table = re.search(r"^imported \d+ cases", text, re.MULTILINE)
        result.reasons.update(
            re.findall(r"^\S+ +([a-z_]+):", text, re.MULTILINE) or ["imported" if there else "refused whole"]
        )
        ended = "med-assets import:" in text
        good = _good(name, cases)
        checks = {
            f"ended with {code}": code not in (0, 1),
            "0 with nothing imported": code == 0 and not there,
            "no message": not text.strip(),
            "a failure that nobody foresaw": "import_failed" in text
            or "failed with" in text
            or "is the home writable" in text,
            "a traceback": "Traceback" in text,
            "a warning of a library": "Warning" in text,
            "a planted name in the output": MARK in (output[table.start() :] if table else output),
            "a part of a case is left": dest.is_dir() and any(path.suffix == ".part" for path in dest.iterdir()),
            "a case that is not accounted for": not renamed
            and any(case not in there and case not in report for case in cases),
            "the good case is not imported as it was": not shared and not good <= _same(whole, dest),
            "the import ended for one case": ended
            and not shared
            and "expected the labelled scan of at least" not in text,
            f"{result.peak_bytes >> 20} MiB": result.peak_bytes > MEMORY_LIMIT_BYTES,
            f"{result.seconds:.0f} s": result.seconds > SECONDS_LIMIT,
        }
        result.failures = [f"--imports {name} --seed {seed} ({done}): {what}" for what, bad in checks.items() if bad]
        if result.failures and os.environ.get("FUZZ_OUTPUT"):
            result.failures.append(text)
    return result


def _good(name: str, cases: set[str]) -> set[str]:
    """The cases that were not damaged: the first in order of names; a pair is alone. Of BUSI the first is benign."""
    return set() if FORMS[name].kind == "pair" else {sorted(cases)[0]}


def _same(whole: Path, dest: Path) -> set[str]:
    """Cases of which every file is as in the import of the undamaged source."""
    return {
        path.name
        for path in whole.iterdir()
        if (dest / path.name).is_dir() and folder_hashes(path) == folder_hashes(dest / path.name)
    }
