"""What the prepared cases of all programs share: `case.json`, and arrays opened as memory maps and checked.

The reader labels of a case lie apart from what a model sees of it, in `truth.json` and arrays of its own: a case to predict
has none of these, and a corrected label changes no prediction.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from med_assets.errors import ArtifactCorrupt, NoTruth

CASE, TRUTH = "case.json", "truth.json"

T = TypeVar("T")


def open_case(
    folder: Path, names: Iterable[str], truths: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of `case.json` with that of `truth.json`, and the arrays `<name>.npy` as read-only memory maps.

    The arrays named in `truths` are left out where `truth.json` is missing. Raises ArtifactCorrupt when a file is missing or
    unreadable.
    """
    try:
        facts = json.loads((folder / CASE).read_text(encoding="utf-8"))
        wanted = list(names)
        if (folder / TRUTH).is_file():
            facts |= json.loads((folder / TRUTH).read_text(encoding="utf-8"))
            wanted += truths
        return facts, {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in wanted}
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(
            f"prepared case: a file is missing or unreadable ({type(error).__name__}); prepare it again"
        ) from error


def known(value: T | None, case_id: str) -> T:
    """Return the reader labels of a case. Raises NoTruth for a case to predict, which has none."""
    if value is None:
        raise NoTruth(
            f"expected a case with a label, got case {case_id}, which came without one and is to be predicted"
        )
    return value


def demand(case_id: str, name: str, array: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raise ArtifactCorrupt unless an array is of this kind and shape."""
    if array.dtype != dtype or array.shape != shape:
        raise ArtifactCorrupt(
            f"prepared case {case_id}: {name} should be {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}; "
            "prepare it again"
        )


@contextmanager
def reading_fields() -> Iterator[None]:
    """Within it, a field of `case.json` that is missing or of another kind raises ArtifactCorrupt."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(
            f"prepared case: case.json lacks a field or holds another kind of value ({error}); prepare it again"
        ) from error
