"""Every version of a dataset can be read as it was, in a home of one machine and in a shared one."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from med_assets.catalog import Case, CaseFacts, Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import ArtifactMissing
from med_assets.records import DatasetCase
from med_assets.settings import Workspace
from med_assets.storage.s3.bucket import Location

P = "rt_dose"


@pytest.fixture(params=["folder", "bucket"])
def ws(request: pytest.FixtureRequest, workspace: Workspace) -> Workspace:
    if request.param == "folder":
        return workspace
    request.getfixturevalue("faults")
    return replace(workspace, store_location=Location(request.getfixturevalue("name"), "site"))


def cases(ws: Workspace, versions: dict[str, str]) -> Catalog:
    """Write a dataset of these versions of cases with a fact each, and assign their patients."""
    catalog = Catalog(ws, P)
    facts = [
        CaseFacts("b1", name, version, {"prescription_gy": float(len(name) + int(version))})
        for name, version in versions.items()
    ]
    catalog.replace_facts(facts, f"b{max(versions.values())}")
    rows = [
        DatasetCase(
            program=P, case_id=name, patient_id=f"p-{name}", version=version, content_hash=name + version,
            artifact=f"prepared/{name}{version}", given_split=None, synthetic=True,
        )
        for name, version in sorted(versions.items())
    ]  # fmt: skip
    catalog.replace(DatasetCase, rows)
    stages.splits(ws, P)
    return catalog


def plain(catalog: Catalog) -> list[dict[str, object]]:
    """The cases of a dataset as values that can be compared."""
    names = [each.name for each in fields(Case)]
    return [{name: getattr(case, name) for name in names} | {"facts": dict(case.facts)} for case in catalog.described()]


def test_an_earlier_version_is_as_it_was_whatever_came_since(ws: Workspace, tmp_path: Path) -> None:
    first = cases(ws, {"a": "1", "bb": "1"})
    version, described, assignments = first.dataset().version, plain(first), first.assignments()
    assert [case.facts["prescription_gy"] for case in first.described()] == [2.0, 3.0]
    second = cases(ws, {"a": "2", "ccc": "2"})
    at = Catalog(ws, P).dataset_at(version)
    assert at.dataset().version == version
    assert plain(at) == described
    assert at.assignments() == assignments
    assert {case.split for case in at.cases()} <= {"train", "val", "test", "external"}
    found = Catalog(ws, P).dataset_versions()
    assert [one.version for one in found] == [second.dataset().version, version]
    assert (found[1].n_cases, found[1].n_patients, sum(found[1].patients_per_split.values())) == (2, 2, 2)
    stages.splits(ws, P)
    assert Catalog(ws, P).dataset_versions() == found
    assert Catalog(ws, "lung_ct").dataset_versions() == []
    with pytest.raises(ArtifactMissing):
        Catalog(ws, "lung_ct").dataset_at(version)


def test_another_machine_reads_a_version_of_a_shared_home(
    workspace: Workspace, name: str, faults: object, tmp_path: Path
) -> None:
    one, two = (
        replace(workspace, home=tmp_path / machine, store_location=Location(name, "site")) for machine in ("one", "two")
    )
    catalog = cases(one, {"a": "1"})
    assert plain(Catalog(two, P).dataset_at(catalog.dataset().version)) == plain(catalog)
    assert [kept.n_cases for kept in Catalog(two, P).dataset_versions()] == [1]


def test_the_same_cases_of_other_batches_are_the_same_version_to_the_byte(workspace: Workspace, tmp_path: Path) -> None:
    at_once, one_by_one = (replace(workspace, home=tmp_path / name) for name in ("at_once", "one_by_one"))
    cases(at_once, {"a": "1", "bb": "1"})
    catalog = Catalog(one_by_one, P)
    for batch, name in (("b7", "bb"), ("b8", "a"), ("b9", "a")):
        catalog.replace_facts([CaseFacts(batch, name, "1", {"prescription_gy": len(name) + 1.0})], batch)
    catalog.replace(DatasetCase, Catalog(at_once, P).dataset().cases)
    stages.splits(one_by_one, P)
    (key,) = at_once.store.keys("dataset")
    assert one_by_one.store.file_hashes(key) == at_once.store.file_hashes(key)


def test_an_empty_dataset_is_no_version(workspace: Workspace) -> None:
    stages.splits(workspace, P)
    assert Catalog(workspace, P).dataset_versions() == []
    assert not (workspace.home / "store" / "dataset").exists()


def test_the_command_lists_versions_shows_one_and_exports_it(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = cases(workspace, {"a": "1", "bb": "1"}).dataset().version
    now = cases(workspace, {"a": "2"}).dataset().version
    assert main(["dataset-versions", P]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["version", now, version]
    assert main(["dataset-versions", P, version[:6], "--export", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "prepared/a1" in output
    assert "prepared/a2" not in output
    assert pq.read_table(tmp_path / "out" / "dataset.parquet")["case_id"].to_pylist() == ["a", "bb"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.parquet",
        f"{P}_facts.parquet",
        "splits.parquet",
    ]
    shutil.rmtree(tmp_path / "out")
    assert main(["dataset-versions", P, "abcdef"]) == 1
    assert "which 0 have" in capsys.readouterr().err
