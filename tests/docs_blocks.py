"""Code blocks of the documentation, found and run.

A `bash` block runs in an empty folder with a temporary home, the demo's settings, and `med-assets` on the PATH;
variables that a block sets hold for the rest of its page. With `forked_commands` that `med-assets`, and `python`, are forked from parents of all
tests, which have imported what they use. Lines with `make` are only checked to name a target that
exists, since they would install or train. A block with `<!-- needs: ... -->` above it needs something that is not in
the repository; its commands are then only parsed by the command itself. A block below the name of a file, as
in "`conf/x.yaml`:", is the content of that file, one below "A line in `NAME` of `x.py`:" belongs into that table, and a block
that needs what its own page makes is run when these are there: a test of that page does all of it.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from med_assets.cli.command_line import cli
from med_assets.storage import preloaded

FENCE = re.compile(
    r"(?:^(?:[^\n]* in `(?P<into>\w+)` of )?`(?P<path>[\w./]+)`:\n\n)?(?:<!-- needs: (?P<needs>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
OF_THIS_PAGE = "of this page"
STATE = ".page-env"
VARIABLES = "{ export -p; declare -p | grep '^declare -- [a-z]' || true; }"
"""Writes what a block exports, and the variables that it sets, whose names are of small letters."""

ORDINARY = "an ordinary process"
"""What a command says on stderr that could not be forked, such as one whose page exports a variable that imports may read."""

CLIENT = """#!{python} -IS
import os, sys
sys.path.insert(0, {repository!r})
from med_assets.storage import preloaded
{command}
environment = {{**os.environ, "PATH": {path!r}}}
os.environ[preloaded.VARIABLE] = {parents!r}
process = preloaded.start(command, environment, stdin=0, tied=True)
if not isinstance(process, preloaded.Forked):
    print("{ordinary}", file=sys.stderr)
code = process.wait()
sys.exit(code if code >= 0 else 128 - code)
"""
"""A program whose process is forked; without site packages, since it starts for each command."""

MED_ASSETS = 'command = [sys.executable, "-P", "-m", "med_assets.cli", *sys.argv[1:]]'
PYTHON = """
path = "import os; os.environ['PATH'] = " + repr(os.environ["PATH"])
match sys.argv[1:]:
    case ["-c", code, *words]:
        pass
    case ["-m", "med_assets.storage.s3.local" as module, *words]:
        code = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    case _:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
command = [sys.executable, "-m", "tests.code", "0", f"{path}\\n{code}", *words]
"""
"""What `med-assets` and `python` of a page start. The processes of the second have the programs of the page, as any other."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, what it needs that a test does not have, and the file that it is the content of, or of a
    table in which it is an entry."""

    language: str
    text: str
    needs: str
    path: str = ""
    into: str = ""


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, in order."""
    return [
        Block(found["language"], found["text"], found["needs"] or "", found["path"] or "", found["into"] or "")
        for found in FENCE.finditer(page.read_text())
    ]


def _commands(text: str) -> list[str]:
    return [
        line.strip()
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


def _check_make(line: str, repository: Path) -> None:
    for target in [word for word in shlex.split(line, comments=True)[1:] if "=" not in word]:
        assert re.search(rf"^{target}:", (repository / "Makefile").read_text(), re.MULTILINE), (
            f"no such target: make {target}"
        )


def _check_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    if "med-assets" in words:
        name, *rest = words[words.index("med-assets") + 1 :]
        cli.commands[name].make_context(name, rest)


def forked_commands(folder: Path) -> Path:
    """Put into a folder, which is returned, `med-assets` and `python` whose processes are forked where this system has parents for them."""
    if parents := os.environ.get(preloaded.VARIABLE):
        for name, command in {"med-assets": MED_ASSETS, "python": PYTHON}.items():
            text = CLIENT.format(
                python=sys.executable, repository=str(preloaded.ROOT), parents=parents, path=os.environ["PATH"],
                ordinary=ORDINARY, command=command,
            )  # fmt: skip
            (folder / name).write_text(text)
            (folder / name).chmod(0o700)
    return folder


def run_block(
    block: Block, folder: Path, repository: Path, commands: Path | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run one block in the folder of its page, with the programs of `commands` if given; None when there was nothing to run."""
    if block.path or OF_THIS_PAGE in block.needs:
        return None
    if block.language == "python":
        return _run(["python" if commands else sys.executable, "-c", block.text], folder, commands)
    if block.language not in ("bash", "sh"):
        return None
    runnable = []
    for line in _commands(block.text):
        if line.startswith("make "):
            _check_make(line, repository)
        elif block.needs:
            _check_parses(line)
        else:
            runnable.append(line)
    if not runnable:
        return None
    script = "\n".join(["set -eu", f"test ! -f {STATE} || source ./{STATE}", *runnable, f"{VARIABLES} > {STATE}"])
    return _run(["bash", "-c", script], folder, commands)


def _run(command: list[str], folder: Path, commands: Path | None) -> subprocess.CompletedProcess[str]:
    env = _environment(commands) | {
        "MED_ASSETS_HOME": str(folder / ".med_assets"),
        "MED_ASSETS_PSEUDONYM_KEY": "a-key-that-only-the-tests-know",
        "MED_ASSETS_PURPOSE": "demo",
        "MED_ASSETS_PROFILE": "demo",
    }
    if commands:
        env["MED_ASSETS_WORKERS"] = "1"  # batches are small here, and each process costs its imports
        env[preloaded.VARIABLE] = os.environ.get(preloaded.VARIABLE, "")  # for the readers and jobs of its commands
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=500)


def _environment(commands: Path | None) -> dict[str, str]:
    """What the processes of a page have whatever their home."""
    path = (commands, Path(sys.executable).parent, os.environ["PATH"])
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("MED_ASSETS_", "DAGSTER_HOME"))
    }
    return outside | {"PATH": os.pathsep.join(str(each) for each in path if each)}
