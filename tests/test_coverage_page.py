"""docs/coverage.md names only tests, commands, settings, assets and pages that there are, and its summary counts its rows.

`python -m tests.test_coverage_page` writes the summary anew.
"""

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

from med_assets import program
from med_assets.cli.command_line import cli
from med_assets.experiments.configuration import model_of
from med_assets.storage.files import read_yaml
from tests.conftest import DRILL_FIXTURES, REPOSITORY

PAGE = REPOSITORY / "docs" / "coverage.md"
LAST_LINES = {"000": 109, "001": 392, "002": 316, "003": 1097, "004": 353}
"""Lines of each document."""

STATES = ("works", "works, by a drill", "works, seen in the demo", "works, not run", "other, on purpose", "not built")
WITH_TEXT = {
    "works, not run": "works, not run on ",
    "other, on purpose": "other, on purpose: ",
    "not built": "not built: ",
}
SHOWN = ("works", "works, by a drill", "works, not run")
"""States in which a test shows the feature."""

UNKNOWN = object()
"""In place of a value that is not there."""

SUMMARY = re.compile(r"^\| document \|.*?(?=\n\n)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One feature: the section it is in, the lines (or the program) that ask for it, where it is, and what shows it."""

    section: str
    lines: str
    feature: str
    place: str
    shown_by: str
    state: str

    @property
    def kind(self) -> str:
        """The state without its text."""
        for kind, start in WITH_TEXT.items():
            if self.state.startswith(start) and len(self.state) > len(start):
                return kind
        return self.state

    @property
    def tokens(self) -> list[str]:
        """What stands in backticks in the columns that name things."""
        return re.findall(r"`([^`]+)`", f"{self.place} {self.shown_by}")


def rows_of(text: str) -> list[Row]:
    """The rows of all tables below a heading of a document, in their order."""
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        if not title.startswith(("Document ", "Beside ")):
            continue
        for line in section.splitlines():
            if line.startswith("| ") and not line.startswith(("| line |", "| program |")):
                found.append(Row(title, *(cell.strip() for cell in line.strip("|").split("|"))))
    return found


def summary_of(rows: list[Row]) -> str:
    """The table of counts, a line for each section and one for all."""
    counts = Counter((row.section, row.kind) for row in rows)
    lines = [f"| document | {' | '.join(STATES)} | all |", "|---" * (len(STATES) + 2) + "|"]
    for section in [*dict.fromkeys(row.section for row in rows), ""]:
        own = [sum(n for (of, kind), n in counts.items() if kind == state and section in ("", of)) for state in STATES]
        lines.append(f"| {section or 'all'} | {' | '.join(map(str, own))} | {sum(own)} |")
    return "\n".join(lines)


ROWS = rows_of(PAGE.read_text()) if PAGE.is_file() else []


@cache
def functions_of(path: str) -> dict[str, ast.FunctionDef]:
    """The test functions of a file by name."""
    tree = ast.parse((REPOSITORY / path).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def is_drill(test: str) -> bool:
    """Whether `make test` leaves a test out, by its mark or its fixtures; or it skips without real cases."""
    path, _, name = test.partition("::")
    node = functions_of(path)[name]
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    return bool(marks & {"pytest.mark.drill", "pytest.mark.real_data"}) or bool(
        DRILL_FIXTURES & {argument.arg for argument in node.args.args}
    )


def objection_to_command(text: str) -> str:
    """Why a command line is none; empty if it is one. Options without values, and KEY=VALUE, may follow."""
    command: Any = cli
    _, *words = text.split()
    while isinstance(command, click.Group):
        if not words or words[0] not in command.commands:
            return f"no such command: {text}"
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and word not in options:
            return f"no option {word} of {text}"
        name, _, experiment = word.partition("/")
        if experiment and name in program.registered() and not is_experiment(word):
            return f"no such experiment: {text}"
    return ""


def is_experiment(text: str) -> bool:
    name, _, experiment = text.partition("/")
    return name in program.registered() and (REPOSITORY / "conf" / name / f"{experiment}.yaml").is_file()


def is_asset(text: str) -> bool:
    return text in json.loads((REPOSITORY / "tests" / "graph_snapshot.json").read_text())["assets"]


def models_in(kind: Any) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in models_in(part)]


def is_setting(text: str) -> bool:
    """Whether `a.b` is a field of the experiments of some program, or stands in what they share."""
    for name in program.registered():
        shared = read_yaml(REPOSITORY / "conf" / name / "_base.yaml")
        for part in text.split("."):
            shared = shared.get(part, UNKNOWN) if isinstance(shared, dict) else UNKNOWN
        if shared is not UNKNOWN:
            return True
        models: list[type[BaseModel]] = [model_of(name)]
        for number, part in enumerate(parts := text.split("."), 1):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            if not fields:
                break
            if number == len(parts):
                return True
            models = [model for field in fields for model in models_in(field.annotation)]
    return False


def is_target(text: str) -> bool:
    return (
        re.search(rf"^{text.removeprefix('make ')}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE) is not None
    )


@cache
def checks() -> set[str]:
    """Names of the asset checks of the graph."""
    sources = "".join(path.read_text() for path in (REPOSITORY / "assets").glob("*.py"))
    return set(re.findall(r"\b(?:informing|blocking)\(\s*\"(\w+)\"", sources))


def objection(token: str) -> str:
    """Why what stands in backticks is nothing that there is; empty if it is."""
    if token.startswith("tests/"):
        path, _, name = token.partition("::")
        there = (REPOSITORY / path).is_file() and name in functions_of(path)
        return "" if there and name.startswith("test_") else f"no such test: {token}"
    if token.startswith("med-assets "):
        return objection_to_command(token)
    if token.startswith("make "):
        return "" if is_target(token) else f"no such target: {token}"
    if token.startswith("--"):
        options = {name for command in cli.commands.values() for one in command.params for name in one.opts}
        return "" if token in options else f"no command has the option {token}"
    if re.fullmatch(r"[A-Z][A-Z0-9_]+", token):
        known = (REPOSITORY / "docs" / "settings.md").read_text()
        return "" if f"`{token}`" in known else f"no such variable in docs/settings.md: {token}"
    if token.startswith("conf/"):
        return "" if (REPOSITORY / token).exists() else f"no such file: {token}"
    if "/" in token:
        return "" if is_experiment(token) or is_asset(token) else f"no such experiment or asset: {token}"
    return "" if token in checks() or is_setting(token) else f"no such setting or check: {token}"


def test_the_page_has_rows_of_every_document() -> None:
    assert [title.split(":")[0] for title in dict.fromkeys(row.section for row in ROWS)] == [
        *(f"Document {name}" for name in LAST_LINES),
        "Beside the documents",
    ]


@pytest.mark.parametrize("section", list(dict.fromkeys(row.section for row in ROWS)))
def test_all_that_a_table_names_is_there(section: str) -> None:
    found = [
        f"{row.lines} {row.feature}: {message}"
        for row in ROWS
        if row.section == section
        for token in row.tokens
        if (message := objection(token))
    ]
    assert found == []


def test_every_row_has_a_state_and_what_shows_it() -> None:
    found = []
    for row in ROWS:
        tests = [token for token in row.tokens if token.startswith("tests/")]
        if row.kind not in STATES:
            found.append(f"{row.feature}: no such state: {row.state}")
        elif row.kind in SHOWN and not tests:
            found.append(f"{row.feature}: no test shows it")
        elif row.kind == "works" and all(map(is_drill, tests)):
            found.append(f"{row.feature}: `make test` runs none of its tests")
        elif row.kind == "works, by a drill" and not any(map(is_drill, tests)):
            found.append(f"{row.feature}: none of its tests is a drill")
        elif row.kind == "works, seen in the demo" and "make demo" not in row.tokens:
            found.append(f"{row.feature}: the demo is not named")
        elif row.kind == "not built" and (row.place or row.shown_by):
            found.append(f"{row.feature}: what is not built has no place")
    assert found == []


def test_lines_are_those_of_their_document_and_in_order() -> None:
    found = []
    for row in ROWS:
        if row.section.startswith("Beside"):
            if row.lines not in (*program.registered(), "all"):
                found.append(f"{row.feature}: no such program: {row.lines}")
            continue
        last = LAST_LINES[row.section.split()[1].strip(":")]
        ends = [int(number) for number in re.findall(r"\d+", row.lines)]
        if re.fullmatch(r"\d+(-\d+)?(, \d+(-\d+)?)*", row.lines) is None or ends != sorted(ends) or ends[-1] > last:
            found.append(f"{row.feature}: lines {row.lines} of {last}")
    assert found == []


def test_no_feature_is_listed_twice() -> None:
    counts = Counter((row.section, row.lines, row.feature) for row in ROWS)
    assert [key for key, n in counts.items() if n > 1] == []


def test_the_summary_counts_the_rows() -> None:
    assert summary_of(ROWS) in PAGE.read_text(), "run python -m tests.test_coverage_page"


def test_pages_that_the_tables_name_are_there() -> None:
    found = {link for row in ROWS for link in re.findall(r"\]\(([\w./-]+)\)", f"{row.place} {row.shown_by}")}
    assert found
    assert [link for link in sorted(found) if not (PAGE.parent / link).is_file()] == []


if __name__ == "__main__":
    page = Path(PAGE)
    page.write_text(SUMMARY.sub(lambda _: summary_of(ROWS), page.read_text(), count=1))
