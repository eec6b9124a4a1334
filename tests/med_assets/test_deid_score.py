"""The answer key asks for what de-identification must do, and the score falls where it was not done."""

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.misc import is_dicom

from med_assets import program as programs
from med_assets.deidentification.answer_key import ANSWERS, ORIGINALS, PLANTED, Answer, Check, read_key, write_key
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profiles import PROFILES
from med_assets.deidentification.score import Score, mapping_of, read_mapping, score, write_for_scorer
from med_assets.errors import ConfigurationError

KEY = b"a key of the tests, thirty-two b"
PROGRAMS = ("breast_us", "retinal_oct")


@pytest.fixture(scope="module", params=PROGRAMS)
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and what de-identification makes of its phantoms, in the folder `out`."""
    folder = tmp_path_factory.mktemp(request.param)
    programs.get(request.param).write_phantoms(folder / ORIGINALS, 1, 1)
    assert write_key(folder) > 30
    (folder / "out").mkdir()
    for number, path in enumerate(
        path for path in sorted((folder / ORIGINALS).rglob("*")) if path.is_file() and is_dicom(path)
    ):
        Deidentifier(KEY).apply(dcmread(path)).save_as(folder / "out" / f"{number}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def answers(key: Path) -> list[Answer]:
    return read_key(key / ANSWERS)


def shares(found: Score) -> dict[Check, tuple[int, int]]:
    return {one.check: (one.passed, one.n) for one in found.shares}


def scored(key: Path, folder: Path) -> Score:
    answers = read_key(key / ANSWERS)
    return score(answers, folder, mapping_of(answers, KEY))


def test_all_but_descriptions_passes_for_the_allow_list(key: Path) -> None:
    found = scored(key, key / "out")
    by_check = shares(found)
    assert {check for check, (passed, n) in by_check.items() if passed < n} == {Check.TEXT_RETAINED}
    assert {check.value for check in by_check} >= {
        "tag_retained", "text_removed", "text_retained", "date_shifted", "uid_changed", "uid_consistent", "patid_consistent",
    }  # fmt: skip
    assert by_check.keys() & {Check.PIXELS_HIDDEN, Check.PIXELS_RETAINED}
    assert found.missing == 0
    assert all(one.low <= one.passed / one.n <= one.high for one in found.shares)


def test_all_passes_for_the_profile_research_also_of_the_patients_characteristics(tmp_path: Path) -> None:
    programs.get("retinal_oct").write_phantoms(tmp_path / ORIGINALS, 1, 1)
    write_key(tmp_path, characteristics=True)
    for profile in PROFILES.values():
        (tmp_path / profile.name).mkdir()
        for number, path in enumerate(
            path for path in sorted((tmp_path / ORIGINALS).rglob("*")) if path.is_file() and is_dicom(path)
        ):
            clean = Deidentifier(KEY, profile=profile).apply(dcmread(path))
            clean.save_as(tmp_path / profile.name / f"{number}.dcm", enforce_file_format=True)
    assert scored(tmp_path, tmp_path / "research").failed == {}
    failed = {(check, keyword_for_tag(tag)) for check, tag in scored(tmp_path, tmp_path / "strict").failed}
    assert failed >= {
        (Check.TEXT_RETAINED, "PatientSex"),
        (Check.TAG_RETAINED, "PatientAge"),
        (Check.TEXT_RETAINED, "StudyDescription"),
    }
    assert not {check for check, _ in failed} - {Check.TEXT_RETAINED, Check.TAG_RETAINED}


def test_what_was_not_de_identified_fails(key: Path) -> None:
    originals = key / ORIGINALS
    answers = read_key(key / ANSWERS)
    same = mapping_of(answers, KEY)
    same = type(same)({old: old for old in same.uids}, {old: old for old in same.patients})
    by_check = shares(score(answers, originals, same))
    for check in (Check.TEXT_REMOVED, Check.DATE_SHIFTED, Check.UID_CHANGED):
        assert by_check[check][0] == 0
    assert by_check[Check.TEXT_RETAINED][0] == by_check[Check.TEXT_RETAINED][1]
    if Check.PIXELS_HIDDEN in by_check:
        assert by_check[Check.PIXELS_HIDDEN][0] == 0


def test_one_name_left_and_one_pixel_changed_are_found(key: Path, tmp_path: Path) -> None:
    for path in (key / "out").iterdir():
        ds = dcmread(path)
        ds.OperatorsName = "Opperman"
        if "PixelData" in ds:
            pixels = np.array(ds.pixel_array)
            pixels.flat[0] ^= 1
            ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        ds.save_as(tmp_path / path.name, enforce_file_format=True)
    before, after = shares(scored(key, key / "out")), shares(scored(key, tmp_path))
    n_files = len(list(tmp_path.iterdir()))
    assert before[Check.TEXT_REMOVED][0] - after[Check.TEXT_REMOVED][0] == n_files
    pixels_checks = before.keys() & {Check.PIXELS_HIDDEN, Check.PIXELS_RETAINED}
    assert all(after[check][0] < before[check][0] for check in pixels_checks)


def test_a_missing_object_fails_all_of_its_checks_and_a_foreign_folder_is_refused(key: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--uids"):
        scored(key, tmp_path)
    paths = sorted((key / "out").iterdir())
    for path in paths[1:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if len(paths) > 1:
        found = scored(key, tmp_path)
        assert found.missing == 1
        assert sum(one.n - one.passed for one in found.shares) > len(PLANTED)


def test_the_key_and_the_mappings_are_what_the_scorer_reads(key: Path, answers: list[Answer]) -> None:
    with closing(sqlite3.connect(key / ANSWERS)) as database:
        rows = database.execute("SELECT SOPInstanceUID, scope, AnswerData FROM answer_data").fetchall()
    assert {scope for _, scope, _ in rows} == {"<Instance>"}
    first = json.loads(rows[0][2])["0"]
    assert (first["tag_ds"], first["action"]) == ("<(0010,0010)>", "<text_removed>")
    assert first["value"] == "<Plantagon^Quimby>"
    mapping = mapping_of(answers, KEY)
    config = json.loads(write_for_scorer(key, key / "out", mapping).read_text())
    assert read_mapping(Path(config["uid_mapping_file"]), Path(config["patid_mapping_file"])) == mapping
    with Path(config["uid_mapping_file"]).open(newline="") as stream:
        assert {row["id_old"] for row in csv.DictReader(stream)} >= {instance for instance, _, _ in rows}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "other.db"
    path.write_text("no database")
    return path


def test_another_file_is_no_key(foreign: Path) -> None:
    with pytest.raises(ConfigurationError, match="answer_data"):
        read_key(foreign)
    with pytest.raises(ConfigurationError, match="deid-key"):
        read_key(foreign.with_name("absent.db"))
