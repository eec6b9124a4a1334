"""What a stage returned as files, for whoever asked for it in another process: JSON, Parquet for tables, pictures as they are.

Reading them back gives an equal outcome, with every number of the same type, and executes nothing.
"""

import json
import math
import shutil
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from med_assets import errors
from med_assets.errors import ArtifactCorrupt, CaseRejected, MedAssetsError, StageFailed
from med_assets.storage.files import file_sha256
from med_assets.storage.phi_safe import outline
from med_assets.storage.result import CheckOutcome, StageOutcome, StageResult

if TYPE_CHECKING:
    import pandas as pd

TAG = "$"
"""First character of the one key of a JSON object that stands for a value which JSON has not."""


def write_outcome(outcome: StageOutcome, files: Path) -> dict[str, Any]:
    """Write tables and pictures of an outcome into a folder of its own; returns the rest, with their hashes, as JSON has it."""
    files.mkdir(parents=True, exist_ok=True)
    result = outcome.result
    content: dict[str, Any] = {
        "data_version": result.data_version,
        "counts": dict(result.counts),
        "summary": encode(result.summary),
        "tables": {},
        "images": _copy_images(result.images, files, "image"),
        "checks": {},
    }
    for number, (name, frame) in enumerate(result.tables.items()):
        path = files / f"table{number}.parquet"
        content["tables"][name] = {"file": path.name, **_write_frame(frame, path)}
    for number, (name, check) in enumerate(outcome.checks.items()):
        content["checks"][name] = {
            "passed": bool(check.passed),
            "reason": check.reason,
            "severity": check.severity,
            "metadata": encode(check.metadata),
            "images": _copy_images(check.images, files, f"check{number}_"),
        }
    content["files"] = {path.name: file_sha256(path) for path in sorted(files.iterdir())}
    return content


def read_outcome(content: Mapping[str, Any], files: Path) -> StageOutcome:
    """The reverse of `write_outcome`; pictures stay where they are. Raises ArtifactCorrupt for files that are not those that were written."""
    for name, sha256 in content["files"].items():
        if PurePath(name).name != name or not (files / name).is_file() or file_sha256(files / name) != sha256:
            raise ArtifactCorrupt(
                f"expected the file {name!a} of a stage's result as it was written, got another or none; run the stage again"
            )
    result = StageResult(
        data_version=content["data_version"],
        counts=dict(content["counts"]),
        summary=decode(content["summary"]),
        tables={name: _read_frame(files / of["file"], of) for name, of in content["tables"].items()},
        images=_images(content["images"], files),
    )
    checks = {
        name: CheckOutcome(
            passed=of["passed"],
            reason=of["reason"],
            severity=of["severity"],
            metadata=decode(of["metadata"]),
            images=_images(of["images"], files),
        )
        for name, of in content["checks"].items()
    }
    return StageOutcome(result, checks)


def write_error(error: BaseException) -> dict[str, Any]:
    """An error for people elsewhere: one of ours with its message, of another only its type and the places in the code."""
    if not isinstance(error, MedAssetsError):
        return {"type": StageFailed.__name__, "arguments": [outline(error)]}
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return {
        "type": kind.__name__,
        "arguments": [*([error.code] if isinstance(error, CaseRejected) else []), str(error)],
    }


