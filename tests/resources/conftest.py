"""A Slurm cluster for the tests that need one."""

from collections.abc import Iterator

import pytest

from tests.resources.slurm_cluster import CannotStart, Cluster, cluster


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests; they skip with the reason where it can't be started."""
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as found:
            yield found
    except CannotStart as reason:
        pytest.skip(f"no Slurm cluster: {reason}")


@pytest.fixture
def slurm_cluster(started_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, with the environment that Slurm's commands need."""
    for name, text in started_cluster.env.items():
        monkeypatch.setenv(name, text)
    return started_cluster
