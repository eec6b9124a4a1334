"""Code versions: every change of the code that one covers is noticed, and answered by a new version or a reason why results are the same."""

import pkgutil
import re
import shutil
from pathlib import Path

import pytest

from med_assets import program
from med_assets.storage.versions import METHODS, declared, of_program, version_of, versioned
from tests.reach import Definition, Package
from tests.record_versions import PACKAGE, PLUMBING, Code, advice, changed, main, read


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


@pytest.fixture(scope="module")
def intakes(code: Code) -> dict[str, str]:
    """Hashes of the intake of each program, and of what deidentifies."""
    return {one: code.entry(one).hash for one in code.versions if one.endswith("/intake") or one.startswith("dei")}


def test_the_code_that_each_version_covers_is_as_it_is_recorded(code: Code) -> None:
    found = changed(code, read())
    assert not found, advice(found)


def test_all_plumbing_is_there(code: Code) -> None:
    for name in PLUMBING:
        module, _, member = f"med_assets.{name}".removesuffix(".__init_subclass__").rpartition(".")
        there = code.package.module(f"med_assets.{name}") or code.package.find(module, member)
        assert there, name


def test_each_record_has_a_reason() -> None:
    assert not [name for name, entry in read().items() if not entry.reason.partition(": ")[2].strip()]


def test_the_source_says_what_the_running_code_does(code: Code) -> None:
    running = {}
    for name in program.REGISTRY:
        running |= {f"{name}/{stage}": version for stage, version in program.get(name).code_versions.items()}
    for name in code.versions:
        if "/" not in name:
            running[name] = version_of(pkgutil.resolve_name(f"med_assets.{name}"))
    assert {name: one.version for name, one in code.versions.items()} == running


def test_a_version_is_found_in_the_source_of_each_function_without_its_import(code: Code) -> None:
    functions = {name: one.version for name, one in code.versions.items() if re.fullmatch(r"[a-z_.]+\.[a-z_]+", name)}
    assert len(functions) > 5
    for name, version in functions.items():
        module, _, function = f"med_assets.{name}".rpartition(".")
        assert declared(module, function) == version, name


def test_a_function_without_a_version_in_its_source_is_named() -> None:
    with pytest.raises(TypeError, match=r"expected med_assets\.storage\.versions\.declared to have the version"):
        declared("med_assets.storage.versions", "declared")


def test_a_program_needs_a_version_at_the_method_of_each_stage() -> None:
    complete = type("Complete", (), {method: versioned("7")(lambda self: None) for method in METHODS.values()})
    assert of_program(complete) == dict.fromkeys(METHODS, "7")
    lacking = type("Lacking", (complete,), {"score": lambda self: None})
    with pytest.raises(TypeError, match="@versioned"):
        of_program(lacking)


@pytest.mark.parametrize(
    ("name", "module", "term"),
    [
        ("breast_us", "vocabulary", "BUSI"),
        ("lumbar_mr", "levels", "LSTV"),
        ("lung_ct", "vocabulary", "datalist"),
        ("retinal_oct", "vocabulary", "UCSD"),
        ("rt_dose", "vocabulary", "OpenKBP"),
    ],
)
def test_a_vocabulary_is_part_of_the_intake_of_its_program_and_of_no_other(
    code: Code, intakes: dict[str, str], tmp_path: Path, name: str, module: str, term: str
) -> None:
    assert len(intakes) == len(program.REGISTRY) + 3  # the two profiles and the residual scan
    root = tmp_path / "med_assets"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__"))
    vocabulary = root / "programs" / name / f"{module}.py"
    assert term in vocabulary.read_text()
    vocabulary.write_text(vocabulary.read_text().replace(term, f"{term}X"))
    contract = root / "programs" / name / "__init__.py"
    verify = re.compile(r'versioned\("\d+"\)(?=\s+def verify)')
    assert len(verify.findall(contract.read_text())) == 1
    contract.write_text(verify.sub('versioned("raised")', contract.read_text()))
    after = Code(root)
    assert [one for one in intakes if after.entry(one).hash != intakes[one]] == [f"{name}/intake"]
    raised = {one for one, version in code.versions.items() if after.versions[one].version != version.version}
    assert raised == {f"{name}/intake"}  # which is the code version of raw_cases, see tests/assets/test_versions.py


