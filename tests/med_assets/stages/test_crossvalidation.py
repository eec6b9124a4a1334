"""Cross-validation: who sees whom, what is recorded, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.evaluation import crossvalidation as stage
from med_assets.evaluation.crossvalidation import CROSSVAL, STRATIFIED, classes_of, deal, folds_of, learning
from med_assets.metrics.score import Score
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from tests.med_assets.stages import models
from tests.med_assets.stages.builders import P

PEOPLE = tuple(f"c{number}" for number in range(9))
FOLDS = {name: number % 3 for number, name in enumerate(PEOPLE)}


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """Nine patients in three folds, whatever their split; one more in an external test set."""
    models.cases(workspace, {"train": PEOPLE[:5], "val": PEOPLE[5:7], "test": PEOPLE[7:], "external": ["x"]})
    rows = [row | {"fold": FOLDS.get(row["patient_id"][2:], 0)} for row in workspace.lake.rows("splits", P)]
    workspace.lake.write("splits", P, rows)
    for name in (*PEOPLE, "x"):
        with workspace.store.create(models.artifact(name)) as folder:
            (folder / "case.json").write_text("{}")
    return workspace


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Scores without a model: who was scored by which checkpoint is kept."""
    asked: list[tuple[str, list[str]]] = []

    def score(ws: Workspace, program: str, checkpoint: str, cases: list[Case], launch: object) -> object:
        ids = [case.case_id for case in cases]
        asked.append((checkpoint, ids))
        score = Score(models.PRIMARY, "body", 1.0, "Gy", "test")
        return {one: [score] for one in ids if one != "c8"}, {}, {"c8": "ValueError: broken"} if "c8" in ids else {}

    monkeypatch.setattr(stage, "score_cases", score)
    return asked


def test_no_patient_is_scored_by_a_model_that_has_seen_it(
    ws: Workspace, launch: Callable[[Path], None], scored: list[tuple[str, list[str]]]
) -> None:
    result = stages.crossval(ws, P, "baseline", launch=launch)
    assert len(scored) == 3
    for checkpoint, held_out in scored:
        seen = {
            case["case_id"]: case["split"]
            for case in read_json(ws.store.fetch(checkpoint) / "provenance.json")["cases"]
        }
        assert set(seen).isdisjoint(held_out)
        assert set(seen) | set(held_out) == set(PEOPLE)
        assert list(seen.values()).count("val") == 1
    assert result.counts == {"new": 3, "reused": 0, "cases": 9, "failed": 1}
    assert result.summary["failures"] == {"c8": "ValueError: broken"}
    rows = ws.lake.rows("crossval_cases", P)
    assert {(row["case_id"], row["fold"]) for row in rows} == {(name, FOLDS[name]) for name in PEOPLE if name != "c8"}
    assert {row["split"] for row in rows} == {CROSSVAL}
    folds = ws.lake.rows("crossval", P)
    assert [(row["n_train"], row["n_inner"], row["n_held_out"], row["epoch"]) for row in folds] == [(5, 1, 3, 3)] * 3
    assert [row["n_failed"] for row in folds] == [0, 0, 1]


