"""A file of weights from elsewhere is scored under its hash, fills the whole network or none of it, and is recorded nowhere."""

from pathlib import Path

import pytest
import torch

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.evaluation.foreign import score_file
from med_assets.launch.training import experiment
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.phantom import write_case
from med_assets.records import CaseScore, Checkpoint
from med_assets.settings import Workspace
from med_assets.storage.files import file_sha256
from tests.invented import ingest

NAME = "tinyusfm"


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """Five images, each of a patient of its own."""
    for seed in range(5):
        write_case(workspace.landing / "breast_us" / f"c{seed}", seed)
    ingest(workspace, "breast_us")
    stages.dataset(workspace, "breast_us")
    stages.splits(workspace, "breast_us")
    return workspace


@pytest.fixture
def network(ws: Workspace) -> Segmenter:
    torch.manual_seed(1)
    return Segmenter(experiment(ws, "breast_us", NAME))  # type: ignore[arg-type]  # an experiment of breast_us


def test_a_whole_file_is_scored_under_its_hash_and_recorded_nowhere(
    ws: Workspace, network: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best_epoch_3.pth"
    torch.save({"epoch": 3, "model_state_dict": network.state_dict()}, file)
    split = next(case.split for case in Catalog(ws, "breast_us").cases() if case.split == "train")
    found = score_file(ws, "breast_us", NAME, file, split)
    assert found.failures == {}
    assert {score.checkpoint for score in found.scores} == {f"file/{file_sha256(file)}"}
    assert {score.case_id for score in found.scores} == {case.case_id for case in Catalog(ws, "breast_us").cases(split)}
    assert found.tensors == len(network.state_dict())
    assert main(["score-file", f"breast_us/{NAME}", str(file), "--split", split, "--out", str(tmp_path / "s.csv")]) == 0
    assert found.sha256 in capsys.readouterr().out
    assert (tmp_path / "s.csv").read_text().count(found.sha256) == len(found.scores)
    catalog = Catalog(ws, "breast_us")
    assert list(catalog.rows(Checkpoint)) == []
    assert list(catalog.rows(CaseScore)) == []
    assert not list((ws.home / "store").glob("prediction/*"))

    partial = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("net.backbone.")}
    torch.save({name.removeprefix("net.backbone."): tensor for name, tensor in partial.items()}, file)
    with pytest.raises(CheckpointMismatch, match="fills the whole network"):
        score_file(ws, "breast_us", NAME, file, split)
    torch.save({"something": torch.zeros(1)}, file)
    with pytest.raises(CheckpointMismatch):
        score_file(ws, "breast_us", NAME, file, split)
    with pytest.raises(ConfigurationError, match="external"):
        score_file(ws, "breast_us", NAME, file, "external")