SOURCES = {
    "__init__.py": "",
    "a.py": """
        from pkg import settings
        from pkg.b import Model, Shape as Form, unrelated
        from pkg.marks import versioned

        def local(x):
            return [helper(x) for helper in (abs,)]

        @versioned("1")
        def root(x):
            '''A docstring.'''
            from pkg.late import step
            form = Form(2)
            return step(x) + local(x) + form.area() + settings.factor()

        def other():
            return unrelated()
        """,
    "b.py": """
        import re
        from dataclasses import dataclass
        from pkg.base import Base

        @dataclass
        class Shape(Base):
            size: int
            unit = "mm"

            def area(self):
                return self.side() ** 2

            def side(self):
                return getattr(self, "width") * self.scale

            @property
            def width(self):
                return self.size

            def unused(self):
                return 1

        class Model:
            pass

        def unrelated():
            return 1
        """,
    "base.py": """
        from abc import ABC
        class Base(ABC):
            scale = 3
            def __eq__(self, other):
                return deep(self, other)
            def untouched(self):
                return 2
        def deep(one, other):
            return DEPTH
        DEPTH = 4
        """,
    "late.py": """
        import warnings
        from typing import TYPE_CHECKING
        from pkg.c import LIMIT
        if TYPE_CHECKING:
            from pkg.types import Nothing
        warnings.simplefilter("ignore")
        PATTERN = "x"

        def step(x: "Nothing") -> int:
            y: int = min(x, LIMIT)
            return y

        def helper(x):
            return x
        """,
    "c.py": """
        LIMIT = 10  # the greatest
        UNUSED = 11
        """,
    "settings.py": """
        def factor():
            with open("table.txt") as stream:
                return float(stream.read())
        """,
    "marks.py": "def versioned(text):\n    return lambda function: function\n",
    "table.txt": "1\n",
}


def written(folder: Path, **changes: tuple[str, str]) -> Path:
    """Write the package with some texts replaced, by name of the file."""
    root = folder / "pkg"
    root.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        before, after = changes.get(name.partition(".")[0], ("", ""))
        assert before in source
        lines = source.replace(before, after, 1).split("\n") if before else source.split("\n")
        indent = 8 if lines[0] == "" and len(lines) > 1 and name != "__init__.py" else 0
        (root / name).write_text("\n".join(line[indent:] if not line[:indent].strip() else line for line in lines))
    return root


def digest(root: Path, name: str = "root") -> dict[Definition, str]:
    return Package(root).reached([Definition("pkg.a", name)])


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("c", "LIMIT = 10", "LIMIT = 12"),
        ("late", "min(x, LIMIT)", "max(x, LIMIT)"),
        ("late", '("ignore")', '("error")'),
        ("b", "** 2", "** 3"),
        ("b", "return self.size", "return self.size + 1"),
        ("b", "size: int", "size: float"),
        ("base", "scale = 3", "scale = 5"),
        ("base", "DEPTH = 4", "DEPTH = 5"),
        ("a", "for helper in (abs,)", "for helper in (float,)"),
        ("a", "from pkg.late import step", "from pkg.late import helper as step"),
        ("table", "1", "2"),
    ],
)
def test_a_change_of_what_is_reached_is_noticed(tmp_path: Path, file: str, before: str, after: str) -> None:
    first = digest(written(tmp_path / "first"))
    assert digest(written(tmp_path / "second", **{file: (before, after)})) != first


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("c", "# the greatest", "# the least"),
        ("c", "UNUSED = 11", "UNUSED = 12"),
        ("a", "A docstring.", "Another."),
        ("a", "return unrelated()", "return 0"),
        ("a", 'versioned("1")', 'versioned("2")'),
        ("a", "from pkg import settings", "import os\nfrom pkg import (\n    settings,\n)"),
        ("late", 'x: "Nothing") -> int', "x)"),
        ("late", "y: int =", "y: float ="),
        ("late", "return x", "return 3"),
        ("late", 'PATTERN = "x"', 'PATTERN = "y"'),
        ("b", "return 1", "return 9"),
        ("b", 'unit = "mm"', 'unit = "cm"'),
        ("base", "return 2", "return 9"),
    ],
)
def test_a_change_of_what_is_not_reached_or_does_nothing_is_not(
    tmp_path: Path, file: str, before: str, after: str
) -> None:
    first = digest(written(tmp_path / "first"))
    assert digest(written(tmp_path / "second", **{file: (before, after)})) == first


