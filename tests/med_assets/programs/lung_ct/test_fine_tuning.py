"""Fine-tuning that helps is recommended; fine-tuning that harms is named by the check and refused by the gate."""

from pathlib import Path

import pytest

from med_assets.cli import stages
from med_assets.evaluation import finetuning
from med_assets.evaluation.checks import fine_tuning
from med_assets.promotion import stage as promotion
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json
from med_assets.training import predict
from med_assets.training.job import run
from tests.med_assets.programs.lung_ct.builders import P, write_prepared

SPLITS = ("train",) * 5 + ("val",) * 4
SHORT = (
    "patches.size=[16,16,16]",
    "patches.per_epoch=60",
    "inference.window=[24,24,24]",
    "schedule.batch=2",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("prepared")
    # The grid of training is the scanner's, so that each case is one window.
    spacing_mm = (10.0, 12.0, 12.0)
    return [
        write_prepared(folder / f"case{index}", index, spacing_mm=spacing_mm, training_mm=spacing_mm)
        for index in range(len(SPLITS))
    ]


@pytest.fixture
def ws(workspace: Workspace, prepared: list[Path]) -> Workspace:
    """A dataset of small chests made by hand, with a trained and evaluated foundation model."""
    rows, places = [], []
    for path, split in zip(prepared, SPLITS, strict=True):
        name = path.name
        artifact = "prepared/" + digest(name)
        with workspace.store.create(artifact) as folder:
            for file in path.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        keys = {"program": P, "case_id": name, "patient_id": f"p-{name}", "version": digest(name)}
        rows.append(keys | {"content_hash": digest(name), "given_split": None, "synthetic": True, "artifact": artifact})
        places.append({"program": P, "patient_id": f"p-{name}", "split": split, "fold": 0, "assigned_by": "test"})
    workspace.lake.write("dataset", P, rows)
    workspace.lake.write("splits", P, places)
    # At this rate it learns enough on every CPU that what harms is worse by more than CPUs differ in rounding.
    trained(workspace, "foundation", "schedule.epochs=2", "optimiser.lr=4e-3", "labels={mode:target,mapping:[]}")
    return workspace


def trained(ws: Workspace, name: str, *overrides: str) -> None:
    """Train an experiment and evaluate it, in this process."""
    stages.train(ws, P, name, (*SHORT, *overrides), launch=lambda job: run(job) and None)
    stages.evaluate(ws, P, name, lambda job: predict.run(job) and None)


def output(ws: Workspace, name: str) -> dict[str, object]:
    record = finetuning.recorded(ws, P, name)
    assert record is not None
    found: dict[str, object] = read_json(finetuning.record_path(ws, P, name))["output"]
    assert found == record.output
    return found


@pytest.mark.slow
def test_what_helps_is_recommended_and_what_harms_is_refused_by_the_right_check(ws: Workspace) -> None:
    began = ws.lake.rows("checkpoints", f"{P}/foundation")[0]["checkpoint"]

    trained(ws, "target_anatomy", "schedule.epochs=1", "patches.per_epoch=4", "optimiser.lr=50", "optimiser.min_lr=50")
    harmed = output(ws, "target_anatomy")
    assert (harmed["best_epoch_index"], harmed["regressed"], harmed["recommended_ckpt"]) == (0, True, began)
    assert harmed["finetuned_ckpt_matches_pretrained_weights"]
    reason = fine_tuning(ws, P, "target_anatomy").reason
    assert "its weights are those" in reason
    assert "every epoch of training was worse" in reason

    # A lung, source value 2, is taken for the tumour: training itself sees its Dice rise, the formal evaluation does not.
    trained(ws, "task06_sanity", "schedule.epochs=1", "patches.per_epoch=30", "labels.mapping=[[2,23]]")
    mistaken = output(ws, "task06_sanity")
    assert mistaken["improvement_over_baseline"] > 0
    assert mistaken["formal_improvement_over_pretrained"] < 0
    assert mistaken["recommended_ckpt"] == began
    outcome = fine_tuning(ws, P, "task06_sanity")
    assert not outcome.passed
    assert "not better than its initial weights" in outcome.reason

    stages.champion(ws, P)
    assert promotion.current(ws, P) is None
    trained(ws, "auto_seg", "schedule.epochs=2", "optimiser.lr=4e-3", "labels={mode:target,mapping:[]}")
    helped = output(ws, "auto_seg")
    assert helped["formal_improvement_over_pretrained"] > 0.02, helped
    assert fine_tuning(ws, P, "auto_seg").passed
    assert helped["recommended_ckpt"] == helped["finetuned_ckpt"] != began
