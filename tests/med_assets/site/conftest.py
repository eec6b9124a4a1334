"""Homes of a site for its tests."""

import pytest

from med_assets.settings import Workspace
from tests.med_assets.site.compared import Opened
from tests.med_assets.site.harness import Site


@pytest.fixture
def opened(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The workspace of one of the machines, or of another that sees no faults."""

    def open_home(site: Site, name: str) -> Workspace:
        environ = dict(site.environ(name))
        if site.server:
            environ["S3_ENDPOINT_URL"] = site.server.good
        for variable, value in environ.items():
            monkeypatch.setenv(variable, value)
        return Workspace.from_env()

    return open_home
