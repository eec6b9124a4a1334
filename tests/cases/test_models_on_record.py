"""What commands do about a model whose checkpoint, experiment file or name is not what it was."""

from pathlib import Path

import pytest

import assets
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.promotion.champions import current
from med_assets.promotion.gate import decisions
from med_assets.settings import Workspace
from med_assets.storage.conf import conf_folder
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, configure, constant, model


def make_evaluated(ws: Workspace) -> None:
    """Cases, the baseline of 5 Gy and a better experiment, not promoted yet."""
    cases(ws, {"train": TRAIN, "val": VAL})
    model(ws, "mean_dose", constant(5.0, step=0.02))
    model(ws, "baseline", constant(4.0))


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_evaluated)


@pytest.mark.parametrize(
    "words",
    [
        ("promote", P),
        ("monitor", P),
        ("evaluate", f"{P}/baseline"),
        ("report", P),
        ("predict", P, "v00", "--out", "out"),
        ("record", f"{P}/baseline"),
    ],
    ids=lambda words: words[0],
)
def test_a_champion_that_the_store_lost_is_named_with_what_to_do(
    ws: Workspace, words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stages.champion(ws, P)
    now = current(ws, P)
    assert now is not None
    ws.store.remove(now.checkpoint)
    model(ws, "grad_loss", constant(3.0))
    capsys.readouterr()
    assert main([str(tmp_path / "out") if word == "out" else word for word in words]) == 1
    output = capsys.readouterr().err
    assert f"the champion's checkpoint of {P}/baseline, {now.checkpoint}" in output
    assert f"`med-assets train {P}/baseline`" in output
    assert f"`med-assets rollback {P}" in output
    assert "Error" not in output


def test_a_challenger_that_the_store_lost_is_refused_and_the_others_are_decided_on(ws: Workspace) -> None:
    lost = model(ws, "grad_loss", constant(3.0))
    ws.store.remove(lost)
    stages.champion(ws, P)
    found = {row.challenger: row for row in decisions(ws, P)}
    assert found["baseline"].promoted
    assert f"the checkpoint of {P}/grad_loss, {lost}" in found["grad_loss"].reason
    assert not found["grad_loss"].promoted


@pytest.mark.parametrize("change", ["changed", "deleted", "broken"])
def test_an_experiment_whose_file_changed_since_its_evaluation_is_not_promoted(
    ws: Workspace, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch)
    path = conf_folder(P) / "baseline.yaml"
    before = path.read_text()
    if change == "changed":
        path.write_text(before + "\nlosses: {mae: 0.5}\n")
    elif change == "broken":
        path.write_text("defaults: [_base\n")
    else:
        path.unlink()
    stages.champion(ws, P)
    (found,) = decisions(ws, P)
    assert (found.promoted, found.refused) == (False, True)
    assert {"changed": "another configuration now", "deleted": "is gone", "broken": "can't be composed"}[
        change
    ] in found.reason
    assert current(ws, P) is None
    path.write_text(before)
    stages.champion(ws, P)
    now = current(ws, P)
    assert now is not None
    assert now.experiment == "baseline"


def test_a_title_that_changed_is_no_other_configuration(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch)
    path = conf_folder(P) / "baseline.yaml"
    path.write_text(path.read_text().replace("title: U-Net, squared error", "title: another title"))
    stages.champion(ws, P)
    (found,) = decisions(ws, P)
    assert found.promoted


def test_an_experiment_trained_anew_under_its_name_is_compared_with_its_earlier_checkpoint(ws: Workspace) -> None:
    stages.champion(ws, P)
    first = current(ws, P)
    assert first is not None
    second = model(ws, "baseline", constant(4.5))
    stages.champion(ws, P)
    (found,) = decisions(ws, P)
    assert (found.checkpoint, found.reference_checkpoint) == (second, first.checkpoint)
    assert found.refused
    assert f"than its own earlier checkpoint {first.checkpoint}" in found.reason
    now = current(ws, P)
    assert now is not None
    assert now.checkpoint == first.checkpoint


def test_the_baseline_alone_is_no_challenger_and_that_is_said(workspace: Workspace) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "mean_dose", constant(5.0))
    assert "only the baseline mean_dose is evaluated" in stages.champion(workspace, P).summary["decision"]["reason"]


def test_the_experiment_of_the_learning_curve_may_be_deleted_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    configure(tmp_path, monkeypatch)
    path = conf_folder(P) / "baseline.yaml"
    for other in conf_folder(P).glob("[a-z]*.yaml"):
        if other.stem not in ("mean_dose", "baseline"):
            other.unlink()

    def graph() -> set[str]:
        return {"/".join(key.path[1:]) for asset in assets.build_program(P) for key in asset.keys}

    whole = graph()
    path.write_text("defaults: [_base\n")
    broken = graph()
    path.unlink()
    assert broken == graph() == whole - {
        "learning_curve", "checkpoint/baseline", "evaluation/baseline",
    }  # fmt: skip


def test_a_training_that_would_never_validate_is_refused_before_it_starts(workspace: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="val_every of at most the 2 epochs, got 3"):
        load(P, "baseline", ["schedule.epochs=2", "schedule.val_every=3"], profile="demo")
    assert load(P, "baseline", ["schedule.epochs=3", "schedule.val_every=3"], profile="demo").schedule.val_every == 3
