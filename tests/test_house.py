"""What holds for the whole repository: layers, style, documents that are true, nothing that fits one machine only."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest

from med_assets.cli.command_line import cli
from med_assets.cli.reference import reference
from med_assets.cli.tables_page import page
from med_assets.experiments import configuration as experiments
from med_assets.storage import preloaded
from tests.docs_blocks import ORDINARY, Block, blocks, forked_commands, run_block

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SKIPPED_FOLDERS = {".venv", ".git", ".hypothesis", "__pycache__", "build", "dist"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|farm|Users)/\w")
LANGUAGES = {"bash", "sh", "python", "sql", "yaml", "text", "mermaid"}


@cache
def source_files() -> tuple[Path, ...]:
    """Text files of the repository that a person wrote, found once; a folder as large as `.venv` is not entered."""
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".html", ""}
    found = []
    for folder, folders, names in os.walk(REPOSITORY):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.startswith(".med_assets")
            and not name.endswith((".egg-info", "_cache"))
        ]  # fmt: skip
        found += [
            path for name in names if name not in SKIPPED_FOLDERS and (path := Path(folder, name)).suffix in suffixes
        ]
    return tuple(sorted(found))


@cache
def text_of(path: Path) -> str:
    """The text of a source file, read once."""
    return path.read_text(encoding="utf-8", errors="replace")


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a development tool of this environment in the repository."""
    program = Path(sys.executable).parent / command[0]
    return subprocess.run([str(program), *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_layers_are_one_way_and_the_library_imports_no_dagster() -> None:
    done = tool("lint-imports")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    done = tool("ruff", "check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {match.group()}"
        for path in source_files()
        if path != Path(__file__)
        for match in MACHINE_PATH.finditer(text_of(path))
    ]
    assert not found


def test_no_source_file_is_longer_than_600_lines() -> None:
    long = [path.name for path in source_files() if path.suffix == ".py" and len(text_of(path).splitlines()) > 600]
    assert not long


TYPED = (
    "assets",
    "sensors",
    "med_assets/evaluation",
    "med_assets/promotion",
    "med_assets/monitoring",
    "med_assets/reporting",
)


def test_no_rows_as_dictionaries_cross_the_border_of_a_module() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for folder in TYPED
        for path in sorted((REPOSITORY / folder).glob("*.py"))
        if "dict[str, Any]" in text_of(path)
        for node in ast.walk(ast.parse(text_of(path)))
        if "dict[str, Any]" in typed(node)
    ]
    assert found == []


def typed(node: ast.AST) -> str:
    """The annotations of what other modules see of a function or class."""
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        arguments = node.args
        given = [each.annotation for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return "; ".join(ast.unparse(each) for each in (*given, node.returns) if each is not None)
    if isinstance(node, ast.ClassDef):
        return "; ".join(ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign))
    return ""


def test_only_the_catalog_opens_tables() -> None:
    found = [
        path.relative_to(REPOSITORY).as_posix()
        for package in ("med_assets", "assets", "sensors", "resources")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if ".lake" in text_of(path)
        and any(isinstance(node, ast.Attribute) and node.attr == "lake" for node in ast.walk(ast.parse(text_of(path))))
    ]
    # Whoever takes a lock sees what others wrote until then; it reads no table.
    assert found == ["med_assets/catalog.py", "med_assets/storage/locks.py"]


def test_every_exception_from_type_checks_and_lint_says_why() -> None:
    exception = re.compile(
        r"#\s*(?:type: ignore|noqa)\b(?P<codes>\[[\w, -]+\]|: [A-Z]+\d+(?:, [A-Z]+\d+)*)?(?P<rest>.*)"
    )
    unexplained = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in source_files()
        if path.suffix == ".py"
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if (found := exception.search(line))
        and path != Path(__file__)
        and not (found["codes"] and re.match(r"\s+(?:#|-)\s+\S+", found["rest"]))
    ]
    assert unexplained == []


def test_the_definitions_stay_under_60_lines() -> None:
    assert len((REPOSITORY / "definitions.py").read_text().splitlines()) < 60


def test_each_dependency_says_why_it_is_there() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        line = next(line for line in text.splitlines() if f'"{requirement}"' in line)
        assert "# " in line, f"{requirement} has no reason beside it"


def test_every_command_is_documented_as_it_is() -> None:
    assert (REPOSITORY / "docs" / "cli.md").read_text() == reference(), "docs/cli.md is out of date; run `make docs`"


def test_the_page_of_tables_is_that_of_the_records() -> None:
    assert (REPOSITORY / "docs" / "tables.md").read_text() == page(), "docs/tables.md is out of date; run `make docs`"


def test_every_command_and_argument_has_a_help_text() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        assert all(isinstance(param, click.Option | click.Argument) and param.help for param in command.params), name


def test_make_explains_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    for target in phony.split():
        assert re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE), target


def test_make_openkbp_trains_the_experiments_of_its_page() -> None:
    done = subprocess.run(
        ["make", "-n", "openkbp", "SRC=."], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    (trained,) = re.findall(r"-m assets\.run rt_dose (.+)$", done.stdout, re.MULTILINE)
    page = (REPOSITORY / "docs" / "openkbp.md").read_text()
    described = re.findall(
        r"^\| `(\w+)` \|", page.partition("## The record run")[2].partition("**The crude plan**")[0], re.MULTILINE
    )
    assert trained.split() == ["mean_dose", *described]
    assert set(trained.split()) <= set(experiments.names("rt_dose"))


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()
    assert "make test" in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `med-assets` that costs no imports."""
    return forked_commands(tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks_of_a_page_work_in_their_order(page: Path, tmp_path: Path, commands: Path) -> None:
    found = blocks(page)
    assert all(block.language in LANGUAGES for block in found)
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    for block in found:
        run_one(block, tmp_path, None if page.name == "README.md" else commands)  # a new user's are ordinary processes


def test_a_command_of_a_page_is_forked_and_is_what_an_ordinary_one_is(tmp_path: Path, commands: Path) -> None:
    def run(text: str, commands: Path | None) -> subprocess.CompletedProcess[str]:
        done = run_block(Block("bash", text, ""), tmp_path, REPOSITORY, commands)
        assert done is not None
        return done

    for text in (
        "med-assets --version",
        "med-assets no-such-command",
        "export S3_ENDPOINT_URL=x; med-assets cases no",
        """echo text | python -c 'import os, sys; print(sys.argv, __name__, sys.path[0] in ("", os.getcwd()), input()); sys.exit(3)' word""",
    ):
        forked, ordinary = run(text, commands), run(text, None)
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            ordinary.returncode, ordinary.stdout, ordinary.stderr
        )  # fmt: skip
    if preloaded.available():
        for text in ("med-assets --version", "python -c 'print(1)'"):
            assert ORDINARY in run(f"export LANGUAGE=of_this_block; {text}", commands).stderr


def test_a_page_with_files_has_a_test_that_writes_them() -> None:
    tests = " ".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    found = [page.name for page in PAGES if any(block.path for block in blocks(page))]
    assert "add-a-program.md" in found
    assert [name for name in found if f'"{name}"' not in tests] == []


def run_one(block: Block, folder: Path, commands: Path | None) -> None:
    """Run a block and fail with its own words."""
    done = run_block(block, folder, REPOSITORY, commands)
    if done is not None:
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert ORDINARY not in done.stderr, "it takes seconds longer"
