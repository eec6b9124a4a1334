"""An experiment with members trains nothing: it averages what they predict, and is evaluated, promoted and served as any other."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.evaluation.confidence import agreement_in
from med_assets.evaluation.foreign import score_file
from med_assets.experiments import configuration as experiments
from med_assets.experiments.configuration import Experiment
from med_assets.launch import jobs
from med_assets.launch.training import Launch, checkpoint_of
from med_assets.metrics.spread import Space
from med_assets.operations.pruning import examine
from med_assets.programs.breast_us.phantom import write_case
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from med_assets.programs.retinal_oct.network import Classifier
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.predict import build_network
from med_assets.records import AggregateScore, Calibration, CaseConfidence, Checkpoint
from med_assets.reporting.run_status import RunStatus, run_statuses
from med_assets.settings import Workspace
from med_assets.storage.artifacts import LocalStore
from med_assets.storage.files import digest, read_json, write_json, write_text
from med_assets.training import predict
from med_assets.training.callbacks import save_tensors
from med_assets.training.ensemble import Output, average, load_model, probabilities
from med_assets.training.members import Member, write_members
from med_assets.training.released import trial
from tests.invented import ingest
from tests.med_assets.programs.breast_us import builders as breast_us
from tests.med_assets.programs.lumbar_mr import builders as lumbar_mr
from tests.med_assets.programs.lung_ct import prepared_builders as lung_ct
from tests.med_assets.programs.retinal_oct import builders as retinal_oct
from tests.med_assets.programs.rt_dose import builders as rt_dose

OF: dict[str, tuple[str, Any, Callable[..., Path]]] = {
    "breast_us": ("tinyusfm", breast_us.TINY, breast_us.write_prepared),
    "lumbar_mr": ("point_net", lumbar_mr.TINY, lumbar_mr.write_prepared),
    "lung_ct": ("from_scratch", lung_ct.TINY, lung_ct.write_prepared),
    "retinal_oct": ("scratch", retinal_oct.TINY, retinal_oct.write_prepared),
    "rt_dose": ("baseline", rt_dose.TINY, rt_dose.write_case),
}
"""By program an experiment, overrides that make it small, and what writes a prepared case."""


def weights(name: str, chosen: Experiment, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a network, a little different by seed."""
    drawn = torch.Generator().manual_seed(seed)
    if isinstance(chosen, DoseExperiment):
        found: Mapping[str, torch.Tensor] = build_network(chosen).state_dict()
    elif isinstance(chosen, RetinalExperiment):
        found = Classifier(chosen.network, chosen.head).state_dict()
    else:
        found = trial(name, chosen).weights
    return {
        key: value + 0.05 * torch.randn(value.shape, generator=drawn) if value.is_floating_point() else value
        for key, value in found.items()
    }


def infer(store: LocalStore, name: str, key: str, prepared: Path, *how: Any) -> Any:
    """The output of a model of a case."""
    model: Any = load_model(name, store.fetch(key), store.root / "cache")
    return model.infer(prepared, *how)


def checkpoint(store: LocalStore, name: str, seed: int) -> str:
    """Key of an untrained model of a program."""
    experiment, overrides, _ = OF[name]
    chosen = experiments.load(name, experiment, (*overrides, "initial=random"), profile="demo")
    key = "checkpoint/" + digest(name, seed)
    with store.create(key) as folder:
        save_tensors(folder / "weights.pt", weights(name, chosen, seed))
        write_text(folder / "experiment.json", chosen.to_json())
    return key


def ensemble(store: LocalStore, name: str, keys: list[str], *augmentations: str) -> str:
    """Key of an ensemble of checkpoints."""
    experiment, overrides, _ = OF[name]
    chosen = experiments.load(name, experiment, (*overrides, "initial=random"), profile="demo")
    settings = {"members": [f"m{place}" for place in range(len(keys))], "prediction": {"augmentations": augmentations}}
    key = "checkpoint/" + digest(keys, augmentations)
    with store.create(key) as folder:
        write_members(folder, [Member(f"m{place}", each, "sha") for place, each in enumerate(keys)])
        write_text(folder / "experiment.json", json.dumps(json.loads(chosen.to_json()) | settings))
    return key


