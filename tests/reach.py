"""What a function reaches inside a package, found in the source without importing it, and a hash of that.

The unit is a top-level function, constant or class, and the single method. Names are followed through imports, also late ones, to where
they are defined. A class that is named brings its fields, and those of its methods whose names occur as an attribute
anywhere in what is reached; all of them where a library calls them, as in a module of torch; none that has a version of its own, since
that is in the key of what is made of its results. Comments, docstrings, formatting and
the annotations of functions do not count. What is imported by a computed name is not followed.
"""

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

MARKS = {"versioned", "part_of"}
"""Decorators that say something about a function to the test of the versions, and change nothing."""

PLAIN_BASES = {"ABC", "Protocol", "Generic", "object"}
"""Bases outside the package that call no method of a class."""

MODEL_BASES = {"BaseModel"}
"""Bases outside the package for which fields do what their annotations say, and that call decorated methods only."""

PLAIN_DECORATORS = {"property", "cached_property", "staticmethod", "classmethod", "abstractmethod", "override", *MARKS}
"""Decorators that leave it to callers to call a method, by its name."""


@dataclass(frozen=True, order=True)
class Definition:
    """A top-level name of a module, `Class.method`, or "" for the statements that run when the module is imported."""

    module: str
    name: str


@dataclass
class Facts:
    """What nodes of a module are made of: a hash of them, and what they name."""

    hash: str
    chains: set[tuple[str, ...]] = field(default_factory=set)
    """Global names with the attributes that follow them."""
    attributes: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    imports: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    """Late imports by the name they bind: module and, unless it is a module that is bound, name."""


