"""The analysis of a diffusion model's sampling, on the validation cases of a workspace."""

import shutil
from pathlib import Path

import pytest
import torch

from med_assets.experiments import configuration as experiments
from med_assets.programs.rt_dose import ablation as analysis
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.predict import build_network
from med_assets.settings import Workspace
from med_assets.storage.files import write_json
from tests.invented import case_with
from tests.med_assets.programs.rt_dose.builders import write_case
from tests.med_assets.stages.models import artifact, cases

torch.set_num_threads(1)

SMALL = ("diffusion.widths=[1,2]", "inference.window=[16,16,16]")


@pytest.fixture
def trained(workspace: Workspace, tmp_path: Path) -> str:
    """A diffusion model, with an untrained last layer that is not zero, one training and two validation cases."""
    cases(workspace, {"train": ["t0"], "val": ["v0", "v1"]})
    for seed, name in enumerate(("t0", "v0", "v1")):
        with workspace.store.create(artifact(name)) as folder:
            shutil.copytree(write_case(tmp_path / "cases" / name, seed, shape=(16, 16, 16)), folder, dirs_exist_ok=True)
    experiment = experiments.load("rt_dose", "ddpm", SMALL, profile="demo")
    assert isinstance(experiment, DoseExperiment)
    torch.manual_seed(0)
    network = build_network(experiment)
    with torch.no_grad():
        network.unet.out[2].conv.weight.normal_(0, 0.05)
    key = "checkpoint/" + experiment.hash()
    with workspace.store.create(key) as folder:
        torch.save(network.state_dict(), folder / "weights.pt")
        (folder / "experiment.json").write_text(experiment.to_json())
        write_json(folder / "provenance.json", {"cases": [{"case_id": "t0", "split": "train"}]})
    row = {
        "program": "rt_dose",
        "experiment": "ddpm",
        "checkpoint": key,
        "experiment_hash": "h",
        "dataset_version": "d",
    }
    row |= {"n_train": 1, "n_val": 2, "synthetic": True, "weights_sha256": "w", "git_commit": "g"}
    workspace.lake.write("checkpoints", "rt_dose/ddpm", [row])
    return key


def test_samplings_are_compared_once_and_kept(
    workspace: Workspace, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling, variability = analysis.ablation(workspace, tmp_path)
    # The demo's profile: 5 and 10 steps, 1, 2 and 4 samples, over two cases.
    rows = sampling.rows
    assert list(zip(rows["steps"], rows["samples averaged"], strict=True)) == [
        (5, 1), (5, 2), (5, 4), (10, 1), (10, 2), (10, 4),
    ]  # fmt: skip
    assert list(rows["network passes per window"]) == [5, 10, 20, 10, 20, 40]
    assert set(rows["cases"]) == {2}
    assert all(" [" in text for text in rows["dose score, Gy"])
    assert sampling.images[0].stat().st_size > 5000
    assert set(variability.rows["region"]) == {"body", "ptv_margin", "oars", "elsewhere"}
    assert all(float(text.split()[0]) > 0 for text in variability.rows["SD, Gy"])

    def computed(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(analysis, "_measured", computed)
    again = analysis.ablation(workspace, tmp_path)
    assert all(one.rows.equals(other.rows) for one, other in zip((sampling, variability), again, strict=True))


def test_one_sample_is_the_prediction_of_the_scorer_and_has_no_spread(workspace: Workspace, trained: str) -> None:
    from med_assets.metrics.dose import mean_absolute_error
    from med_assets.programs.rt_dose.experiment import Ablation
    from med_assets.programs.rt_dose.predict import load_predictor
    from med_assets.programs.rt_dose.prepared import PreparedCase

    rows = list(
        analysis.measure(
            workspace, trained, [case_with("v0", artifact=artifact("v0"))], Ablation(steps=(10,), ensembles=(1,)),
        )
    )  # fmt: skip
    case = PreparedCase.open(workspace.store.fetch(artifact("v0")))
    wanted = mean_absolute_error(load_predictor(workspace.store.fetch(trained))(case), case.dose, case.body)
    assert rows[0]["error_gy"] == pytest.approx(wanted, rel=1e-5)
    assert {row["sd_gy"] for row in rows[1:]} == {None}


def test_without_a_diffusion_model_there_are_no_tables(workspace: Workspace, tmp_path: Path) -> None:
    assert analysis.ablation(workspace, tmp_path) == []
