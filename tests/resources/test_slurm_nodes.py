"""A Slurm cluster of two nodes that share nothing but a bucket: a batch goes through the graph, and one node dies in the middle."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import pytest
import yaml

import resources
from assets import build_program, keys
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.launch.follow import Event, StateChanged
from med_assets.records import AggregateScore, CaseVersion
from med_assets.settings import Workspace
from med_assets.storage.conf import CONF_VARIABLE
from med_assets.storage.lake import Lake
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import Location
from resources.launcher import LauncherResource
from tests.conftest import REPOSITORY, settings_of
from tests.med_assets.stages.builders import P, drop, ingest, phantom, take
from tests.resources.slurm_cluster import CannotStart, Cluster, cluster, until

SEEDS = (6, 7, 8)
"""With the tests' key, one patient each for training, test and validation."""

NODES = ("n1", "n2")
EXPERIMENT = "mean_dose"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Mapping[str, str]]:
    with local.endpoint() as variables:
        yield variables


@pytest.fixture
def two_nodes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    try:
        with cluster(tmp_path_factory.mktemp("nodes"), NODES) as found:
            for name, text in found.env.items():
                monkeypatch.setenv(name, text)
            yield found
    except CannotStart as reason:
        pytest.skip(f"no Slurm cluster: {reason}")


@pytest.fixture
def shared(
    two_nodes: Cluster,
    workspace: Workspace,
    endpoint: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Workspace:
    """The home of the submit host: a cache of a bucket, with cases in the bucket's landing zone; each node has a home of its own."""
    conf = tmp_path / "conf"
    shutil.copytree(REPOSITORY / "conf", conf)
    secrets = tmp_path / "node.env"
    places = {"MED_ASSETS_HOME": f"{tmp_path}/$SLURMD_NODENAME", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    own = {name: text for name, text in settings_of(tmp_path).items() if name != "MED_ASSETS_HOME"}
    lines = {
        **own,
        **endpoint,
        **places,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        CONF_VARIABLE: str(conf),
    }
    secrets.write_text("".join(f'{name}="{text}"\n' for name, text in lines.items()))
    secrets.chmod(0o600)
    policy = yaml.safe_load((conf / P / "_program.yaml").read_text())
    launch = {
        "shared_folder": False,
        "environment_file": str(secrets),
        "scratch": str(tmp_path),
        "ask_s": 0.2,
        "cpus": 1,
    }
    policy["stages"] = {str(stage): {"launch": launch} for stage in ("intake", "prepare", "train", "evaluate")}
    policy["stages"] |= {name: {"launch": {"launcher": "in_process"}} for name in ("dataset", "splits")}
    (conf / P / "_program.yaml").write_text(yaml.safe_dump(policy))
    monkeypatch.setenv(CONF_VARIABLE, str(conf))
    for variable, text in endpoint.items():
        monkeypatch.setenv(variable, text)
    name = f"site-{time.monotonic_ns()}"
    client = bucket.client()
    for seed in SEEDS:
        local.upload(phantom(seed), Location(name, f"landing/{P}/export-{seed}"), client)
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/home")
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://{name}/landing")
    monkeypatch.setenv("MED_ASSETS_STAGE_LAUNCHER", "slurm")
    return Workspace.from_env()


class KillingANode(LauncherResource):
    """Ends the node that takes the batch in, once it has stored the first case."""

    folder: str

    def show(self, context: dg.AssetExecutionContext, event: Event, tag: str = "") -> None:
        super().show(context, event, tag)
        if not isinstance(event, StateChanged) or not KILL or "is running on " not in event.state.message:
            return
        node = event.state.message.split("is running on ")[1][:2]
        store = Path(self.folder) / node / "store"
        until(lambda: any(store.glob("raw/*")), "the first case is stored", 120)
        KILL.pop().kill_node(node)
        context.log.info(f"{node} is dead")


KILL: list[Cluster] = []


def materialize(
    instance: dg.DagsterInstance, launcher: LauncherResource, batch: str | None, *chosen: dg.AssetKey
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        build_program(P),
        selection=list(chosen),
        partition_key=batch,
        instance=instance,
        resources={**resources.build(), "launcher": launcher},
        raise_on_error=False,
    )


@pytest.mark.drill
def test_a_batch_goes_through_the_graph_on_two_nodes_of_which_one_dies(
    two_nodes: Cluster, shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.landing_zone(P).refresh()
    batch = take(shared)
    KILL[:] = [two_nodes]
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(keys.batches_of(P).name or "", [batch])
        launcher = KillingANode(folder=str(tmp_path), poll_s=0.2)
        taken_in = materialize(instance, launcher, batch, keys.key(P, "raw_cases"), keys.key(P, "prepared_cases"))
        text = "\n".join(str(entry.user_message) for entry in instance.all_logs(taken_in.run_id))
        assert taken_in.success, text
        assert "is dead" in text
        assert "requeued 1 times so far" in text
        rest = [keys.key(P, "dataset"), keys.key(P, "splits")]
        rest += [keys.experiment_key(P, EXPERIMENT, stage) for stage in ("checkpoint", "evaluation")]
        learned = materialize(instance, launcher, None, *rest)
        assert learned.success, "\n".join(str(entry.user_message) for entry in instance.all_logs(learned.run_id))
        versions = {
            event.asset_key.path[1]: (event.materialization.tags or {})["dagster/data_version"]
            for event in learned.get_asset_materialization_events()
            if event.asset_key
        }
        observed = instance.fetch_observations(keys.experiment_key(P, EXPERIMENT, "checkpoint"), limit=10).records
        assert [
            one.asset_observation.metadata["training/epoch"].value for one in observed if one.asset_observation
        ] == [0.0]
    # Nothing lost, nothing twice: what one machine that was never disturbed has.
    shared.lake.refresh()
    names = sorted(case.case_id for case in Catalog(shared, P).case_versions(batch))
    assert len(set(names)) == len(names) == len(SEEDS)
    location = shared.store_location
    assert location is not None
    listed = bucket.client().list_objects_v2(Bucket=location.bucket, Prefix=location.key("manifests/raw/"))["Contents"]
    assert len(listed) == len(SEEDS)
    alone = undisturbed(monkeypatch, tmp_path)
    assert sorted(case.case_id for case in Catalog(alone, P).rows(CaseVersion)) == names
    assert stages.dataset(alone, P).data_version == versions["dataset"]
    assert stages.splits(alone, P).data_version == versions["splits"]
    assert stages.train(alone, P, EXPERIMENT).data_version == versions["checkpoint"]
    assert stages.evaluate(alone, P, EXPERIMENT).data_version == versions["evaluation"]
    assert scores(alone) == scores(shared)


def undisturbed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Workspace:
    """A home of one machine with the same cases."""
    for name in ("MED_ASSETS_STORE", "MED_ASSETS_LANDING", "MED_ASSETS_STAGE_LAUNCHER"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MED_ASSETS_HOME", str(folder / "alone"))
    ws = Workspace.from_env()
    assert isinstance(ws.lake, Lake)
    for seed in SEEDS:
        drop(ws, seed)
    ingest(ws)
    return ws


def scores(ws: Workspace) -> list[object]:
    rows = Catalog(ws, P).rows(AggregateScore)
    return sorted((row.metric, row.subject, row.split, row.n, str((row.mean, row.low, row.high))) for row in rows)
