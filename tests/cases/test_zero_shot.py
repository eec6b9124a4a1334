"""Released weights used as they are, where no case has a label: published, reported as unscored, and applied to unlabelled cases."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from med_assets.catalog import Case
from med_assets.cli import main as cli
from med_assets.cli import stages
from med_assets.dataset.stage import unlabelled
from med_assets.errors import ConfigurationError
from med_assets.evaluation.checks import doubts
from med_assets.evaluation.stage import NO_CASE
from med_assets.experiments import configuration as experiments
from med_assets.experiments import policies
from med_assets.launch.training import LEARNING, checkpoint_key
from med_assets.reporting.experiment_record import record
from med_assets.screening.thresholds import thresholds
from med_assets.settings import Workspace
from med_assets.training import job
from med_assets.training.released import filled, trial
from med_assets.training.task import Task, build
from tests.cases.test_to_predict import phantoms, strip
from tests.invented import ingest

torch.set_num_threads(1)

AS_RELEASED = ("schedule.epochs=0", "schedule.validate_first=true")
ONE_EPOCH = ("schedule.epochs=1", "schedule.val_every=1")
SMALL = ("network.kind=small", "network.widths=[8,16,24,32,48]", "network.decoder=[32,24,16,8,8]")
"""A network that is inferred in a hundredth of the time of the released one, whose tensors tests of `released` put into it."""


def without_labels(ws: Workspace, name: str, folder: Path, n: int) -> None:
    """Take in phantoms without reader labels."""
    (ws.landing / name).mkdir(parents=True)
    for source in phantoms(folder, name, n, 5):
        strip(source, name).rename(ws.landing / name / source.name)
    _, prepared = ingest(ws, name)
    assert {row["status"] for row in prepared} == {"to predict"}, prepared[0]["reason"]
    stages.dataset(ws, name)
    stages.splits(ws, name)


def put(ws: Workspace, name: str, release: str, content: object) -> None:
    """Put a file into the place of a release."""
    path = ws.home / "weights" / policies.of(name).released[release].file
    path.parent.mkdir(parents=True)
    torch.save(content, path)


def train_here(folder: Path) -> None:
    """Run a training in this process."""
    job.run(folder)


def random_release(name: str, experiment: str, overrides: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of an experiment's network, filled by the recipe of `filled`."""
    on = trial(name, experiments.load(name, experiment, overrides, profile="demo"))
    filled(on)
    return {key: tensor.clone() for key, tensor in on.weights.items()}


