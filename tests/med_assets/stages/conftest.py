"""What several tests of the stages need."""

from collections.abc import Callable
from pathlib import Path

import pytest

from med_assets.files import write_json
from med_assets.training.callbacks import save_tensors


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
