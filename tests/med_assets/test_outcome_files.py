"""What a stage returned is equal after it was written and read back."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from assets.metadata import metadata
from med_assets import errors
from med_assets.errors import ArtifactCorrupt, CaseRejected, ConfigurationError, MedAssetsError, RemoteFailed
from med_assets.storage.outcome_files import decode, encode, read_error, read_outcome, write_error, write_outcome
from med_assets.storage.result import CheckOutcome, StageOutcome, StageResult
from med_assets.storage.s3.bucket import Refused

SUMMARY: dict[str, Any] = {
    "text": "a × b",
    "n": 3,
    "share": 0.1 + 0.2,
    "whole": 2.0,
    "undefined": None,
    "yes": True,
    "pair": (1, "two", [3.0]),
    "kinds": {"b", "a"},
    "frozen": frozenset({1, 2}),
    "by_number": {1: "one", 2: {"nested": (1, 2)}},
    "dollar": {"$tuple": [1]},
    "infinite": float("inf"),
    "count": np.int64(7),
    "score": np.float32(0.25),
    "when": datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
    "day": date(2026, 1, 31),
    "stamp": pd.Timestamp("2026-01-31T09:30:00"),
    "path": Path("plots") / "curve.png",
}

FRAMES = {
    "plain": pd.DataFrame({"case": ["a", "b"], "n": [1, 2], "score": [0.1, float("nan")], "ok": [True, False]}),
    "mixed": pd.DataFrame({"value": pd.Series([1, "two", None, 3.0, (4, 5), {"k": [6]}], dtype=object)}),
    "missing": pd.DataFrame({"text": pd.Series(["a", None], dtype="str"), "n": pd.array([1, None], dtype="Int64")}),
    "labels": pd.DataFrame([[1, 2], [3, 4]], columns=[0, "mean"], index=pd.Index(["x", "y"], name="split")),
    "levels": pd.DataFrame(
        {("dose", "mean"): [1.0], ("dose", "sd"): [0.5]}, index=pd.MultiIndex.from_tuples([("a", 1)], names=["p", None])
    ),
    "times": pd.DataFrame({"at": pd.to_datetime(["2026-01-31", "2026-02-01"]), "kind": pd.Categorical(["u", "v"])}),
    "twice": pd.DataFrame([[1, 2]], columns=["same", "same"]),
    "empty": pd.DataFrame({"case": pd.Series(dtype="str"), "n": pd.Series(dtype="int64")}),
    "nothing": pd.DataFrame(),
    "rows": pd.DataFrame({"n": [1, 2, 3]}).iloc[1:],
}


def picture(path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 4), "red").save(path)
    return path


def test_an_outcome_is_equal_after_it_was_written_and_read(tmp_path: Path) -> None:
    image = picture(tmp_path / "curve.png")
    checks = {
        "audit": CheckOutcome(False, "3 of 4 cases are quarantined", metadata={"share": 0.75}, images={"why": image}),
        "drift": CheckOutcome(True, "none", severity="warn"),
    }
    outcome = StageOutcome(StageResult("v1", {"new": 2}, SUMMARY, FRAMES, {"training": image}), checks)
    content = json.loads(json.dumps(write_outcome(outcome, tmp_path / "files"), allow_nan=False))
    found = read_outcome(content, tmp_path / "files")
    assert (found.result.data_version, found.result.counts) == ("v1", {"new": 2})
    assert found.result.summary == SUMMARY
    assert {name: type(value) for name, value in found.result.summary.items()} == {
        name: type(value) for name, value in SUMMARY.items()
    } | {"path": type(Path())}
    assert list(found.result.tables) == list(FRAMES)
    for name, frame in FRAMES.items():
        pd.testing.assert_frame_equal(found.result.tables[name], frame, check_exact=True)
    assert list(found.result.tables["mixed"]["value"]) == [1, "two", None, 3.0, (4, 5), {"k": [6]}]
    assert found.result.images["training"].read_bytes() == image.read_bytes()
    (why,) = found.checks["audit"].images.values()
    assert why.read_bytes() == image.read_bytes()
    for name, check in checks.items():
        read = found.checks[name]
        assert (read.passed, read.reason, read.severity) == (check.passed, check.reason, check.severity)
        assert read.metadata == check.metadata
    # What people see in Dagster is the same to the last byte.
    shown = {name: FRAMES[name] for name in ("plain", "mixed", "labels")}
    first = StageResult("v1", {"new": 2}, SUMMARY, shown, {"training": image})
    second = StageResult(
        "v1", found.result.counts, found.result.summary, {name: found.result.tables[name] for name in shown}, found.result.images
    )  # fmt: skip
    assert metadata(first) == metadata(second)


def test_a_value_that_json_has_not_keeps_its_type() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    back = decode(json.loads(json.dumps(encode({"a": array, "nan": float("nan"), "na": pd.NA}))))
    assert back["a"].dtype == array.dtype
    assert (back["a"] == array).all()
    assert np.isnan(back["nan"])
    assert back["na"] is pd.NA
    with pytest.raises(ArtifactCorrupt, match="unknown kind"):
        decode({"$code": "print(1)"})


@pytest.mark.parametrize("harm", ["changed", "gone", "elsewhere"])
def test_files_that_are_not_those_that_were_written_are_refused(tmp_path: Path, harm: str) -> None:
    outcome = StageOutcome(StageResult("v1", images={"a": picture(tmp_path / "a.png")}))
    content = write_outcome(outcome, tmp_path / "files")
    (name,) = content["files"]
    match harm:
        case "changed":
            (tmp_path / "files" / name).write_bytes(b"another picture")
        case "gone":
            (tmp_path / "files" / name).unlink()
        case _:
            content["files"] = {"../a.png": content["files"][name]}
    with pytest.raises(ArtifactCorrupt, match="as it was written"):
        read_outcome(content, tmp_path / "files")


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("expected a batch, got none"),
        CaseRejected("no_label", "there is no label"),
        Refused("Truncated"),
    ],
)
def test_an_error_of_ours_arrives_as_itself(error: MedAssetsError) -> None:
    found = read_error(json.loads(json.dumps(write_error(error))))
    assert type(found) is (RemoteFailed if isinstance(error, Refused) else type(error))
    assert str(found) == str(error)


def test_of_an_error_of_a_library_no_value_leaves() -> None:
    try:
        Path("DOE^JANE.dcm").read_bytes()
    except OSError as error:
        written = write_error(error)
    found = read_error(written)
    assert type(found) is errors.StageFailed
    assert "FileNotFoundError at" in str(found)
    assert "DOE" not in json.dumps(written)
