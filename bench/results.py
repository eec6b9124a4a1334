"""Runs benches and keeps the last tables of each in `bench/RESULTS.md`: `python -m bench.results NAME [NAME ...]`.

Each section names the commit, the day and the load of the machine when the bench began: wall times of a busy machine mislead, so read ratios.
A bench that fails keeps its earlier section, and ends the command with 1 after the others.
"""

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Results of the benches

The last tables of each bench, made by `make bench`. Wall times hold for the machine and its load at that time; compare the ratios within a table.
"""
SECTION = re.compile(r"^## `bench\.(\w+)`\n.*?(?=^## `bench\.|\Z)", re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, str]:
    """The section of each bench, by name."""
    return {found[1]: found[0].strip() for found in SECTION.finditer(text)}


def page(found: dict[str, str]) -> str:
    """The whole page, benches by name."""
    return "\n\n".join([HEAD.strip(), *(found[name] for name in sorted(found))]) + "\n"


def section(name: str, tables: str, commit: str) -> str:
    """The section of a bench that ran at a commit: its tables, whose headings are one level lower, without what was printed before the first."""
    today, load = datetime.date.today().isoformat(), os.getloadavg()[0]
    found = re.search(r"^## .*", tables, re.MULTILINE | re.DOTALL)
    lower = re.sub(r"^## ", "### ", found[0].strip() if found else "", flags=re.MULTILINE)
    return f"## `bench.{name}`\n\nCommit {commit}, {today}, load {load:.1f} at the end.\n\n{lower}"


def main(names: list[str]) -> int:
    """Run the benches one after the other, print their tables and write the page after each."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    failed = []
    for name in names:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"bench.{name}"], stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            failed.append(name)
            continue
        found = sections(RESULTS.read_text()) if RESULTS.exists() else {}
        found[name] = section(name, done.stdout, commit.stdout.strip() or "unknown")
        RESULTS.write_text(page(found))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
