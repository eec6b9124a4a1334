"""A copy of the source in which a test does what a page of the documentation says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.docs_blocks import OF_THIS_PAGE, blocks

SOURCE = ("med_assets", "assets", "resources", "sensors", "conf", "definitions.py", "pyproject.toml")


class Tree:
    """A copy of the source; `made` and `edited` are the files that a page added and changed."""

    def __init__(self, folder: Path, page: str) -> None:
        self.folder, self.blocks = folder, blocks(REPOSITORY / "docs" / page)
        for name in SOURCE:
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPOSITORY / name, folder / name)

    def follow(self) -> None:
        """Write the files that the page gives, none of which is there, and put its entries at the begin of their tables."""
        for block in self.blocks:
            path = self.folder / block.path
            if block.into:
                content = path.read_text()
                (begin,) = re.finditer(rf"^{block.into}\b.*[({{\[]\n", content, re.MULTILINE)
                path.write_text(content[: begin.end()] + block.text + content[begin.end() :])
            elif block.path:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("x") as file:
                    file.write(block.text)

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

    def python(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python on the copy."""
        env = {**os.environ, "PYTHONPATH": str(self.folder), **more}
        return subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    def script(self, text: str) -> str:
        """Run Python code on the copy; returns what it printed."""
        done = self.python("-c", text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def med_assets(self, command: str) -> str:
        """Run a command of the command line on the copy; returns what it printed."""
        words = os.path.expandvars(command).replace('"', "").split()
        assert words[0] == "med-assets"
        done = self.python("-m", "med_assets.cli", *words[1:])
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _files(root: Path) -> list[Path]:
    top = [root / name for name in SOURCE]
    every = [path for one in top for path in ([one] if one.is_file() else one.rglob("*")) if path.is_file()]
    return [path for path in every if "__pycache__" not in path.parts]
