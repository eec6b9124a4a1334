"""`python -m tests.fuzz`: rounds of mutated files over all programs and importers or one, with a line for each failure."""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from med_assets.settings import Workspace
from tests.conftest import settings_of
from tests.fuzz.import_sources import FORMS
from tests.fuzz.imports import once
from tests.fuzz.rounds import run

PROGRAMS = ("breast_us", "lumbar_mr", "lung_ct", "retinal_oct", "rt_dose")


def fuzz(options: argparse.Namespace) -> int:
    chosen = [options.program] if options.program else () if options.imports else PROGRAMS
    forms = [options.imports] if options.imports else () if options.program else FORMS
    tries = 0
    done, failures, reasons, seed, peak, seconds = 0, 0, Counter[str](), options.seed, 0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        while done < options.n:
            for name in chosen:
                with tempfile.TemporaryDirectory(dir=scratch) as home:
                    os.environ.update(settings_of(Path(home)))
                    result = run(Workspace.from_env(), name, seed, options.files, Path(scratch) / f"seeds-{name}")
                for line in result.failures:
                    print(line, flush=True)
                done, failures, seconds = done + result.files, failures + len(result.failures), seconds + result.seconds
                reasons, peak = reasons + result.reasons, max(peak, result.peak_bytes)
            for name in forms:
                with tempfile.TemporaryDirectory(dir=scratch) as home:
                    os.environ.update(settings_of(Path(home)))
                    tried = once(name, seed, Path(scratch) / "sources")
                for line in tried.failures:
                    print(line, flush=True)
                done, tries, failures = done + 1, tries + 1, failures + len(tried.failures)
                seconds, reasons, peak = seconds + tried.seconds, reasons + tried.reasons, max(peak, tried.peak_bytes)
            seed += 1
    print(
        f"{done} files, {tries} of them sources of imports, seeds {options.seed} to {seed - 1}, {failures} failures, {seconds:.0f} s, {peak >> 20} MiB at most"
    )
    print(", ".join(f"{code} {n}" for code, n in reasons.most_common()))
    return int(failures > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1, help="mutated files at least, over all programs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=40, help="mutated files of a round")
    parser.add_argument("--program", choices=PROGRAMS, help="files of this program alone")
    parser.add_argument("--imports", choices=tuple(FORMS), help="sources of this importer alone")
    sys.exit(fuzz(parser.parse_args()))