def test_an_interrupted_cross_validation_goes_on_with_the_folds_that_are_missing(
    ws: Workspace, launch: Callable[[Path], None]
) -> None:
    ws.jobs.mkdir(parents=True)
    (ws.jobs / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        stages.crossval(ws, P, "baseline", launch=launch)
    assert ws.lake.rows("crossval", P) == []
    assert stages.crossval(ws, P, "baseline", launch=launch).counts["reused"] == 1


def test_the_inner_part_is_of_whole_patients_and_differs_from_fold_to_fold(ws: Workspace) -> None:
    folds = folds_of(ws, P)
    twins = {
        fold: [*cases, *(replace(case, case_id=case.case_id + "b") for case in cases)] for fold, cases in folds.items()
    }
    inner = []
    for fold in folds:
        by_split = {
            split: {case.patient_id for case in learning(twins, fold) if case.split == split}
            for split in ("train", "val")
        }
        assert by_split["train"].isdisjoint(by_split["val"])
        inner.append(by_split["val"])
    assert inner[0] != inner[1] or inner[1] != inner[2]


def test_the_same_images_in_two_folds_are_refused(ws: Workspace) -> None:
    rows = ws.lake.rows("dataset", P)
    rows[1]["content_hash"] = rows[0]["content_hash"]
    ws.lake.write("dataset", P, rows)
    with pytest.raises(ConfigurationError, match="1 image contents are in two folds; withdraw the copies"):
        stages.crossval(ws, P, "baseline")


def test_an_experiment_that_starts_from_the_champion_is_refused(ws: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="of the champion for baseline, which was trained on others too"):
        stages.crossval(ws, P, "baseline", ["initial=champion"])


def test_what_an_experiment_starts_from_is_trained_in_each_fold_and_has_not_seen_it(
    ws: Workspace, launch: Callable[[Path], None], scored: list[tuple[str, list[str]]]
) -> None:
    result = stages.crossval(ws, P, "dvh_aware", ["initial=baseline"], launch)
    assert (result.counts["new"], len(scored)) == (6, 3)
    initial = set()
    for checkpoint, held_out in scored:
        before = read_json(ws.store.fetch(checkpoint) / "provenance.json")["initial"]
        made = read_json(ws.store.fetch(before) / "provenance.json")
        assert {case["case_id"] for case in made["cases"]} == set(PEOPLE) - set(held_out)
        initial.add(before)
    assert len(initial) == 3
    assert Catalog(ws, P).checkpoint("baseline") is None, "a fold's checkpoint is not that of the experiment"
    assert stages.crossval(ws, P, "dvh_aware", ["initial=baseline"], launch).counts["reused"] == 6


def test_a_teacher_is_trained_in_each_fold_too_and_has_not_seen_it(
    ws: Workspace, launch: Callable[[Path], None], scored: list[tuple[str, list[str]]]
) -> None:
    result = stages.crossval(ws, P, "dvh_aware", ["+teacher=baseline"], launch)
    assert (result.counts["new"], len(scored)) == (6, 3)
    for checkpoint, held_out in scored:
        teacher = read_json(ws.store.fetch(checkpoint) / "provenance.json")["teacher"]
        made = read_json(ws.store.fetch(teacher) / "provenance.json")
        assert {case["case_id"] for case in made["cases"]} == set(PEOPLE) - set(held_out)
    with pytest.raises(ConfigurationError, match="of the champion for baseline"):
        stages.crossval(ws, P, "baseline", ["+teacher=dvh_aware", "initial=champion"])


def test_patients_are_dealt_out_so_that_folds_have_all_classes_alike() -> None:
    classes = {f"p{number}": "abbccccccc"[number % 10] for number in range(57)}
    parts = deal(classes, 5, "any")
    for group in (*(["a"], ["b"], ["c"]), ["a", "b", "c"]):
        sizes = [sum(parts[one] == part and classes[one] in group for one in classes) for part in range(5)]
        assert max(sizes) - min(sizes) <= 1
    assert deal(dict(reversed(classes.items())), 5, "any") == parts
    assert deal(classes, 5, "other") != parts


def test_stratified_folds_are_of_whole_patients_balanced_by_class_and_recorded(
    ws: Workspace, launch: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="expected a program whose cases have a class"):
        stages.crossval(ws, P, "baseline", stratified=True)
    monkeypatch.setattr(program.get(P), "class_fact", "structures_missing", raising=False)
    models.facts(
        ws, {name: {"structures_missing": "prostate" if number < 5 else "lung"} for number, name in enumerate(PEOPLE)}
    )
    folds = folds_of(ws, P, stratified=True)
    classes = classes_of(ws, P)
    assert set(classes.values()) == {"prostate", "lung", ""}
    for name in ("prostate", "lung"):
        sizes = [
            len({case.patient_id for case in cases if classes[case.patient_id] == name}) for cases in folds.values()
        ]
        assert max(sizes) - min(sizes) <= 1
    assert sorted(case.case_id for cases in folds.values() for case in cases) == sorted(PEOPLE)
    result = stages.crossval(ws, P, "baseline", launch=launch, stratified=True)
    assert STRATIFIED in result.summary["rule"]
    assert result.tables["patients of each class by fold"]["class"].tolist() == ["lung", "prostate"]
    assert {row["stratified"] for row in ws.lake.rows("crossval", P)} == {True}
