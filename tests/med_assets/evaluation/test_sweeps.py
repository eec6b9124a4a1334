"""Sweeps: what is combined, what is refused before anything is trained, and that no case of another split is ever opened."""

import shutil
from pathlib import Path

import pytest

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.command_line import cli
from med_assets.errors import ConfigurationError
from med_assets.evaluation.sweeps import Field, combinations, fields_of, recorded, split_values, sweep_id
from med_assets.launch.jobs import Kind, kind
from med_assets.records import DatasetCase, SplitAssignment
from med_assets.reporting.evaluation_sections import swept
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import gather
from med_assets.requested_records import SweepScore
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json
from med_assets.training import job as training
from med_assets.training import predict
from tests.med_assets.programs.retinal_oct.builders import TINY, write_prepared

P, NAME = "retinal_oct", "random_probe"
SPLITS = {"train": 4, "val": 4, "test": 3, "external": 1}
FIXED = (*(word for word in TINY if not word.startswith("learning.")), "schedule.patience=5")
GRID = ("optimiser.weight_decay=1e-4,0.1", "head.dropout=0,0.5")


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """Cases of all splits in the tables; those of train and val alone in the store, so that a look at another raises."""
    rows, places = [], []
    for split, n in SPLITS.items():
        for number in range(n):
            name = f"{split}{number}"
            key = "prepared/" + digest(name)
            if split in ("train", "val"):
                source = write_prepared(workspace.home / "arrays" / name, number)
                with workspace.store.create(key) as folder:
                    shutil.copytree(source, folder, dirs_exist_ok=True)
            versions = {"version": digest(name), "content_hash": digest(name), "artifact": key}
            keys = {"program": P, "case_id": name, "patient_id": f"p-{name}"} | versions
            rows.append(DatasetCase.of(keys | {"synthetic": True}))
            places.append(
                SplitAssignment(program=P, patient_id=f"p-{name}", split=split, fold=number, assigned_by="test")
            )
    Catalog(workspace, P).replace(DatasetCase, rows)
    Catalog(workspace, P).replace(SplitAssignment, places)
    return workspace


def launch(job: Path) -> None:
    """Do a job in this process."""
    predict.run(job) if kind(job) is Kind.PREDICTION else training.run(job)


def test_values_are_separated_by_the_commas_outside_of_brackets_and_quotes() -> None:
    assert split_values("1e-3,1e-4") == ("1e-3", "1e-4")
    assert split_values("auto,[1, 2,3,4]") == ("auto", "[1, 2,3,4]")
    assert split_values("'a,b',{c: [1,2]}") == ("'a,b'", "{c: [1,2]}")
    for wrong in ("", "1,,2", "1,", "[1,2", "'a", "[1,2)"):
        with pytest.raises(ConfigurationError, match="expected values between commas"):
            split_values(wrong)


