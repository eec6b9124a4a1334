"""Learning curves: who is trained on at each size, how long, what is recorded, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from med_assets.catalog import Case, Catalog
from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.evaluation import learning_curves as stage
from med_assets.evaluation.learning_curves import curve, in_as_many_steps, subsets
from med_assets.experiments.configuration import load
from med_assets.metrics.score import Score
from med_assets.reporting.evaluation_sections import learning_curves
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import gather
from med_assets.requested_records import CurvePoint
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from tests.med_assets.stages import models
from tests.med_assets.stages.builders import P

TRAIN = tuple(f"t{number}" for number in range(8))
VAL = ("v0", "v1", "v2")


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """Eight training and three validation patients of one case each."""
    models.cases(workspace, {"train": TRAIN, "val": VAL, "test": ["x"]})
    for name in (*TRAIN, *VAL):
        with workspace.store.create(models.artifact(name)) as folder:
            (folder / "case.json").write_text("{}")
    return workspace


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores without a model: 8, 4 and 2 Gy divided by the root of the number of training cases."""

    def score(ws: Workspace, program: str, checkpoint: str, cases: list[Case], launch: object) -> object:
        learned = read_json(ws.store.fetch(checkpoint) / "provenance.json")["cases"]
        n = sum(case["split"] == "train" for case in learned)
        levels = dict(zip(VAL, (8.0, 4.0, 2.0), strict=True))
        found = {
            case.case_id: [Score(models.PRIMARY, "body", levels[case.case_id] * n**-0.5, "Gy", "test")]
            for case in cases
        }
        return found, {}, {}

    monkeypatch.setattr(stage, "score_cases", score)


def case(case_id: str, patient_id: str, split: str) -> Case:
    """A case of which nothing but its patient and split matters."""
    return Case(P, case_id, patient_id, "", "", "", None, False, split)


def test_a_larger_set_holds_the_smaller_and_patients_are_never_torn() -> None:
    cases = [
        case(f"{name}-{number}", name, "val" if name in VAL else "train")
        for name in (*TRAIN, *VAL)
        for number in range(2)
    ]
    found = subsets(cases, [4, 2, 8], 2)
    assert [(one.repeat, one.patients, one.n_train) for one in found] == [
        (0, 2, 4), (0, 4, 8), (0, 8, 16), (1, 2, 4), (1, 4, 8),
    ]  # fmt: skip
    people = {
        (one.repeat, one.patients): {case.patient_id for case in one.cases if case.split == "train"} for one in found
    }
    assert people[0, 2] < people[0, 4] < people[0, 8] == set(TRAIN)
    assert people[1, 2] < people[1, 4]
    assert people[1, 4] != people[0, 4]
    assert all(
        {case.case_id for case in one.cases} >= {f"{name}-{n}" for name in VAL for n in range(2)} for one in found
    )
    arrived = [*cases, case("new", "new", "train")]
    kept = {case.patient_id for case in subsets(arrived, [4], 1)[0].cases if case.split == "train"}
    assert len(kept & people[0, 4]) >= 3  # a newcomer takes the place of one patient at most


def test_smaller_sets_train_for_as_many_steps_in_as_many_validations() -> None:
    whole = load(P, "baseline", ["schedule.epochs=20", "schedule.val_every=2", "patches.per_epoch=null"])
    quarter = in_as_many_steps(whole, 2, 8)
    assert (quarter.schedule.epochs, quarter.schedule.val_every) == (80, 8)
    assert in_as_many_steps(whole, 8, 8) is whole
    fixed = load(P, "baseline", ["patches.per_epoch=60"])
    assert in_as_many_steps(fixed, 2, 8) is fixed


def test_the_curve_is_recorded_predicted_from_and_shown_and_the_whole_set_is_the_experiment_itself(
    ws: Workspace, launch: Callable[[Path], None]
) -> None:
    plain = stages.train(ws, P, "baseline", launch=launch)
    result = stages.learning_curve(ws, P, "baseline", [2, 4, 8], 2, launch=launch)
    assert result.counts == {"new": 4, "reused": 1, "sizes": 3, "failed": 0}
    rows = ws.lake.rows("learning_curve", f"{P}/baseline")
    assert [(row["repeat"], row["n_patients"], row["n_train"], row["n_val"], row["steps"]) for row in rows] == [
        (0, 2, 2, 3, 50), (0, 4, 4, 3, 50), (0, 8, 8, 3, 50), (1, 2, 2, 3, 50), (1, 4, 4, 3, 50),
    ]  # fmt: skip
    assert rows[2]["checkpoint"] == plain.summary["checkpoint"]
    table = result.tables["learning curve"]
    assert table["difference to the size before"].tolist()[0] == ""
    assert [text.split()[0] for text in table[f"{models.PRIMARY} (Gy)"]] == ["3.300", "2.333", "1.650"]
    assert "with b = 0.500" in result.summary["answer"]
    assert "Twice the patients (16) are predicted to change it by -29.3" in result.summary["answer"]
    assert result.images["learning_curve_baseline"].is_file()
    (section,) = learning_curves(gather(ws, P))
    assert isinstance(section, Section)
    assert "has changed since" not in section.text
    ws.lake.write("dataset", P, ws.lake.rows("dataset", P)[:-1])
    (section,) = learning_curves(gather(ws, P))
    assert "The dataset has changed since" in section.text
    again = stages.learning_curve(ws, P, "baseline", [2, 4, 8], 2, launch=launch)
    assert again.counts["new"] == 0


