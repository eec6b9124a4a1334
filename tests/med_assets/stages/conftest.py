"""What several tests of the stages need."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from med_assets.settings import Workspace
from med_assets.storage.files import write_json
from med_assets.training.callbacks import save_tensors
from tests.conftest import settings_of
from tests.med_assets.stages.builders import drop, ingest


@pytest.fixture(scope="session")
def ingested_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the first phantom in its dataset and splits, made once; copy it, never change it."""
    ws = Workspace.from_env(settings_of(tmp_path_factory.mktemp("ingested")))
    drop(ws, 1)
    ingest(ws)
    return ws.home


@pytest.fixture
def ingested(workspace: Workspace, ingested_home: Path) -> Workspace:
    """A workspace with the first phantom in its dataset and splits."""
    shutil.copytree(ingested_home, workspace.home)
    return workspace


@pytest.fixture
def launch() -> Callable[[Path], None]:
    """A training that is done at once and stops, once, where `stop` lies in the folder of jobs."""

    def run(job: Path) -> None:
        import torch

        if (stop := job.parent / "stop").exists() and len(list(job.parent.glob("*/result.json"))) == 1:
            stop.unlink()
            raise KeyboardInterrupt
        save_tensors(job / "weights.pt", {"one": torch.ones(1)})
        (job / "history.csv").write_text("epoch\n1\n")
        write_json(
            job / "result.json",
            {"status": "completed", "best_epoch": 3, "epochs_run": 5, "steps": 50, "monitor": "m", "best_value": 1.5},
        )

    return run
