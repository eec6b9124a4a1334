"""A copy of the source in which a test does what a page of the documentation says."""

import json
import os
import re
import shutil
import socket
import subprocess
import weakref
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

from med_assets.intake import reader
from med_assets.launch.jobs import PRELOADED
from med_assets.storage import preloaded
from tests import fresh
from tests.conftest import REPOSITORY
from tests.docs_blocks import OF_THIS_PAGE, blocks

SOURCE = ("med_assets", "assets", "resources", "sensors", "conf", "definitions.py", "pyproject.toml")

COMMANDS = """
import json, sys
from med_assets.cli.main import main

for words in json.loads(sys.argv[1]):
    if code := main(words):
        sys.exit(f"med-assets {' '.join(words)}: exit status {code}")
"""
"""Commands one after another."""

PARENT = """
import os, runpy, sys
sys.argv.insert(2, str(os.getppid()))
sys.path.insert(0, sys.path[0])
runpy.run_module("med_assets.storage.preloaded", run_name="__main__", alter_sys=True)
"""
"""A parent of the jobs that commands start: it has the code of the copy, and the libraries of the one that it is forked from."""


class Tree:
    """A copy of the source; `made` and `edited` are the files that a page added and changed."""

    def __init__(self, folder: Path, page: str) -> None:
        self.folder, self.text = folder, (REPOSITORY / "docs" / page).read_text()
        self.blocks = blocks(REPOSITORY / "docs" / page)
        for name in SOURCE:
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, folder / name)  # with what is compiled, so that a process need not
            else:
                shutil.copy(REPOSITORY / name, folder / name)

    def follow(self) -> None:
        """Write the files that the page gives, none of which is there, and put its entries into the tables and classes that it names."""
        for block in self.blocks:
            path = self.folder / block.path
            if block.into:
                path.write_text(_with_entry(path.read_text(), block.into, block.text))
            elif block.path:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("x") as file:
                    file.write(block.text)

    def raise_version(self, path: str, function: str) -> None:
        """Raise the version that stands at a function."""
        content = (self.folder / path).read_text()
        mark = re.compile(rf'(@versioned\("\d+)("\)\n\s*def {function}\b)')
        assert len(mark.findall(content)) == 1
        (self.folder / path).write_text(mark.sub(r"\g<1>0\2", content))

    def listed(self) -> set[str]:
        """The files that the page's table of files has."""
        rows = self.text.partition("\n| file | what |\n")[2].partition("\n\n")[0]
        return set(re.findall(r"^\| `([\w./]+)` \|", rows, re.MULTILINE))

    def commands(self) -> list[str]:
        """The blocks of commands that need what the page makes."""
        return [block.text for block in self.blocks if block.language == "bash" and OF_THIS_PAGE in block.needs]

    def changed(self) -> dict[str, str]:
        """Files that differ from the source, with "added", "edited" or "removed"."""
        mine, source = ({path.relative_to(root): path for path in _files(root)} for root in (self.folder, REPOSITORY))
        found = {path: "added" if path not in source else "removed" for path in mine.keys() ^ source.keys()}
        found |= {
            path: "edited"
            for path in mine.keys() & source.keys()
            if mine[path].read_bytes() != source[path].read_bytes()
        }
        return {path.as_posix(): how for path, how in sorted(found.items())}

    def python(self, code: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python code on the copy, in a process that has nothing of the repository or of another copy."""
        return fresh.run(self.folder, code, *words, **self._parents, **more)

    def script(self, text: str) -> str:
        """Run Python code on the copy; returns what it printed."""
        done = self.python(text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def med_assets(self, *commands: str) -> str:
        """Run commands of the command line on the copy, which all work; returns what they printed."""
        done = self.try_med_assets(*commands)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def try_med_assets(self, *commands: str) -> subprocess.CompletedProcess[str]:
        """Run commands one after another in one process, until one fails: a process takes longer to start than most commands."""
        lines = [os.path.expandvars(command).replace('"', "").split() for command in commands]
        assert all(words[0] == "med-assets" for words in lines)
        return self.python(COMMANDS, json.dumps([words[1:] for words in lines]))

    @cached_property
    def _parents(self) -> dict[str, str]:
        """The variable that names parents of trainings and of readers, as `preloaded.parents` gives it; they end with this object."""
        folder = mkdtemp(prefix="preloaded-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._running = []
        for module, names in (PRELOADED | reader.PRELOADED).items():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(f"{folder}/{module}")
                listener.listen(64)
                file = listener.fileno()
                self._running.append(fresh.start(self.folder, PARENT, str(file), module, *names, keep=[file]))
        return {preloaded.VARIABLE: folder}


def _with_entry(content: str, name: str, text: str) -> str:
    """A source with imports added, and an entry at the end of a table, below the docstring of a class, or below a key of YAML."""
    imports = "".join(line for line in text.splitlines(keepends=True) if line.startswith(("from ", "import ")))
    entry = text.removeprefix(imports)
    table = rf"^{name}\b[^\n]*[({{\[]\n.*?(?=^[)}}\]])"
    of_class = rf'^class {name}\b[^\n]*:\n    """.*?"""\n'
    (found,) = re.finditer(rf"{table}|{of_class}|^{name}:\n", content, re.MULTILINE | re.DOTALL)
    content = content[: found.end()] + entry + content[found.end() :]
    first = re.search(r"^(from|import) ", content, re.MULTILINE) if imports else None
    return content[: first.start()] + imports + content[first.start() :] if first else content


def _files(root: Path) -> list[Path]:
    top = [root / name for name in SOURCE]
    every = [path for one in top for path in ([one] if one.is_file() else one.rglob("*")) if path.is_file()]
    return [path for path in every if "__pycache__" not in path.parts]