def test_two_sizes_give_a_difference_but_no_prediction(ws: Workspace, launch: Callable[[Path], None]) -> None:
    result = stages.learning_curve(ws, P, "baseline", [2, 8], launch=launch)
    assert "expected 3 sizes or more" in result.summary["answer"]
    shown = result.tables["learning curve"]["difference to the size before"].tolist()
    assert shown[1].startswith("-1.650")


def test_initial_weights_and_members_are_trained_on_the_patients_of_a_size_alone(
    ws: Workspace, launch: Callable[[Path], None]
) -> None:
    result = stages.learning_curve(ws, P, "baseline", [2, 8], overrides=["initial=deeper_unet"], launch=launch)
    assert result.counts["new"] == 4, "the initial weights and the experiment, of each size"
    assert stages.learning_curve(ws, P, "ensemble", [2, 8], launch=launch).counts["new"] == 6, "deeper_unet was trained"
    for name in ("baseline", "ensemble"):
        for point in Catalog(ws, P).rows(CurvePoint, name):
            made = read_json(ws.store.fetch(point.checkpoint) / "provenance.json")
            learned = {case["case_id"] for case in made["cases"] if case["split"] == "train"}
            assert len(learned) == point.n_patients
            for key in made.get("members") or [made["initial"]]:
                before = read_json(ws.store.fetch(key) / "provenance.json")["cases"]
                assert {case["case_id"] for case in before if case["split"] == "train"} == learned


def test_an_interrupted_curve_goes_on_with_the_sizes_that_are_missing(
    ws: Workspace, launch: Callable[[Path], None]
) -> None:
    ws.jobs.mkdir(parents=True)
    (ws.jobs / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        stages.learning_curve(ws, P, "baseline", [2, 4, 8], launch=launch)
    assert stages.learning_curve(ws, P, "baseline", [2, 4, 8], launch=launch).counts["reused"] == 1


def test_written_sizes_wait_for_patients_and_given_ones_are_refused(
    ws: Workspace, launch: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.configure(
        tmp_path, monkeypatch, learning_curve={"experiment": "baseline", "sizes": [2, 8, 100], "repeats": 1}
    )
    assert stages.learning_curve(ws, P, "baseline", launch=launch).counts["sizes"] == 2
    with pytest.raises(ConfigurationError, match=r"of 1 to 8 training patients, got \[2, 9\]"):
        stages.learning_curve(ws, P, "baseline", [2, 9])
    with pytest.raises(ConfigurationError, match="expected the sizes to try, got none; give --sizes"):
        stages.learning_curve(ws, P, "grad_loss")
    with pytest.raises(ConfigurationError, match="got those of the champion for baseline"):
        stages.learning_curve(ws, P, "baseline", overrides=["initial=champion"])


def test_a_case_that_could_not_be_scored_at_one_size_is_in_no_difference_and_not_in_the_fit() -> None:
    rows = pd.DataFrame(
        [
            {
                "repeat": 0,
                "n_patients": n,
                "case_id": case,
                "patient_id": case,
                "metric": models.PRIMARY,
                "subject": "body",
            }
            | {"value": level / n, "truth": None}
            for n in (2, 4, 8)
            for case, level in {"a": 8.0, "b": 16.0, "c": 80.0}.items()
            if (n, case) != (4, "c")
        ]
    )
    table = pd.DataFrame([{"n_patients": n, "n_train": n, "steps": 5, "repeat": 0} for n in (2, 4, 8)])
    found, law = curve(P, table, rows)
    assert found["n"].tolist() == [3, 2, 3]
    assert found["step"].tolist()[1:] == [-3.0, -1.5]
    assert not isinstance(law, str)
    assert (law.exponent.mean, law.score.n) == (pytest.approx(1.0), 2)