def predicted(store: LocalStore, name: str, key: str, prepared: Path, out: Path) -> Path:
    """Folder with the prediction of a case by a checkpoint."""
    out.mkdir(parents=True)
    load_model(name, store.fetch(key), out.parent / "cache").predict(prepared, out)
    return out


def mean_kept(name: str, folders: list[Path]) -> np.ndarray:
    """The mean of what predictions keep in the space in which it is averaged."""
    if name == "breast_us":
        arrays = [np.load(folder / "probability.npy").astype(float) for folder in folders]
    elif name == "rt_dose":
        arrays = [np.load(folder / "prediction_gy.npy").astype(float) for folder in folders]
    elif name == "lumbar_mr":
        arrays = [np.load(folder / "heats.npy").astype(float) for folder in folders]
    else:
        arrays = [np.array(list(read_json(f / "prediction.json")["probabilities"].values())) for f in folders]
    return np.asarray(np.mean(arrays, axis=0))


@pytest.mark.parametrize("name", ["breast_us", "lumbar_mr", "retinal_oct", "rt_dose"])
def test_an_ensemble_keeps_the_mean_of_what_its_members_predict(tmp_path: Path, name: str) -> None:
    store, prepared = LocalStore(tmp_path / "store"), OF[name][2](tmp_path / "case", 3)
    keys = [checkpoint(store, name, seed) for seed in (1, 2)]
    singles = [predicted(store, name, key, prepared, tmp_path / f"s{place}" / "p") for place, key in enumerate(keys)]
    both = predicted(store, name, ensemble(store, name, keys), prepared, tmp_path / "both" / "p")
    if name == "lumbar_mr":
        # The first member chooses the slices, which the second alone might not have chosen.
        assert read_json(both / "prediction.json")["slices"] == read_json(singles[0] / "prediction.json")["slices"]
        first = infer(store, name, keys[0], prepared)
        outputs = [first, infer(store, name, keys[1], prepared, "", first)]
        np.testing.assert_allclose(np.load(both / "heats.npy"), sum(each.values for each in outputs) / 2, atol=2e-3)
    else:
        np.testing.assert_allclose(mean_kept(name, [both]), mean_kept(name, singles), atol=2e-3)
    assert not np.allclose(mean_kept(name, singles[:1]), mean_kept(name, singles[1:]), atol=1e-4), "the members differ"
    apart = agreement_in(both)
    assert apart is not None
    assert apart.n == 2
    assert apart.agreement < (0 if name == "rt_dose" else 1 - 1e-9)
    one = predicted(store, name, ensemble(store, name, keys[:1]), prepared, tmp_path / "one" / "p")
    assert agreement_in(one) is None, "one prediction agrees with nothing"
    np.testing.assert_allclose(mean_kept(name, [one]), mean_kept(name, singles[:1]), atol=2e-3)


def test_an_ensemble_of_lung_ct_averages_probabilities_and_not_masks(tmp_path: Path) -> None:
    store, prepared = LocalStore(tmp_path / "store"), lung_ct.write_prepared(tmp_path / "case", 3)
    keys = [checkpoint(store, "lung_ct", seed) for seed in (1, 2)]
    outputs = [infer(store, "lung_ct", key, prepared) for key in keys]
    mean = np.mean([1 / (1 + np.exp(-each.values.astype(float))) for each in outputs], axis=0)
    both = predicted(store, "lung_ct", ensemble(store, "lung_ct", keys), prepared, tmp_path / "both" / "p")
    kept = np.unpackbits(np.load(both / "training_grid.npy"), count=mean.size).reshape(mean.shape).astype(bool)
    np.testing.assert_array_equal(kept, mean > 0.5)
    assert read_json(both / "prediction.json")["highest_probability"] == pytest.approx(mean.max(), abs=1e-6)


