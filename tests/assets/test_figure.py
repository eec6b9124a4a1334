from pathlib import Path

import pytest

from assets.figure import with_figure
from med_assets.settings import Workspace

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


@pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning")
def test_the_figure_of_the_architecture_is_that_of_the_graph(workspace: Workspace) -> None:
    page = PAGE.read_text()
    assert page == with_figure(page), "docs/architecture.md is out of date; run `make docs`"
    assert "prepared_cases --> dataset" in page
