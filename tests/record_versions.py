"""What is recorded of each code version, and the command that records: `python -m tests.record_versions NAME... --reason TEXT`.

`tests/versions.json` has for each versioned function its version, the hash of the source that it reaches, why that was recorded, and
the hash of what it reaches in each module, which says where a change is.
"""

import argparse
import ast
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from med_assets.storage.versions import METHODS
from tests.reach import FUNCTIONS, Definition, Module, Package, label

REPOSITORY = Path(__file__).resolve().parent.parent
PLUMBING = {
    "errors": "says why there is no result",
    "storage.names": "refuses names",
    "settings": "what results depend on is in keys, by its value",
    "storage.versions": "is what this is about",
    "storage.artifacts": "keeps results, by key and hash",
    "storage.scratch": "keeps what is thrown away",
    "storage.provenance": "describes results",
    "storage.locks": "lets one process at a time in",
    "storage.files.disk_full_guard": "turns a full disk into an error",
    "storage.files.disk_full": "turns a full disk into an error",
    "storage.files.sync": "writes through to the disk",
    "storage.files.replacing": "lets a file appear whole",
    "storage.altered": "says when libraries are imported",
    "storage.lean_monai": "says when libraries are imported",
    "storage.lean_torchmetrics": "says when libraries are imported",
    "storage.progress": "says how far a stage is",
    "intake.reader": "has a process do what is covered where it is written",
    "intake.workers": "has several processes do what is covered where it is written",
    "launch.configuration": "says where a training runs, which is in no key",
    "launch.slurm": "says where a training runs, which is in no key",
    "launch.local": "says where a training runs, which is in no key",
    "evaluation.predicting.predict_cases": "has a job predict, whose code is covered there",
    "program.get": "finds a program by its name",
    "program.REGISTRY": "finds a program by its name",
    "program.Program.__init_subclass__": "gathers facts and versions",
}
"""Modules, and names in modules, below the package that are not followed, as no result depends on how they do what they do."""

PACKAGE, RECORD = REPOSITORY / "med_assets", REPOSITORY / "tests" / "versions.json"


@dataclass(frozen=True)
class Versioned:
    """A version as the source has it: `program/stage`, or module and function below the package; and the functions that it covers."""

    name: str
    version: str
    place: str
    """File and line."""
    roots: tuple[Definition, ...]


@dataclass(frozen=True)
class Entry:
    """What is known of a version: `sources` has a hash of what it reaches in each module, and `hash` is that of all."""

    version: str
    hash: str
    reason: str
    sources: Mapping[str, str]


def _marks(module: Module) -> Iterator[tuple[str, str, str, int]]:
    """Yield kind of the mark, its text, the name of what it stands at, and the line."""
    for nodes in list(module.definitions.values()):
        for node in nodes:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                yield from _of(node, node.name)
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, FUNCTIONS):
                        yield from _of(method, f"{node.name}.{method.name}")


def _of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str) -> Iterator[tuple[str, str, str, int]]:
    for mark in node.decorator_list:
        if (kind := label(mark)) in ("versioned", "part_of"):
            if not (isinstance(mark, ast.Call) and len(mark.args) == 1 and isinstance(mark.args[0], ast.Constant)):
                raise ValueError(f"expected the text of @{kind} at {name} itself, got an expression")
            yield kind, str(mark.args[0].value), name, mark.lineno