def read_error(content: Mapping[str, Any]) -> MedAssetsError:
    """The reverse of `write_error`."""
    kind = getattr(errors, str(content["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, MedAssetsError)):
        return StageFailed(f"{content['type']}: {content['arguments'][-1]}")
    return kind(*map(str, content["arguments"]))


def _copy_images(images: Mapping[str, Path], files: Path, prefix: str) -> dict[str, str]:
    copied = {name: f"{prefix}{number}{path.suffix}" for number, (name, path) in enumerate(images.items())}
    for name, file in copied.items():
        shutil.copyfile(images[name], files / file)
    return copied


def _images(content: Mapping[str, str], files: Path) -> dict[str, Path]:
    return {name: files / file for name, file in content.items()}


def encode(value: Any) -> Any:
    """A value as JSON has it; what JSON has not is an object with one key that says what it is. What is of no known type becomes text."""
    match value:
        case None | bool():
            return value
        case _ if type(value) in (int, str):
            return value
        case float() if type(value) is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        case list():
            return [encode(item) for item in value]
        case tuple():
            return {"$tuple": [encode(item) for item in value]}
        case set() | frozenset():
            return {f"${type(value).__name__}": sorted((encode(item) for item in value), key=repr)}
        case Mapping():
            if all(type(name) is str and not name.startswith(TAG) for name in value):
                return {name: encode(item) for name, item in value.items()}
            return {"$map": [[encode(name), encode(item)] for name, item in value.items()]}
        case str():
            return str(value)
        case Path():
            return {"$path": str(value)}
        case _ if type(value).__name__ in ("NAType", "NaTType"):
            return {"$missing": type(value).__name__}
        case datetime() | date():
            return {f"${type(value).__name__}": value.isoformat()}
        case _ if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            return {"$scalar": [str(value.dtype), encode(value.item())]}
        case _ if hasattr(value, "tolist") and hasattr(value, "dtype"):
            return {"$array": [str(value.dtype), encode(value.tolist())]}
        case int():
            return int(value)
        case _:
            return str(value)


def decode(value: Any) -> Any:
    """The reverse of `encode`. Raises ArtifactCorrupt for a kind of value that `encode` does not write."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith(TAG):
        return {name: decode(item) for name, item in value.items()}
    ((tag, content),) = value.items()
    match tag:
        case "$float":
            return float(content)
        case "$tuple":
            return tuple(map(decode, content))
        case "$set":
            return set(map(decode, content))
        case "$frozenset":
            return frozenset(map(decode, content))
        case "$map":
            return {decode(name): decode(item) for name, item in content}
        case "$path":
            return Path(content)
        case "$date":
            return date.fromisoformat(content)
        case "$datetime":
            return datetime.fromisoformat(content)
        case "$Timestamp" | "$missing":
            import pandas as pd

            return pd.Timestamp(content) if tag == "$Timestamp" else pd.NaT if content == "NaTType" else pd.NA
        case "$scalar" | "$array":
            import numpy as np

            array = np.array(decode(content[1]), dtype=content[0])
            return array[()] if tag == "$scalar" else array
    raise ArtifactCorrupt(
        f"expected a value of a stage's result, got one of an unknown kind {tag!a}; is it of a later version?"
    )


def _write_frame(frame: "pd.DataFrame", path: Path) -> dict[str, Any]:
    """Write a table as Parquet: columns by number, those of any objects as JSON text, so that None and NaN stay what they are."""
    import pandas as pd

    columns, index = [frame.iloc[:, at] for at in range(frame.shape[1])], frame.index
    plain = isinstance(index, pd.RangeIndex) and (index.start, index.step, index.name) == (0, 1, None)
    levels = [] if plain else [index.get_level_values(at).to_series() for at in range(index.nlevels)]
    objects = [str(at) for at, column in enumerate([*levels, *columns]) if column.dtype == object]
    stored = {
        str(at): (_texts(column) if str(at) in objects else column.reset_index(drop=True))
        for at, column in enumerate([*levels, *columns])
    }
    pd.DataFrame(stored, index=range(len(frame))).to_parquet(path, index=False)
    return {
        "columns": encode(list(frame.columns)),
        "names": encode(list(frame.columns.names)),
        "levels": None if plain else encode(list(index.names)),
        "objects": objects,
        "rows": len(frame),
    }


def _texts(column: "pd.Series[Any]") -> "pd.Series[Any]":
    import pandas as pd

    return pd.Series([json.dumps(encode(item)) for item in column], dtype="str")


def _read_frame(path: Path, written: Mapping[str, Any]) -> "pd.DataFrame":
    import pandas as pd

    stored = pd.read_parquet(path)
    columns: list[Any] = [
        pd.Series([decode(json.loads(text)) for text in stored[str(at)]], dtype=object)
        if str(at) in written["objects"]
        else stored[str(at)]
        for at in range(stored.shape[1])
    ]
    names, labels, level_names = (
        decode(written["names"]), decode(written["columns"]), decode(written["levels"])
    )  # fmt: skip
    n_levels = len(level_names or ())
    frame = pd.DataFrame(dict(enumerate(columns[n_levels:])), index=range(written["rows"]))
    if level_names is not None:
        levels = columns[:n_levels]
        frame.index = pd.Index(levels[0]) if n_levels == 1 else pd.MultiIndex.from_arrays(levels)
        frame.index.names = level_names
    if len(names) > 1:
        frame.columns = pd.MultiIndex.from_tuples(labels, names=names)
    elif labels:
        frame.columns = pd.Index(labels, name=names[0])
    return frame
