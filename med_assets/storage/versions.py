"""Code versions, written at the functions whose results they version.

A version enters the keys of artifacts and the code versions of assets, so raising it computes anew whatever the function made. It
is raised when results change. `tests/test_versions.py` notices when the code that a versioned function reaches has changed, and
asks whether results have; see docs/code-versions.md.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=Callable[..., Any])

Stage = Literal["intake", "prepare", "train", "predict", "evaluate"]
"""A stage that each program has a version of."""

METHODS: dict[Stage, str] = {
    "intake": "verify",
    "prepare": "prepare",
    "train": "task",
    "predict": "predictor",
    "evaluate": "score",
}
"""The method of a program that carries its version of a stage."""

_ATTRIBUTE = "__code_version__"


def versioned(version: str) -> Callable[[F], F]:
    """Give a function the version of its code; `version_of` returns it. The function itself is not changed."""

    def decorate(function: F) -> F:
        setattr(function, _ATTRIBUTE, version)
        return function

    return decorate


def part_of(owner: Stage | str) -> Callable[[C], C]:
    """Say that a function or class is covered by a version that stands elsewhere, which has to rise when this changes results.

    `owner` is a stage, whose version each program has, or the name `module.function`, below med_assets, of a versioned function
    that does not call this one itself. It is read by the test of the versions, and does nothing else.
    """
    return lambda function: function


def version_of(function: Callable[..., Any]) -> str:
    """Return the version of a function's code. Raises TypeError for a function that has none."""
    version = getattr(function, _ATTRIBUTE, None)
    if not isinstance(version, str):
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(f'expected {name} to have the version of its code, as @versioned("1") gives it, got none')
    return version


@cache
def declared(module: str, function: str) -> str:
    """Return the version of a function of a module as its source declares it, without importing the module.

    What loads the graph needs versions, and none of the libraries that computing needs. Raises TypeError for a function that has none.
    """
    spec = find_spec(module)
    source = spec.loader.get_source(module) if spec and isinstance(spec.loader, InspectLoader) else None
    written = rf'^@{versioned.__name__}\("([^"\n]+)"\)\n(?:@.*\n)*def {function}\('
    if found := re.search(written, source or "", re.MULTILINE):
        return found[1]
    raise TypeError(
        f'expected {module}.{function} to have the version of its code, as @versioned("1") gives it, got none'
    )


def of_program(program: type) -> dict[str, str]:
    """Return the versions of a program's stages, from its methods. Raises TypeError for a method without one."""
    return {stage: version_of(getattr(program, method)) for stage, method in METHODS.items()}
