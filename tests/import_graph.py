"""What our modules import, at their top and late, read from the source without importing anything."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("med_assets", "assets", "resources", "sensors")


@dataclass(frozen=True, order=True)
class Import:
    """An import statement of one of our modules, and a module that it loads: one of ours, or a library by its first name."""

    module: str
    line: int
    loads: str


@cache
def modules() -> dict[str, Path]:
    """Our modules by name."""
    found = {"definitions": ROOT / "definitions.py"}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _loads(node: ast.stmt) -> Iterator[str]:
    """Modules that a statement loads: ours by their whole names, libraries by their first."""
    named: list[str] = []
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        named = [
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules() else f"{node.module}"
            for alias in node.names
        ]
    for name in named:
        yield name if name in modules() else name.partition(".")[0]


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
def imports(module: str) -> tuple[frozenset[Import], frozenset[Import]]:
    """The imports of one of our modules: those that run when it is imported, and those that run later, in functions."""
    top: set[Import] = set()
    late: set[Import] = set()
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(modules()[module].read_text(encoding="utf-8")), False)]
    while waiting:
        node, is_late = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            (late if is_late else top).update(Import(module, node.lineno, name) for name in _loads(node))
            continue
        inner = is_late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        children = node.orelse if isinstance(node, ast.If) and _is_type_checking(node) else ast.iter_child_nodes(node)
        waiting += [(child, inner) for child in children]
    return frozenset(top), frozenset(late)


@cache
def loaded_by(module: str) -> frozenset[str]:
    """All that importing one of our modules loads: our modules, itself among them, and libraries by their first names."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in modules():
            waiting += [each.loads for each in imports(name)[0]]
            if "." in name:
                waiting.append(name.rpartition(".")[0])
    return frozenset(found)
