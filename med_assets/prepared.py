"""What the prepared cases of all programs share: `case.json`, and arrays opened as memory maps and checked."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from med_assets.errors import ArtifactCorrupt


def open_case(folder: Path, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of `case.json` and the arrays `<name>.npy` as read-only memory maps.

    Raises ArtifactCorrupt when a file is missing or unreadable.
    """
    try:
        facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        return facts, {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(
            f"prepared case: a file is missing or unreadable ({type(error).__name__}); prepare it again"
        ) from error


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