@pytest.mark.parametrize("name", ["breast_us", "rt_dose"])
def test_with_its_mirror_image_a_mirrored_case_has_the_mirrored_prediction(tmp_path: Path, name: str) -> None:
    store, prepared = LocalStore(tmp_path / "store"), OF[name][2](tmp_path / "case", 3)
    key = checkpoint(store, name, 1)
    outputs = [infer(store, name, key, prepared, augmentation).values for augmentation in ("", "flip_x")]
    assert not np.allclose(*outputs, atol=1e-4), "the network itself is not symmetric"
    both = predicted(store, name, ensemble(store, name, [key], "flip_x"), prepared, tmp_path / "both" / "p")
    expected = np.mean(outputs, axis=0)
    np.testing.assert_allclose(mean_kept(name, [both]), expected[0] if name == "breast_us" else expected, atol=2e-3)


def test_probabilities_are_averaged_and_not_logits() -> None:
    def mean(space: Space, *outputs: np.ndarray) -> np.ndarray:
        found, _ = average(iter([Output(space, each) for each in outputs]))
        assert found.averaged == len(outputs)
        assert found.values is not None
        assert found.values.dtype == outputs[0].dtype
        return probabilities(space, found.values)

    logits = np.array([0.0, 4.0], np.float32)
    exact = (1 / (1 + math.exp(-4)) + 1 / (1 + math.exp(12))) / 2
    assert mean(Space.LOGITS, logits, -3 * logits) == pytest.approx([0.5, exact], abs=1e-6)
    assert mean(Space.CLASS_LOGITS, np.log([0.2, 0.8]), np.log([0.6, 0.4])) == pytest.approx([0.4, 0.6])
    assert mean(Space.DOSE_GY, np.array([60.0]), np.array([66.0])) == pytest.approx([63.0])
    with pytest.raises(CheckpointMismatch, match="expected outputs of all members alike"):
        average(iter([Output(Space.DOSE_GY, np.zeros(3)), Output(Space.DOSE_GY, np.zeros(4))]))
    assert average(iter([Output(Space.CLASS_LOGITS, None)])) == (Output(Space.CLASS_LOGITS, None), None)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("baseline", ("members=[residual]", "teacher=ddpm"), "expected different members, no teacher"),
        ("baseline", ("members=[residual,residual]",), "expected different members"),
        ("baseline", ("members=[nothing]",), "expected members to be other experiments"),
        ("baseline", ("members=[baseline]",), "expected members to be other experiments"),
        ("baseline", ("prediction.augmentations=[flip_x]",), "expected members with prediction.augmentations"),
    ],
)
def test_what_can_not_be_averaged_is_refused_as_it_is_read(name: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        experiments.load("rt_dose", name, [f"+{each}" for each in overrides])


@pytest.mark.parametrize(
    ("name", "experiment", "allowed"),
    [
        ("breast_us", "tinyusfm", ["flip_x"]), ("lumbar_mr", "point_net", []), ("lung_ct", "from_scratch", ["flip_x"]),
        ("retinal_oct", "finetune_multi_domain", ["flip_x"]), ("retinal_oct", "facts_alone", []), ("rt_dose", "baseline", ["flip_x"]),
        ("rt_dose", "ddpm", []), ("rt_dose", "mean_dose", []),
    ],
)  # fmt: skip
def test_each_program_says_which_changes_keep_the_sense_of_a_case(
    name: str, experiment: str, allowed: list[str]
) -> None:
    chosen = experiments.load(name, experiment)
    found = [each for each in ("flip_x", "flip_y", "flip_z") if chosen.objection_to_augmentation(each) is None]
    assert found == allowed


# -- through the stages


def run_status_of(ws: Workspace) -> RunStatus:
    """The status of the newest run of the ensemble."""
    return next(one for one in run_statuses(ws, P) if one.experiment == "ensemble")


def weights_at_once(job: Path) -> None:
    """Run a job in this process: a training ends with its first weights."""
    if (job / jobs.KIND).is_file():
        predict.run(job)
        return
    name = (job / "program").read_text().strip()
    chosen: Experiment = experiments.from_json(name, (job / "experiment.json").read_text())
    save_tensors(job / "weights.pt", weights(name, chosen, chosen.seed + len(chosen.name)))
    write_text(job / "history.csv", "epoch\n1\n")
    write_json(
        job / "result.json",
        {"status": "completed", "best_epoch": 1, "epochs_run": 1, "monitor": "m", "best_value": 1.5},
    )


P, LAUNCH = "breast_us", weights_at_once


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """Six images, each of a patient of its own."""
    for seed in range(6):
        write_case(workspace.landing / P / f"c{seed}", seed)
    ingest(workspace, P)
    stages.dataset(workspace, P)
    stages.splits(workspace, P)
    return workspace


def test_an_ensemble_is_made_of_its_members_checkpoints_and_goes_through_all_stages(
    ws: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch: Launch = LAUNCH
    with pytest.raises(ConfigurationError, match="tinyusfm has no checkpoint yet"):
        stages.train(ws, P, "ensemble", (), launch)
    for name in ("tinyusfm", "segformer", "ensemble"):
        stages.train(ws, P, name, (), launch)
        stages.evaluate(ws, P, name, launch)
    catalog = Catalog(ws, P)
    rows = {row.experiment: row for row in catalog.rows(Checkpoint)}
    folder = ws.store.fetch(rows["ensemble"].checkpoint)
    named = [row["checkpoint"] for row in read_json(folder / "members.json")]
    assert named == [rows[name].checkpoint for name in ("tinyusfm", "segformer")]
    assert not (folder / "weights.pt").exists()
    assert (rows["ensemble"].n_train, rows["ensemble"].n_val) == (rows["tinyusfm"].n_train, rows["tinyusfm"].n_val)
    assert stages.train(ws, P, "ensemble", (), launch).counts == {"new": 0, "reused": 1}
    assert not [one for one in examine(ws, 0.0) if one.name in named and not one.kept], "prune keeps the members"
    assert all(catalog.rows(AggregateScore, name) for name in rows)
    sure = catalog.rows(CaseConfidence, "ensemble")
    assert sure
    assert all(row.agreement is not None and 0 <= row.agreement <= 1 for row in sure)
    assert {row.agreement for row in catalog.rows(CaseConfidence, "tinyusfm")} == {None}
    (calibration,) = catalog.rows(Calibration, "ensemble")
    assert "Dice of each two" in str(calibration.agreement_definition)
    assert str(calibration.agreement_note).startswith("uncalibrated: ")
    assert "ensemble" in stages.leaderboard(ws, P).tables["leaderboard"].to_string()

    assert run_status_of(ws).stale == ()
    images = tmp_path / "images"
    write_case(images, 99)
    assert main(["predict", P, str(images), "--model", "ensemble", "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").rglob("*.dcm"))
    assert "agreement of predictions" in (tmp_path / "out" / "predictions.csv").read_text()
    capfd.readouterr()
    assert main(["export", f"{P}/ensemble", "--out", str(tmp_path / "export")]) == 1
    assert "got an ensemble, whose members are tinyusfm, segformer" in capfd.readouterr().err

    for how in ("initial=ensemble", "teacher=ensemble"):
        distil = (
            ("+distil={task:0.5,logit:0.5,feature:0,attention:0,temperature:2}",) if how.startswith("teacher") else ()
        )
        with pytest.raises(ConfigurationError, match="got an ensemble; name one of its members: tinyusfm, segformer"):
            stages.train(ws, P, "tinyusfm", (how, *distil), launch)
    with pytest.raises(ConfigurationError, match="expected an experiment with one network, got an ensemble"):
        score_file(ws, P, "ensemble", tmp_path / "any.pt", "val")

    # A member that is trained anew makes another ensemble.
    stages.train(ws, P, "tinyusfm", ("seed=7",), launch)
    assert run_status_of(ws).stale == ("a member was trained anew, or the code that averages changed",)
    assert stages.train(ws, P, "ensemble", (), launch).counts["new"] == 1
    assert checkpoint_of(ws, P, "ensemble").checkpoint != rows["ensemble"].checkpoint