class Code:
    """The versions that stand in the source of a package."""

    def __init__(self, root: Path = PACKAGE) -> None:
        self.package = Package(root)

    @cached_property
    def versions(self) -> dict[str, Versioned]:
        """The versions by name. Raises ValueError for a part of a version that there is not."""
        found: dict[str, Versioned] = {}
        parts: dict[str, list[Definition]] = defaultdict(list)
        stages = {method: stage for stage, method in METHODS.items()}
        for module in self.package.modules("med_assets.storage.versions import"):
            below = module.name.split(".")[1:]
            for kind, text, name, line in _marks(module):
                here = Definition(module.name, name)
                place = f"{module.path.relative_to(self.package.root.parent).as_posix()}:{line}"
                method = name.rpartition(".")[2]
                if kind == "part_of":
                    parts[text].append(here)
                elif "." in name and below[:1] == ["programs"] and method in stages:
                    key = f"{below[1]}/{stages[method]}"
                    found[key] = Versioned(key, text, place, (here,))
                else:
                    key = ".".join([*below, name])
                    found[key] = Versioned(key, text, place, (here,))
        covered = {name: [name, name.rpartition("/")[2]] for name in found}
        if lost := parts.keys() - {owner for owners in covered.values() for owner in owners}:
            raise ValueError(
                f"expected @part_of to name a stage or a version among {sorted(found)}, got {sorted(lost)}"
            )
        return {
            name: Versioned(name, one.version, one.place, (*one.roots, *(part for owner in covered[name] for part in parts[owner])))
            for name, one in sorted(found.items())
        }  # fmt: skip

    def covered(self, name: str) -> dict[Definition, str]:
        """All that a version covers, each with the hash of its source."""
        plumbing = {f"{self.package.name}.{one}" for one in PLUMBING}
        return self.package.reached(self.versions[name].roots, plumbing)

    def entry(self, name: str, reason: str = "") -> Entry:
        """What a version is now."""
        one = self.versions[name]
        by_module: dict[str, list[str]] = defaultdict(list)
        for definition, content in sorted(self.covered(name).items()):
            by_module[definition.module].append(f"{definition.name} {content}")
        sources = {module: _hash(lines)[:12] for module, lines in sorted(by_module.items())}
        return Entry(one.version, _hash(f"{module} {text}" for module, text in sources.items())[:16], reason, sources)


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read(path: Path = RECORD) -> dict[str, Entry]:
    """Return what is recorded, by name."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: Entry(**fields) for name, fields in content.items()}


def write(entries: Mapping[str, Entry], path: Path = RECORD) -> None:
    """Write what is recorded."""
    content = {name: vars(entry) for name, entry in sorted(entries.items())}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def changed(code: Code, recorded: Mapping[str, Entry]) -> dict[str, str]:
    """Return, for each version that is not as it is recorded, what differs."""
    found = dict.fromkeys(recorded.keys() - code.versions.keys(), "is recorded, and is no longer in the code")
    for name, one in code.versions.items():
        before = recorded.get(name)
        now = code.entry(name)
        if before is None:
            found[name] = f'({one.place}) is new: "{now.version}"'
        elif (before.version, before.hash) != (now.version, now.hash):
            modules = sorted(
                module for module in before.sources.keys() | now.sources.keys()
                if before.sources.get(module) != now.sources.get(module)
            )  # fmt: skip
            raised = f'"{before.version}"' + (f' -> "{now.version}"' if before.version != now.version else "")
            found[name] = f"({one.place}) {raised}: {', '.join(modules) or 'the same code'}"
    return dict(sorted(found.items()))


def advice(found: Mapping[str, str]) -> str:
    """What to do about versions that are not as they are recorded."""
    lines = "\n".join(f"  {name} {what}" for name, what in found.items())
    return (
        f"the code that {len(found)} versions cover is not as it is recorded:\n{lines}\n"
        "If results change, raise the version in its @versioned. Then, and where they do not, record it with the reason:\n"
        f'  python -m tests.record_versions {" ".join(found)} --reason "why results are the same, or what changed"'
    )


def main(arguments: list[str] | None = None, code: Code | None = None, path: Path = RECORD) -> int:
    """Record the named versions; without a name the only one that changed, or list them where there are several."""
    parser = argparse.ArgumentParser(prog="python -m tests.record_versions", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="versions to record, such as rt_dose/prepare")
    parser.add_argument("--reason", default="", help="why results are the same, or what the raised version changed")
    parser.add_argument(
        "--list", action="store_true", help="print the names that are not as recorded, and record nothing"
    )
    options = parser.parse_args(arguments)
    code, recorded = code or Code(), read(path)
    found = changed(code, recorded)
    if options.list:
        print("\n".join(found))
        return 0
    if unknown := sorted(set(options.names) - found.keys()):
        parser.error(f"expected versions that are not as recorded, among {list(found) or 'none'}, got {unknown}")
    names = options.names or list(found)
    if not options.names and len(found) > 1:
        print(advice(found), file=sys.stderr)
        return 1
    if names and not options.reason.strip():
        parser.error("expected --reason with why results are the same, or what the raised version changed; got none")
    for name in names:
        before = recorded.pop(name, None)
        if name in code.versions:
            version = code.versions[name].version
            what = "result unchanged" if before and before.version == version else f"version {version}"
            recorded[name] = code.entry(name, f"{what}: {options.reason.strip()}")
    write(recorded, path)
    print("\n".join(f"recorded {name}" for name in names) or "every version is as it is recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