def test_an_import_of_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    root = written(tmp_path, b=("def unrelated", "def renamed"))
    with pytest.raises(LookupError, match="unrelated"):
        digest(root, "other")


def test_a_call_by_a_library_reaches_all_methods(tmp_path: Path) -> None:
    root = written(tmp_path, base=("from abc import ABC\n", "from torch.nn import Module as ABC0\n"))
    source = (root / "base.py").read_text().replace("(ABC)", "(ABC0)")
    (root / "base.py").write_text(source)
    assert Definition("pkg.b", "Shape.unused") in digest(root)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with two versions, recorded."""
    root = tmp_path / "pkg"
    root.mkdir()
    marks = "from med_assets.storage.versions import part_of, versioned\n"
    (root / "__init__.py").write_text("")
    (root / "shared.py").write_text("N = 1\n")
    function = '\nfrom pkg.shared import N\n\n@versioned("1")\ndef {0}():\n    return N\n'
    (root / "one.py").write_text(marks + function.format("first"))
    (root / "two.py").write_text(
        marks + function.format("second") + '\n@part_of("one.first")\ndef more():\n    return 1\n'
    )
    names = ["one.first", "two.second"]
    assert main([*names, "--reason", "first record"], Code(root), tmp_path / "versions.json") == 0
    return root


def test_a_part_is_covered_by_the_version_that_it_names(small: Path) -> None:
    record = read(small.parent / "versions.json")
    (small / "two.py").write_text((small / "two.py").read_text().replace("return 1", "return 2"))
    assert changed(Code(small), record) == {"one.first": '(pkg/one.py:5) "1": pkg.two'}


def test_one_change_is_recorded_with_its_reason_and_several_only_by_their_names(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = small.parent / "versions.json"
    before = record.read_text()
    (small / "shared.py").write_text("N = 2\n")
    assert main(["--reason", "all of it"], Code(small), record) == 1
    assert record.read_text() == before
    shown = capsys.readouterr().err
    assert "pkg.shared" in shown
    assert "python -m tests.record_versions one.first two.second --reason" in shown
    with pytest.raises(SystemExit):
        main(["one.first"], Code(small), record)  # without a reason
    with pytest.raises(SystemExit):
        main(["one.frist", "--reason", "a wrong name"], Code(small), record)
    assert record.read_text() == before
    assert main(["one.first", "--reason", "N is a label"], Code(small), record) == 0
    assert read(record)["one.first"].reason == "result unchanged: N is a label"
    assert list(changed(Code(small), read(record))) == ["two.second"]
    (small / "two.py").write_text((small / "two.py").read_text().replace('versioned("1")', 'versioned("2")'))
    assert changed(Code(small), read(record)) == {"two.second": '(pkg/two.py:5) "1" -> "2": pkg.shared'}
    assert main(["--reason", "N counts"], Code(small), record) == 0
    assert (read(record)["two.second"].version, read(record)["two.second"].reason) == ("2", "version 2: N counts")
    assert not changed(Code(small), read(record))


def test_a_part_of_no_version_is_an_error(small: Path) -> None:
    (small / "two.py").write_text((small / "two.py").read_text().replace("one.first", "one.frist"))
    with pytest.raises(ValueError, match=r"one\.frist"):
        _ = Code(small).versions


def test_a_version_that_went_is_taken_out_of_the_record(small: Path) -> None:
    record = small.parent / "versions.json"
    (small / "two.py").unlink()
    assert main(["two.second", "--reason", "it went"], Code(small), record) == 0
    assert list(read(record)) == ["one.first"]
