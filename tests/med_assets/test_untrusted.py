"""Law 9: overrides reach nothing but the configuration."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.launch import training
from med_assets.settings import Workspace
from med_assets.storage import preloaded
from med_assets.storage.conf import CONF_VARIABLE
from tests.conftest import REPOSITORY

ROW = {"program": "rt_dose", "case_id": "c", "reason": "moved away"}


def filled(ws: Workspace) -> Workspace:
    ws.lake.write("withdrawals", "rt_dose", [ROW])
    return ws


def test_a_partition_can_not_lie_outside_of_its_table(workspace: Workspace) -> None:
    for partition in ("../x", "rt_dose/../../x", "/x", "rt_dose//x", "a\0b"):
        with pytest.raises(ConfigurationError, match="partition within its table"):
            workspace.lake.write("withdrawals", partition, [ROW])


def test_a_home_with_any_name_is_queried_and_its_catalog_moves_with_it(tmp_path: Path, workspace: Workspace) -> None:
    lake = type(workspace.lake)(tmp_path / "it's [a] *home*? 100% ü" / "lake", workspace.lake.tables)
    lake.write("withdrawals", "rt_dose", [ROW])
    assert len(lake.query("select * from withdrawals")) == 1
    lake.write_catalog(lake.root.parent / "catalog.duckdb")
    moved = Path(shutil.move(lake.root.parent, tmp_path / "moved"))
    with duckdb.connect(str(moved / "catalog.duckdb"), read_only=True) as catalog:
        assert catalog.execute("select case_id from withdrawals").fetchall() == [("c",)]


@pytest.mark.parametrize(
    "override",
    [
        "title=${oc.env:MED_ASSETS_PSEUDONYM_KEY}",
        "title='${oc.env:MED_ASSETS_PSEUDONYM_KEY}'",
        "title=${oc.decode:${oc.env:HOME}}",
        "title=${hydra:runtime.cwd}",
        "title=${oc.${profile}:MED_ASSETS_PSEUDONYM_KEY}",
        "title=${${title}}",
        "title=${oc.env :HOME}",
        "+title2=${oc.env:HOME}",
        "hydra.searchpath=[file:///tmp]",
        "+hydra.searchpath=[file:///tmp]",
        "profile=../../rt_dose/profiles/demo",
        "profile=/etc/passwd",
        "profile=${oc.env:HOME}",
        "profiles=${oc.env:HOME}",
        "profile=file:///etc/passwd",
        "profile=pkg://hydra.conf/x",
        "profiles@hydra=full",
        "profiles@_global_=../x",
        "+profiles=full",
        "++nets/sam=full",
        "~profiles",
        "profiles=[full,../x]",
        "++hydra.searchpath=[pkg://x]",
        "~hydra",
        "hydra/launcher=x",
        "hydra.run.dir=/tmp/x",
        "hydra.job.chdir=true",
        "override hydra/output=x",
        "defaults=[/etc/passwd]",
        "+_target_=os.system",
        "++schedule._target_=os.system",
        "+schedule={_target_:os.system,_args_:[id]}",
        "schedule.epochs=glob(*)",
        "schedule.epochs=1,2",
        "schedule.epochs=range(1,3)",
        "schedule.epochs=choice(1,2)",
        "title='/etc/passwd'",
        "title=[/etc/passwd]",
        "title=../../etc/passwd",
        "title=${.}",
        "title=\\${oc.env:HOME}",
        "title=${oc.create:{a:${oc.env:HOME}}}",
        "title=${oc.dict.values:schedule}",
        "title=${oc.env:MED_ASSETS_PSEUDONYM_KEY",
        "${oc.env:HOME}=1",
        "launch.options=['--error=/tmp/x']",
        "launch.options=[--export-file=../x]",
        "",
        "title",
        "=",
        "a b=1",
    ],
)
def test_an_override_reaches_nothing_but_the_configuration(workspace: Workspace, override: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        training.experiment(workspace, "breast_us", "tinyusfm", [override])
    assert "a-key-that-only" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "schedule.epochs=2",
        "profile=small",
        "profiles=demo",
        "title='U-Net: a/b, ${schedule.epochs} epochs'",
        "+launch.partition=gpu",
        "launch.options=['--account=imaging']",
        "~launch",
        "optimiser={lr: 0.1}",
    ],
)
def test_an_override_of_a_field_is_taken(workspace: Workspace, override: str) -> None:
    assert training.experiment(workspace, "breast_us", "tinyusfm", [override]).program == "breast_us"


def test_an_override_from_the_launchpad_shows_no_secret(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    from assets import experiment
    from resources import build

    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a-key-that-only-the-tests-know")
    chosen = training.experiment(workspace, "breast_us", "tinyusfm")
    asset = experiment.checkpoint("breast_us", chosen)
    overrides = ["title=${oc.env:MED_ASSETS_PSEUDONYM_KEY}"]
    result = dg.materialize(
        [asset],
        resources=build(),
        run_config={"ops": {"__".join(asset.key.path): {"config": {"overrides": overrides}}}},
        raise_on_error=False,
    )
    assert not result.success
    shown = "".join(str(event) for event in result.all_events)
    assert "got a resolver" in shown
    assert "a-key-that-only-the-tests-know" not in shown


def conf_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "lumbar_mr" / "mine.yaml").write_text(text)
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("defaults: [_base\n", "mine"),
        ("defaults:\n  - _base\n  - _self_\n  - profiles: full\nscedule: {epochs: 2}\n", "scedule"),
        ("defaults:\n  - _base\n  - _self_\n  - profiles: full\ntitle: ${oc.env:HOME}\n", "resolver"),
        ("title: \x00\n", "mine"),
        ("title: [\n\nseed: {\n", "line 4"),
        ("- a\n", "fields with values"),
        ("", "fields with values"),
        ("defaults: [_base, /etc/passwd]\n", "files of this folder"),
        ("defaults: [_base, ../rt_dose/_base]\n", "files of this folder"),
        ("defaults: [_base, 'pkg://hydra.conf/x']\n", "files of this folder"),
        ("defaults: [_base, 'file:///etc/passwd']\n", "files of this folder"),
        ("defaults: [_base, {profiles: ../../rt_dose/profiles/demo}]\n", "files of this folder"),
        ("defaults: [_base, {profiles: '${oc.env:HOME}'}]\n", "files of this folder"),
        ("defaults: [_base, {profiles@hydra: full}]\n", "files of this folder"),
        ("defaults: [_base, {override hydra/job_logging: none}]\n", "files of this folder"),
        ("defaults: [_base, {optional profiles: full, nets: x}]\n", "files of this folder"),
        ("hydra: {searchpath: [file:///tmp]}\n", "settings of Hydra"),
        ("# @package hydra\nsearchpath: [file:///tmp]\n", "settings of Hydra"),
        ("optimiser: {_target_: os.system, _args_: [id]}\n", "a function to call"),
        ("defaults: [_base, _self_, {profiles: full}]\ntitle: ${oc.${profile}:HOME}\n", "resolver"),
        ("title: !!python/object/apply:os.system [id]\n", "mine"),
    ],
)
def test_one_broken_experiment_is_named_and_takes_nothing_else_away(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    text: str,
    names: str,
) -> None:
    before = set(training.usable(workspace, "lumbar_mr"))
    conf_with(tmp_path, monkeypatch, text)
    assert set(training.usable(workspace, "lumbar_mr")) == before
    (why,) = training.sorted_out(workspace, "lumbar_mr")[1].values()
    assert names in why
    assert main(["experiments"]) == 1
    shown = capsys.readouterr().out
    assert "lumbar_mr/mine can't be used" in shown
    assert "rt_dose/baseline" in shown
    from assets import build_program, keys

    built = {asset.key for asset in build_program("lumbar_mr")}
    assert keys.experiment_key("lumbar_mr", "middle_slice", "checkpoint") in built
    assert keys.experiment_key("lumbar_mr", "mine", "checkpoint") not in built


def test_a_file_of_an_experiment_is_no_link_out_of_the_configuration(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf_with(tmp_path, monkeypatch, "defaults: [other]\n")
    (tmp_path / "secret.yaml").write_text("title: a-secret\n")
    (tmp_path / "conf" / "lumbar_mr" / "other.yaml").symlink_to(tmp_path / "secret.yaml")
    refused = training.sorted_out(workspace, "lumbar_mr")[1]
    assert set(refused) == {"mine", "other"}
    assert all("leads out of it" in why and "a-secret" not in why for why in refused.values())


@pytest.mark.parametrize("file", ["lumbar_mr/_program", "rt_dose/sites/prostate_sib", "lung_ct/_labels"])
def test_a_file_of_a_program_with_a_mistake_is_named_and_costs_that_program_alone(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    import assets
    from med_assets import program
    from med_assets.experiments import policies

    conf_with(tmp_path, monkeypatch, "defaults: [_base]\n")
    (tmp_path / "conf" / f"{file}.yaml").write_text("a: [b\nc: d\n")
    name = file.partition("/")[0]
    for cached in (program.get, *(one for one in vars(policies).values() if hasattr(one, "cache_clear"))):
        cached.cache_clear()
    if name == "lung_ct":
        from med_assets.programs.lung_ct import labels

        labels.table.cache_clear()
        labels._known.cache_clear()
    graph = assets.build()
    assert set(assets.programs(graph)) == set(program.registered()) - {name}
    assert f"{name} is left out of the graph" in caplog.text
    assert f"{file.rpartition('/')[2]}.yaml, line 2" in caplog.text
    assert main(["cases", "breast_us"]) == 0


def test_all_that_a_command_writes_is_for_its_owner_alone(workspace: Workspace, tmp_path: Path) -> None:
    landing = workspace.landing / "breast_us"
    log = tmp_path / "log"
    before = os.umask(0o022)
    try:
        for arguments in (["phantoms", "breast_us", str(landing), "--seed", "3"], ["ingest", "breast_us", "--now"]):
            command = [sys.executable, "-P", "-m", "med_assets.cli", *arguments]
            with log.open("w") as stream:
                process = preloaded.start(command, os.environ, stream.fileno(), stream.fileno(), tied=True)
            assert process.wait() == 0, log.read_text()
    finally:
        os.umask(before)
    open_to_others = [
        path
        for path in workspace.home.rglob("*")
        if not path.is_relative_to(landing) and path != workspace.landing and path.stat().st_mode & 0o077
    ]
    assert not open_to_others
    assert len(workspace.lake.rows("dataset", "breast_us")) == 1


def test_debug_shows_where_an_error_arose_and_no_value_of_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cause in (ValueError("ZZSMITH"), OSError(30, "Read-only file system", "ZZSMITH")):

        def fail(*_: object, cause: Exception = cause) -> None:
            try:
                raise KeyError("ZZSMITH")
            except KeyError:
                raise cause  # noqa: B904 - the chain is the point

        monkeypatch.setattr(type(workspace.lake), "query", fail)
        assert main(["--debug", "query", "select 1"]) == 1
        shown = "".join(capsys.readouterr())
        assert type(cause).__name__ in shown
        assert "test_untrusted.py" in shown
        assert "SMITH" not in shown
        assert main(["query", "select 1"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_closed_pipe_ends_without_a_traceback(workspace: Workspace) -> None:
    filled(workspace)
    command = f"{sys.executable} -m med_assets.cli.main query 'select * from withdrawals, range(100000)' --format csv | head -1"
    environ = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, shell=True, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("program,")
    assert done.stderr == ""
