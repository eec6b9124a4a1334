"""What runs when a case is taken in, prepared, trained on, predicted and scored is what the versions of these stages cover."""

import json
import sys
from collections.abc import Callable, Set
from importlib import import_module
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType

import pytest

from med_assets import program
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.intake.reading import EntryReader, Preparation, StoredCase, Task, prepare_case
from med_assets.settings import Workspace
from tests.med_assets.programs.jobs import builders_of
from tests.reach import Definition
from tests.record_versions import PLUMBING, Code
from tests.shared_phantoms import write_phantoms


@pytest.fixture(scope="module")
def code() -> Code:
    for library in ("highdicom", "lightning", "monai.networks.nets", "monai.transforms", "scipy.ndimage"):
        import_module(library)  # while nobody listens to what they call
    return Code()


def ran(work: Callable[[], object]) -> set[Definition]:
    """Return the functions of the package that are called while something is done."""
    found: set[Definition] = set()
    seen: dict[int, CodeType] = {}

    def called(frame: FrameType, *_: object) -> None:
        function = frame.f_code
        if id(function) in seen:
            return
        seen[id(function)] = function  # kept, so that no other gets its number
        module = str(frame.f_globals.get("__name__"))
        # neither the body of a class or module, nor a method that dataclasses makes
        if function.co_flags & CO_OPTIMIZED and not function.co_filename.startswith("<"):
            name = function.co_qualname.partition(".<locals>")[0]
            if module.startswith("med_assets.") and not name.startswith("<"):
                found.add(Definition(module, name))

    sys.settrace(called)  # of calls alone, where a profiler hears of returns and of functions in C too
    try:
        work()
    finally:
        sys.settrace(None)
    assert found
    return found


def not_covered(code: Code, called: Set[Definition], *names: str) -> list[Definition]:
    covered = {one for name in names for one in code.covered(name)}
    plumbing = {f"med_assets.{one}" for one in PLUMBING}
    return sorted(one for one in called - covered if plumbing.isdisjoint({one.module, f"{one.module}.{one.name}"}))


@pytest.mark.slow
@pytest.mark.parametrize("name", program.registered())
def test_intake_and_preparation(code: Code, name: str, workspace: Workspace, tmp_path: Path) -> None:
    chosen, landed, out = program.get(name), tmp_path / "landed", tmp_path / "prepared"
    write_phantoms(name, landed, 1, 3)
    out.mkdir()
    files = tuple(sorted(path for path in landed.rglob("*") if path.is_file()))
    task = Task(workspace, name, "b", "token", landed, files, tmp_path / "scratch")
    reader = EntryReader(task, Deidentifier(workspace.key, chosen.roi_vocabulary(workspace)), lambda step: None)
    cases: list[StoredCase] = []

    def take_in() -> None:
        cases.extend(one for one in reader.messages() if isinstance(one, StoredCase))

    called = ran(take_in)
    assert not not_covered(code, called, f"{name}/intake", "deidentification.profile.profile")
    called = ran(lambda: prepare_case(Preparation(workspace, name, "c", cases[0].folder, out)))
    assert not not_covered(code, called, f"{name}/prepare")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in program.registered() if name != "lung_ct"])  # no small job of it
def test_training_prediction_and_scores(code: Code, name: str, workspace: Workspace, tmp_path: Path) -> None:
    from med_assets.training.job import run

    builders = builders_of(name)
    job, out, chosen = tmp_path / "job", tmp_path / "predicted", program.get(name)
    builders.write_job(job, overrides=(*builders.TINY, "schedule.epochs=2"))
    out.mkdir()
    called = ran(lambda: run(job))
    assert not not_covered(code, called, f"{name}/train")
    case = job / json.loads((job / "cases.json").read_text())[-1]["folder"]
    called = ran(lambda: chosen.predictor(job, tmp_path).predict(case, out))
    assert not not_covered(code, called, f"{name}/predict")
    called = ran(lambda: chosen.score(workspace, case, out))
    assert not not_covered(code, called, f"{name}/evaluate")