def label(node: ast.expr) -> str:
    """Return the last name of a decorator or base."""
    if isinstance(node, ast.Call | ast.Subscript):
        return label(node.func if isinstance(node, ast.Call) else node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def without_docstring(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return statements without texts that stand alone."""
    return [
        one
        for one in body
        if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str))
    ]


UNSEEN = {"ctx", "kind", "type_comment", "returns", "type_params"}
"""Fields of nodes that change no result, or that not every version of Python has."""


def normalise(node: ast.AST, words: list[str], parent: ast.AST | None = None) -> None:
    """Append the words of a node: the same for the same code in another formatting and with other comments."""
    words.append(type(node).__name__)
    for name in node._fields:
        value = getattr(node, name, None)
        if name in UNSEEN or (value is None and name != "value"):
            continue
        if name == "annotation" and not (isinstance(node, ast.AnnAssign) and isinstance(parent, ast.ClassDef)):
            continue
        if isinstance(value, ast.AST):
            words.append(name)
            normalise(value, words, node)
        elif isinstance(value, list):
            if name == "body":
                value = without_docstring(value)
            elif name == "decorator_list":
                value = [one for one in value if label(one) not in MARKS]
            words.append(f"{name} {len(value)}")
            for one in value:
                if isinstance(one, ast.AST):
                    normalise(one, words, node)
                else:
                    words.append(repr(one))
        else:
            words.append(f"{name} {type(value).__name__} {value!r}")


def bound(scope: ast.AST) -> set[str]:
    """Return the names that are local to a function, a lambda or a comprehension, without those that it imports."""
    found: set[str] = set()
    shared: set[str] = set()
    todo: list[ast.AST] = []
    if isinstance(scope, (*FUNCTIONS, ast.Lambda)):
        given = scope.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        found |= {one.arg for one in every if one is not None}
        todo += scope.body if isinstance(scope.body, list) else [scope.body]
    else:
        todo += [one.target for one in scope.generators]  # type: ignore[attr-defined]  # only comprehensions come here
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Global):
            shared |= set(node.names)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            found.add(node.name)
        if isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        if isinstance(node, COMPREHENSIONS):
            inner = [one for one in ast.walk(node) if isinstance(one, ast.NamedExpr)]
            found |= {one.target.id for one in inner}
        elif not isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)
    return found - shared


class Reader(ast.NodeVisitor):
    """Gathers the facts of nodes."""

    def __init__(self, facts: Facts, module: "Module") -> None:
        self.facts, self.module = facts, module
        self.scopes: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        self.chain(node.id, ())

    def visit_Attribute(self, node: ast.Attribute) -> None:
        names, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            names.append(value.attr)
            value = value.value
        self.facts.attributes.update(names)
        if isinstance(value, ast.Name):
            self.chain(value.id, tuple(reversed(names)))
        else:
            self.visit(value)

    def chain(self, name: str, attributes: tuple[str, ...]) -> None:
        """Note a name that is not local."""
        if not any(name in scope for scope in self.scopes):
            self.facts.chains.add((name, *attributes))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.facts.strings.add(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        self.visit(node.value)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, target in self.module.imported(node):
            self.facts.imports[name].add(target)

    visit_ImportFrom = visit_Import

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: Function | ast.Lambda) -> None:
        if not isinstance(node, ast.Lambda):
            for one in node.decorator_list:
                if label(one) not in MARKS:
                    self.visit(one)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        body = node.body if isinstance(node.body, list) else [node.body]
        self.within(node, without_docstring(body) if isinstance(node.body, list) else body)

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def comprehension(self, node: ast.AST) -> None:
        self.within(node, list(ast.iter_child_nodes(node)))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = comprehension

    def within(self, node: ast.AST, parts: Iterable[ast.AST]) -> None:
        """Visit the parts of a node that has local names of its own."""
        self.scopes.append(bound(node))
        for one in parts:
            self.visit(one)
        self.scopes.pop()


def is_false_at_run_time(test: ast.expr) -> bool:
    """Whether a condition at the top of a module never holds in an import: TYPE_CHECKING, or being the main module."""
    return label(test) == "TYPE_CHECKING" or (isinstance(test, ast.Compare) and label(test.left) == "__name__")


@cache
def statements(source: str) -> list[ast.stmt]:
    """Return the statements of a source, without its docstring. Copies of a package have most sources in common."""
    return without_docstring(ast.parse(source).body)


@cache
def known_facts(module: str, is_package: bool, source: str) -> dict[str, Facts]:
    """Return the facts of definitions that are known of a source, by name: they follow from it and from the name of its module alone."""
    return {}


class Module:
    """The source of one module: what its top-level names are bound to."""

    def __init__(self, package: "Package", name: str, path: Path) -> None:
        self.package, self.name, self.path = package, name, path
        self.definitions: dict[str, list[ast.stmt]] = defaultdict(list)
        self.imports: dict[str, tuple[str, str]] = {}
        source = path.read_text(encoding="utf-8")
        self._known = known_facts(name, path.name == "__init__.py", source)
        self._facts: dict[str, Facts] = {}
        for node in statements(source):
            self._add(node)

    def _add(self, node: ast.stmt) -> None:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imports |= dict(self.imported(node))
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            self.definitions[node.name].append(node)
        elif targets and all(isinstance(one, ast.Name | ast.Tuple) for one in targets):
            for one in targets:
                for name in ast.walk(one):
                    if isinstance(name, ast.Name):
                        self.definitions[name.id].append(node)
        elif not (isinstance(node, ast.If) and is_false_at_run_time(node.test)):
            self.definitions[""].append(node)
            for one in ast.walk(node):
                if isinstance(one, ast.Import | ast.ImportFrom):
                    self.imports |= dict(self.imported(one))
                elif isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                    self.definitions[one.id].append(node)

    def imported(self, node: ast.Import | ast.ImportFrom) -> list[tuple[str, tuple[str, str]]]:
        """Return the names that an import binds, each with module and name, which is empty for a module."""
        if isinstance(node, ast.Import):
            return [
                (one.asname or one.name.split(".")[0], (one.name if one.asname else one.name.split(".")[0], ""))
                for one in node.names
            ]
        source = node.module or ""
        if node.level:
            parts = self.name.split(".")
            base = parts[: len(parts) - node.level + (self.path.name == "__init__.py")]
            source = ".".join([*base, *([source] if source else [])])
        return [(one.asname or one.name, (source, one.name)) for one in node.names]

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """The top-level classes by name."""
        every = [one for nodes in self.definitions.values() for one in nodes]
        return {one.name: one for one in every if isinstance(one, ast.ClassDef)}

    @cache  # noqa: B019 - a package lives as long as its modules
    def members(self, name: str) -> dict[str, list[ast.stmt]]:
        """Return what a class has under each name that a caller has to use to reach it: methods, and values without annotation."""
        found: dict[str, list[ast.stmt]] = defaultdict(list)
        for node in self.classes[name].body:
            if isinstance(node, FUNCTIONS):
                found[node.name].append(node)
            elif isinstance(node, ast.Assign) and all(isinstance(one, ast.Name) for one in node.targets):
                for one in node.targets:
                    found[one.id].append(node)  # type: ignore[attr-defined]  # all are names
        return found

    def facts(self, name: str) -> Facts:
        """Return the facts of a definition."""
        if name not in self._facts:
            if name not in self._known:
                self._known[name] = self._read(name)
            found = self._known[name]
            if name in self.classes and self.package.bases(Definition(self.name, name)):
                found = replace(
                    found, chains=set(found.chains), attributes=set(found.attributes), strings=set(found.strings)
                )
                reader = Reader(found, self)
                for one in self.classes[name].body:  # of a model of Pydantic a field does what its annotation says
                    if isinstance(one, ast.AnnAssign):
                        reader.visit(one.annotation)
            self._facts[name] = found
        return self._facts[name]

    def _read(self, name: str) -> Facts:
        owner, _, member = name.rpartition(".")
        if member and owner:
            nodes: list[ast.AST] = list(self.members(owner)[member])
        elif name in self.classes:
            inside = {id(one) for nodes in self.members(name).values() for one in nodes}
            whole = self.classes[name]
            marks = [one for one in whole.decorator_list if label(one) not in MARKS]
            rest = [one for one in without_docstring(whole.body) if id(one) not in inside]
            nodes = [ast.ClassDef(name, whole.bases, whole.keywords, rest, marks)]
        else:
            nodes = list(self.definitions[name])
        words: list[str] = []
        for node in nodes:
            normalise(node, words)
        found = Facts(hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest())
        reader = Reader(found, self)
        for node in nodes:
            reader.visit(node)
        return found


class Package:
    """The source of a package, read as far as something is reached in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.name
        self._modules: dict[str, Module | None] = {}
        self.data = {
            path.name: path
            for path in root.rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "py.typed"
        }

    def module(self, name: str) -> Module | None:
        """Return a module of the package; None for what is no module of it."""
        if name not in self._modules:
            first, *parts = name.split(".")
            base = self.root.joinpath(*parts)
            paths = [] if first != self.name else [base / "__init__.py", *([base.with_suffix(".py")] if parts else [])]
            path = next((one for one in paths if one.is_file()), None)
            self._modules[name] = Module(self, name, path) if path else None
        return self._modules[name]

    def modules(self, text: str = "") -> Iterator[Module]:
        """Yield every module of the package whose source has a text in it."""
        for path in sorted(self.root.rglob("*.py")):
            if text not in path.read_text(encoding="utf-8"):
                continue
            parts = path.relative_to(self.root).with_suffix("").parts
            found = self.module(".".join([self.name, *(parts[:-1] if parts[-1] == "__init__" else parts)]))
            if found:
                yield found

    def find(self, module: str, name: str, *attributes: str) -> list[Definition]:
        """Return what a name in a module, followed by attributes, is in the package; nothing for what is outside."""
        source = self.module(module)
        if source is None:
            return []
        if not name:  # the module itself
            if attributes:
                return self.find(module, *attributes)
            return [Definition(module, one) for one in source.definitions]
        if name in source.definitions:
            return [Definition(module, name)]
        if name in source.imports:
            return self.follow(source.imports[name], attributes)
        return self.find(f"{module}.{name}", "", *attributes)

    def follow(self, target: tuple[str, str], attributes: Sequence[str]) -> list[Definition]:
        """Return what an import, followed by attributes, is in the package."""
        module, name = target
        if name and self.module(module) is not None and not self.find(module, name):
            raise LookupError(f"expected {module} to have {name}, which is imported from it, got none")
        return self.find(module, name, *attributes) if module.split(".")[0] == self.name else []

    @cache  # noqa: B019 - a package is read once
    def bases(self, definition: Definition) -> frozenset[str]:
        """Return the names of the bases outside of the package that a class has, directly or not, but the plain ones."""
        source = self.module(definition.module)
        assert source is not None
        out: set[str] = set()
        for base in source.classes[definition.name].bases:
            reader = Reader(Facts(""), source)
            reader.visit(base)
            chains = [one for one in reader.facts.chains if one[-1] == label(base)]
            found = [one for chain in chains for one in self.find(source.name, *chain)]
            if not found:
                out.add(label(base))
            for one in found:
                out |= self.bases(one) if self.is_class(one) else set()
        return frozenset(out - PLAIN_BASES)

    def is_class(self, definition: Definition) -> bool:
        source = self.module(definition.module)
        return source is not None and definition.name in source.classes

    def members(self, definition: Definition) -> dict[str, list[ast.stmt]]:
        """Return the methods, and the values without annotation, of a class by name."""
        source = self.module(definition.module)
        assert source is not None
        return source.members(definition.name)

    def reached(self, roots: Iterable[Definition], plumbing: Set[str] = frozenset()) -> dict[Definition, str]:
        """Return all that the roots reach, themselves included, each with the hash of its source; all methods of a class that is one.

        `plumbing` are modules, and names in modules, that are not followed.
        """
        todo, seen = list(roots), dict[Definition, str]()
        for one in [one for one in todo if self.is_class(one)]:
            todo += [Definition(one.module, f"{one.name}.{name}") for name in self.members(one)]
        attributes: set[str] = set()
        waiting: dict[str, list[Definition]] = defaultdict(list)
        while todo:
            one = todo.pop()
            if one in seen or not plumbing.isdisjoint({one.module, f"{one.module}.{one.name}"}):
                continue
            source = self.module(one.module)
            assert source is not None, one
            facts = source.facts(one.name)
            seen[one] = facts.hash
            todo.append(Definition(one.module, ""))
            if "." in one.name:
                todo.append(Definition(one.module, one.name.partition(".")[0]))
            for name, *rest in facts.chains:
                targets = facts.imports.get(name)
                if targets:
                    todo += [found for target in targets for found in self.follow(target, rest)]
                elif name in source.definitions or name in source.imports:
                    todo += self.find(one.module, name, *rest)
            for text in facts.strings & self.data.keys():
                path = self.data[text]
                seen[Definition("data", path.relative_to(self.root).as_posix())] = hashlib.sha256(
                    path.read_bytes()
                ).hexdigest()
            if self.is_class(one):
                library = bool(self.bases(one) - MODEL_BASES)
                for name, nodes in self.members(one).items():
                    marks = {
                        label(mark) for node in nodes if isinstance(node, FUNCTIONS) for mark in node.decorator_list
                    }
                    if "versioned" in marks:  # another stage's
                        continue
                    member = Definition(one.module, f"{one.name}.{name}")
                    always = library or name.startswith("__") or name == "model_config" or not marks <= PLAIN_DECORATORS
                    (todo if always or name in attributes else waiting[name]).append(member)
            named = facts.attributes
            if any(chain[0] in ("getattr", "hasattr", "attrgetter") for chain in facts.chains):
                named = named | {text for text in facts.strings if text.isidentifier()}
            for name in named - attributes:
                attributes.add(name)
                todo += waiting.pop(name, [])
        return seen