def test_studies_without_labels_are_ranked_and_predicted_by_the_release_alone(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws, name = workspace, "lumbar_mr"
    without_labels(ws, name, tmp_path / "cases", 2)
    release = random_release(name, "zero_shot", SMALL)
    wrapped = {f"module.{key}": tensor for key, tensor in release.items()}
    put(ws, name, "point_net", {"state_dict": wrapped, "epoch": 1})

    assert cli.main(["train", "lumbar_mr/zero_shot", *SMALL]) == 0
    assert cli.main(["evaluate", "lumbar_mr/zero_shot"]) == 0
    output = capsys.readouterr().out
    assert NO_CASE in output
    (row,) = ws.lake.rows("checkpoints", f"{name}/zero_shot")
    assert (row["n_train"], row["n_val"]) == (0, 0)
    assert ws.lake.rows("evaluation", f"{name}/zero_shot") == []
    folder = ws.store.fetch(row["checkpoint"])
    published = torch.load(folder / "weights.pt", weights_only=True)
    assert published.keys() == release.keys()
    assert all(torch.equal(published[key], tensor) for key, tensor in release.items())
    record = json.loads((folder / "provenance.json").read_text())
    assert record["cases"] == []
    assert record["initial"].startswith("released/point_net-")

    assert cli.main(["audit-queue", name, "--model", "zero_shot"]) == 0
    queue = pd.read_csv(ws.reports / name / "screening" / "audit_queue.csv")
    assert sorted(queue["rank"]) == [1, 2]
    assert set(queue["case_id"]) == {case.case_id for case in unlabelled(ws, name)}
    assert not queue["seen_in_training"].any()

    phantoms(tmp_path / "new", name, 1, 9)
    assert (
        cli.main(["predict", name, str(tmp_path / "new"), "--model", "zero_shot", "--out", str(tmp_path / "out")]) == 0
    )
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(table["status"]) == ["predicted"]
    assert cli.main(["leaderboard", name]) == 0
    assert thresholds(ws, name, "zero_shot").counts == {"thresholds": 0}


@pytest.mark.parametrize(
    ("name", "experiment", "initial"),
    [
        ("breast_us", "tinyusfm", "released/tinyusfm"),
        ("lumbar_mr", "middle_slice", "point_net"),
        ("lung_ct", "foundation", "released/vista3d132"),
        ("retinal_oct", "pretrain_multi_domain", "released/multi_domain"),
        ("rt_dose", "residual", "baseline"),
    ],
)
def test_weights_are_published_as_they_came_where_no_case_can_validate_them(
    name: str, experiment: str, initial: str
) -> None:
    begun = [f"initial={initial}", *AS_RELEASED]
    chosen = experiments.load(name, experiment, begun, profile="demo")
    assert chosen.untrained
    task = build(name, chosen, [])
    assert isinstance(task, Task)
    assert (task.module, task.train, task.val) == (None, None, None)
    assert (task.initial_tensors or task.weights)()
    for other in (
        [f"initial={initial}", "schedule.epochs=1", "schedule.val_every=1"],
        ["initial=random", *AS_RELEASED],
    ):
        assert not experiments.load(name, experiment, other, profile="demo").untrained


def test_a_head_at_random_is_not_published_without_a_case_to_validate_it(workspace: Workspace) -> None:
    begun = ["initial=released/multi_domain", *AS_RELEASED]
    with pytest.raises(ConfigurationError, match="expected a case of split train"):
        build("retinal_oct", experiments.load("retinal_oct", "probe_multi_domain", begun, profile="demo"), [])


def test_a_foundation_without_cases_is_published_and_said_to_be_unscored(workspace: Workspace) -> None:
    ws = workspace
    release = random_release("lung_ct", "foundation")
    put(ws, "lung_ct", "vista3d132", release)
    begun = ["initial=released/vista3d132", *AS_RELEASED]
    stages.dataset(ws, "lung_ct")
    stages.splits(ws, "lung_ct")
    stages.train(ws, "lung_ct", "foundation", begun, train_here)
    assert stages.evaluate(ws, "lung_ct", "foundation").summary["note"] == NO_CASE
    (row,) = ws.lake.rows("checkpoints", "lung_ct/foundation")
    result = json.loads((ws.store.fetch(row["checkpoint"]) / "result.json").read_text())
    assert (result["n_train"], result["n_val"], result["best_value"], result["used"]) == (0, 0, None, [])
    assert (doubts(ws, "lung_ct", "foundation").passed, NO_CASE) == (
        False,
        record(ws, "lung_ct", "foundation").summary["note"],
    )
    with pytest.raises(ConfigurationError, match="at least one training and one validation case"):
        stages.train(ws, "lung_ct", "foundation", ["initial=released/vista3d132"], lambda folder: None)


def learning(name: str, n: int) -> list[Case]:
    """Learning cases."""
    return [
        Case(name, f"c{place}", f"p{place}", f"v{place}", "", f"{name}/{place}", None, False, LEARNING[place % 2])
        for place in range(n)
    ]


@pytest.mark.parametrize(
    ("name", "experiment", "initial", "depends"),
    [
        ("breast_us", "tinyusfm", "released/tinyusfm", False),
        ("lumbar_mr", "zero_shot", "released/point_net", False),
        ("lung_ct", "foundation", "released/vista3d132", False),
        ("retinal_oct", "pretrain_multi_domain", "released/multi_domain", False),
        (
            "retinal_oct",
            "probe_multi_domain",
            "released/multi_domain",
            True,
        ),  # its head standardises embeddings of them
        ("rt_dose", "residual", "baseline", False),
        ("rt_dose", "mean_dose", "random", True),
        ("lumbar_mr", "mean_position", "random", True),
    ],
)
def test_a_checkpoint_that_learned_nothing_has_a_key_without_the_learning_cases(
    name: str, experiment: str, initial: str, depends: bool
) -> None:
    no_epoch = [] if initial == "random" else AS_RELEASED
    chosen = experiments.load(name, experiment, [f"initial={initial}", *no_epoch], profile="demo")
    keys = {checkpoint_key(name, chosen, learning(name, n), initial="released") for n in (0, 2, 4)}
    assert len(keys) == (3 if depends else 1)
    assert checkpoint_key(name, chosen, [], initial="other") not in keys
    trained = experiments.load(name, experiment, [f"initial={initial}", *ONE_EPOCH], profile="demo")
    assert len({checkpoint_key(name, trained, learning(name, n)) for n in (0, 2, 4)}) == 3