def test_fields_are_combined_each_value_with_each(ws: Workspace) -> None:
    fields = fields_of(["optimiser.lr=1e-3,1e-4", "head.hidden=0,8,16", "schedule.epochs=2"])
    found = combinations(ws, P, NAME, fields, 6)
    assert [each.number for each in found] == [1, 2, 3, 4, 5, 6]
    assert found[1].overrides == ("optimiser.lr=1e-3", "head.hidden=8", "schedule.epochs=2")
    assert len({each.experiment.hash() for each in found}) == 6
    assert {each.experiment.schedule.epochs for each in found} == {2}
    assert sweep_id([Field("a", ("1", "2")), Field("b", ("3",))]) == sweep_id(
        [Field("b", ("3",)), Field("a", ("2", "1"))]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimiser.lr=1,2,3", "head.hidden=0,8"], r"expected 2 to 5 combinations, got 3 x 2 = 6; .* --most"),
        (["optimiser.lr=1"], "expected 2 combinations or more, got 1"),
        (["learning.no_such_field=1,2"], "no_such_field"),
        (["optimiser.lr=1e-3,-1"], "optimiser.lr"),
        (["optimiser.lr=1,2", "optimiser.lr=3"], "optimiser.lr twice"),
        (["optimiser.lr=1,1"], "values that differ"),
        (["optimiser.lr"], "expected KEY=A,B"),
        (["runtime.workers=0,1"], "no result depends on, such as those of runtime"),
        (["initial=random,no_such_experiment"], "no_such_experiment"),
        (["optimiser.lr=1,${oc.env:HOME}"], "resolver"),
    ],
)
def test_what_can_not_be_swept_is_refused_before_anything_is_trained(
    ws: Workspace, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        stages.sweep(ws, P, NAME, words, 5, launch)
    assert not ws.jobs.exists()
    assert Catalog(ws, P).rows(SweepScore) == []


def test_every_combination_is_trained_once_scored_on_validation_and_recorded_and_no_other_case_is_opened(
    ws: Workspace,
) -> None:
    opened: list[set[str]] = []

    def listing(job: Path) -> None:
        opened.append({Path(case["folder"]).name for case in read_json(job / "cases.json")})
        launch(job)

    result = stages.sweep(ws, P, NAME, [*FIXED, *GRID], 4, listing)
    assert result.counts == {"combinations": 4, "new": 4, "reused": 0, "failed": 0}
    of_split = {
        split: {digest(f"{split}{number}") for number in range(SPLITS[split])} for split in ("train", "val", "test")
    }
    trainings, predictions = opened[::2], opened[1::2]
    assert trainings == [of_split["train"] | of_split["val"]] * 4
    assert predictions == [of_split["val"]] * 4
    rows = Catalog(ws, P).rows(SweepScore, NAME)
    assert [(row.number, row.metric) for row in rows] == [
        (number, metric) for number in (1, 2, 3, 4) for metric in ("balanced_accuracy", "log_loss")
    ]
    assert {(row.n, row.n_val, row.n_failed, row.synthetic) for row in rows} == {(4, 4, 0, True)}
    primary = [row for row in rows if row.metric == "balanced_accuracy"]
    best = max(row.mean for row in primary if row.mean is not None)
    assert sum(row.difference is None for row in primary) == 1
    assert all(row.difference == pytest.approx(row.mean - best) for row in primary if row.difference is not None)  # type: ignore[operator]  # one with a difference has a mean
    assert all((ws.jobs / row.job).is_dir() and row.hours is not None and row.hours > 0 for row in rows)
    shown = result.tables["sweep"]
    assert shown["optimiser.weight_decay"].tolist().count("0.1") == 2
    assert all("(n = 4)" in text for text in shown["log_loss"])
    assert Catalog(ws, P).checkpoint(NAME) is None  # it chooses nothing: the experiment has no new checkpoint

    def refusing(job: Path) -> None:
        raise AssertionError("nothing is left to be done")

    again = stages.sweep(ws, P, NAME, [*reversed(GRID), *FIXED], 4, refusing)
    assert again.counts == {"combinations": 4, "new": 0, "reused": 4, "failed": 0}
    assert len(Catalog(ws, P).keys(SweepScore)) == 1


def test_a_combination_that_fails_has_its_reason_and_the_others_are_trained(ws: Workspace) -> None:
    words = [*FIXED, "optimiser.lr=1e-2,1e30", "optimiser.clip=1e30", "learning.unfreeze_at=0"]
    result = stages.sweep(ws, P, NAME, words, 4, launch)
    assert result.counts == {"combinations": 2, "new": 1, "reused": 0, "failed": 1}
    good, bad = (row for row in Catalog(ws, P).rows(SweepScore, NAME) if row.metric == "log_loss")
    assert (good.n, good.reason, bad.mean, bad.checkpoint) == (4, None, None, "")
    assert bad.reason is not None
    assert "loss" in bad.reason
    shown = result.tables["sweep"]
    assert shown["optimiser.lr"].tolist() == ["1e-2", "1e30"]
    assert shown["reason"].tolist() == ["", bad.reason]


def test_a_sweep_is_in_the_report_and_says_when_the_dataset_has_changed(ws: Workspace) -> None:
    stages.sweep(ws, P, NAME, [*FIXED, "head.dropout=0,0.5"], 4, launch)
    (section,) = swept(gather(ws, P))
    assert isinstance(section, Section)
    assert section.title.startswith("Sweep of random_probe: ")
    assert "head.dropout" in section.title
    assert "No test case was read" in section.text
    assert "has changed since" not in section.text
    Catalog(ws, P).replace(DatasetCase, Catalog(ws, P).rows(DatasetCase)[1:])
    (section,) = swept(gather(ws, P))
    assert isinstance(section, Section)
    assert "The dataset has changed since" in section.text
    assert recorded(ws, P, "scratch") == []


def test_the_command_sweeps_as_many_combinations_as_its_help_says() -> None:
    option = next(each for each in cli.commands["sweep"].params if each.name == "most")
    assert option.default == 32
