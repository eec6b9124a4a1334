"""From the tables and files of AI-READI to landed cases, and what must hold of a cohort."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from med_assets.catalog import Case
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.opt import read_opt
from med_assets.errors import ConfigurationError
from med_assets.programs.retinal_oct.cohort import View, cohort, objections
from med_assets.programs.retinal_oct.importer import import_participants
from med_assets.programs.retinal_oct.phantom import SCANNERS, people, write_dataset
from med_assets.programs.retinal_oct.prepare import prepare_case
from med_assets.programs.retinal_oct.vocabulary import CLASSES, vocabulary
from tests.invented import case_with

LABELLED = SCANNERS[:1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ai_readi") / "data"
    write_dataset(folder, people(13, 0), LABELLED)
    return folder


def copied(
    source: Path, folder: Path, manifest: pd.DataFrame | None = None, participants: pd.DataFrame | None = None
) -> Path:
    folder.mkdir()
    (folder / "retinal_oct").symlink_to(source / "retinal_oct")
    for name, table in (("manifest", manifest), ("participants", participants)):
        table = (
            table
            if table is not None
            else pd.read_csv(source / f"{name}.tsv", sep="\t", dtype=str, keep_default_na=False)
        )
        table.to_csv(folder / f"{name}.tsv", sep="\t", index=False)
    return folder


def tables(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    manifest, participants = (
        pd.read_csv(source / f"{name}.tsv", sep="\t", dtype=str, keep_default_na=False)
        for name in ("manifest", "participants")
    )
    return manifest, participants


def test_every_participant_of_every_site_is_located_whatever_the_form_of_its_id(source: Path, tmp_path: Path) -> None:
    report = import_participants(source, tmp_path / "landing")
    assert len(report.imported) == 13
    assert {name[0] for name in report.imported} == {"1", "4", "7"}
    located = pd.read_csv(tmp_path / "landing" / ".ai_readi" / "located.csv")
    assert located["located"].equals(located["expected"])
    assert set(located["clinical_site"]) == {"UW", "UCSD", "UAB"}
    again = import_participants(source, tmp_path / "landing")
    assert (len(again.imported), len(again.existing)) == (0, 13)


def test_a_trial_of_five_takes_five_participants_and_expects_no_others(source: Path, tmp_path: Path) -> None:
    assert len(import_participants(source, tmp_path / "landing", limit=5).imported) == 5
    located = pd.read_csv(tmp_path / "landing" / ".ai_readi" / "located.csv")
    assert located["expected"].sum() == located["located"].sum() == 5


def test_a_corrected_row_or_scan_replaces_its_participant_and_another_data_set_does_not(
    source: Path, tmp_path: Path
) -> None:
    landing, chosen = tmp_path / "landing", ["1001", "4002", "7003"]
    manifest, participants = tables(source)
    ids = list(participants["participant_id"])
    chosen = ids[:3]
    folder = copied(source, tmp_path / "src", manifest, participants)
    assert import_participants(folder, landing, chosen).imported == tuple(chosen)

    groups = sorted(set(participants["study_group"]))
    mine = participants["participant_id"] == chosen[0]
    group = next(one for one in groups if one != participants.loc[mine, "study_group"].item())
    participants.loc[mine, "study_group"] = group
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False)
    again = import_participants(folder, landing, chosen)
    assert (again.updated, again.existing) == ((chosen[0],), tuple(chosen[1:]))
    (path,) = (landing / chosen[0]).iterdir()
    found = str(pydicom.dcmread(path, stop_before_pixels=True).AdmittingDiagnosesDescription)
    assert cohort().classes[found] == group

    before = path.read_bytes()
    participants.loc[mine, "study_group"] = next(one for one in groups if one != group)
    other = copied(source, tmp_path / "other", manifest, participants)
    with pytest.raises(ConfigurationError, match="located 2"):
        import_participants(other, landing, chosen)
    assert path.read_bytes() == before

    manifest.loc[manifest["participant_id"] == chosen[0], "filepath"] = "/oct/heidelberg_spectralis/gone.dcm"
    manifest.to_csv(folder / "manifest.tsv", sep="\t", index=False)
    report = import_participants(folder, landing, chosen)
    assert report.skipped[chosen[0]].startswith("missing_file")
    assert path.read_bytes() == before, "what was imported before stays"


def test_a_scan_carries_its_labels_past_de_identification(source: Path, tmp_path: Path) -> None:
    import_participants(source, tmp_path / "landing", ["1001"])
    (path,) = (tmp_path / "landing" / "1001").iterdir()
    raw = tmp_path / "raw"
    raw.mkdir()
    clean = Deidentifier(b"a key that is long enough", vocabulary()).apply(pydicom.dcmread(path))
    assert "1001" not in str(clean)
    (raw / "0.dcm").write_bytes(to_bytes(clean))
    (tmp_path / "out").mkdir()
    facts = prepare_case("c", raw, tmp_path / "out", (8, 32, 32))
    assert (facts["study_group"], facts["site"], facts["protocol"]) == ("healthy", "UW", LABELLED[0].protocol)
    assert str(clean.ClinicalTrialSiteID) == "train"
    assert facts["network_mean"] == pytest.approx(0, abs=1e-3)
    assert facts["network_std"] == pytest.approx(1, abs=1e-3)
    assert 0.5 < facts["resized_std"] < 1


def test_a_missing_object_is_a_row_and_stops_no_other(source: Path, tmp_path: Path) -> None:
    manifest, _ = tables(source)
    manifest.loc[manifest["participant_id"] == "1001", "filepath"] = "/oct/heidelberg_spectralis/gone.dcm"
    folder = copied(source, tmp_path / "src", manifest)
    with pytest.raises(ConfigurationError, match=r"located 12 \(92.3%\); missing by site: \{'UW': 1\}"):
        import_participants(folder, tmp_path / "landing")
    with (tmp_path / "landing" / ".ai_readi" / "data_errors.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["participant_id"], row["key"]) == ("1001", "oct/heidelberg_spectralis/gone.dcm")
    assert "FileNotFoundError" in row["exception"]
    assert sum(not path.name.startswith(".") for path in (tmp_path / "landing").iterdir()) == 12


def test_a_file_that_was_cut_is_a_row_and_is_not_located(source: Path, tmp_path: Path) -> None:
    manifest, _ = tables(source)
    own = manifest[manifest["participant_id"] == "1001"]["filepath"].iloc[0].lstrip("/")
    folder = tmp_path / "src"
    shutil.copytree(source, folder)
    content = (folder / own).read_bytes()
    (folder / own).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match="located 12"):
        import_participants(folder, tmp_path / "landing")
    with (tmp_path / "landing" / ".ai_readi" / "data_errors.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["participant_id"], row["key"]) == ("1001", own)
    assert "truncated_file" in row["exception"]


def test_those_without_an_oct_are_not_expected(source: Path, tmp_path: Path) -> None:
    _, participants = tables(source)
    participants.loc[participants["participant_id"] == "1001", "retinal_oct"] = "FALSE"
    report = import_participants(copied(source, tmp_path / "src", None, participants), tmp_path / "landing")
    assert len(report.imported) == 12


@pytest.mark.parametrize(
    ("column", "value"), [("study_group", "other"), ("clinical_site", "Elsewhere"), ("recommended_split", "")]
)
def test_a_value_that_means_nothing_here_is_refused(column: str, value: str, source: Path, tmp_path: Path) -> None:
    _, participants = tables(source)
    participants.loc[0, column] = value
    with pytest.raises(ConfigurationError, match=column):
        import_participants(copied(source, tmp_path / "src", None, participants), tmp_path / "landing")


def test_an_array_and_a_nifti_become_opt_objects(source: Path, tmp_path: Path) -> None:
    import nibabel

    manifest, participants = tables(source)
    folder = copied(source, tmp_path / "src", manifest, participants)
    (folder / "files").mkdir()
    array = np.random.default_rng(0).integers(0, 999, (8, 40, 36)).astype(np.uint16)
    np.save(folder / "files" / "a.npy", array)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.01, 0.2, 1])), folder / "files" / "b.nii.gz")
    device = cohort().labelled.device
    (folder / device).symlink_to(folder / "files")
    manifest.loc[0, ["filepath", "pixel_spacing", "slice_thickness"]] = [f"/{device}/a.npy", "[0.02, 0.3]", "0.4"]
    manifest.loc[1, "filepath"] = f"/{device}/b.nii.gz"
    # A path names the device as a folder within the data set.
    manifest.loc[:1, "filepath"] = ["/x" + path for path in manifest.loc[:1, "filepath"]]
    (folder / "x").mkdir()
    (folder / "x" / device).symlink_to(folder / "files")
    manifest.to_csv(folder / "manifest.tsv", sep="\t", index=False)
    ids = list(manifest.loc[:1, "participant_id"])
    import_participants(folder, tmp_path / "landing", ids)
    for name, spacing in zip(ids, ((0.4, 0.02, 0.3), (0.5, 0.01, 0.2)), strict=True):
        found = read_opt(pydicom.dcmread(tmp_path / "landing" / name / "labelled.dcm"))
        assert np.array_equal(found.array, array)
        assert found.spacing_mm == pytest.approx(spacing)


def rows(*given: tuple[str, str, str, str]) -> list[dict[str, str]]:
    names = ("protocol", "laterality", "content_time", "sop_instance_uid")
    return [
        dict(zip(names, one, strict=True)) | {"filepath": f"/oct/dev/{index}.dcm"} for index, one in enumerate(given)
    ]


def test_one_rule_says_which_scan_is_taken_in_any_order() -> None:
    protocol = "spectralis_ppol_mac_hr_oct"
    view = View(device="dev", protocol=protocol, eye="R", other_eye=True)
    table = rows(
        (protocol, "L", "080000", "1"), (protocol, "R", "100000", "2"), (protocol, "R", "090000", "4"),
        (protocol, "R", "090000", "3"), ("spectralis_onh_rc_hr_oct", "R", "070000", "0"),
    )  # fmt: skip
    chosen = [view.choose(order) for order in (table, table[::-1])]
    assert [one and one["sop_instance_uid"] for one in chosen] == ["3", "3"]
    left = view.choose(table[:1])
    assert left is not None
    assert left["laterality"] == "L"
    assert view.model_copy(update={"other_eye": False}).choose(table[:1]) is None
    assert view.model_copy(update={"device": "another"}).choose(table) is None


def cases() -> list[Case]:
    """A whole cohort: each participant of the expected counts, the sites in turn."""
    rules = cohort()
    return [
        case_with(split=split, site=rules.sites[number % 3], study_group=group, protocol=rules.labelled.protocol)
        for split, counts in rules.expected.items()
        for group, n in zip(CLASSES, counts, strict=True)
        for number in range(n)
    ]


def test_a_whole_cohort_has_nothing_against_it_and_a_lost_site_has() -> None:
    rules = cohort()
    everybody = cases()
    assert len(everybody) == 743 + 159 + 159
    assert objections(everybody, rules, whole=True) == []
    # What a pattern for ids of four digits that start with 1 once left of a cohort.
    one_site = [one for one in everybody if one.facts["site"] == "UW"]
    messages = objections(one_site, rules, whole=False)
    assert len(messages) == 3
    assert all("UCSD, UAB" in one for one in messages)
    assert any(
        "expected 290 participants of healthy in train" in one for one in objections(one_site, rules, whole=True)
    )
    no_insulin = [one for one in everybody if one.facts["study_group"] != "insulin" or one.split != "test"]
    assert objections(no_insulin, rules, whole=False) == [
        "expected all classes in test, got none of insulin; import their participants too"
    ]
