"""Law 9: queries and overrides reach nothing but the lake and the configuration."""

import shutil
from pathlib import Path

import duckdb
import pytest

from med_assets import experiments
from med_assets.cli import main
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace
from med_assets.stages import training
from tests.conftest import REPOSITORY

ROW = {"program": "rt_dose", "case_id": "c", "reason": "moved away"}


def filled(ws: Workspace) -> Workspace:
    ws.lake.write("withdrawals", "rt_dose", [ROW])
    return ws


def test_a_query_reads_the_tables_of_the_lake(workspace: Workspace) -> None:
    rows = filled(workspace).lake.query("select case_id, reason from withdrawals where program = 'rt_dose'")
    assert rows.to_dict("records") == [{"case_id": "c", "reason": "moved away"}]


@pytest.mark.parametrize(
    "sql",
    [
        "select content from read_text('{file}')",
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "select * from read_blob('/proc/self/environ')",
        "select * from glob('/*')",
        "copy (select 1) to '{out}'",
        "export database '{out}'",
        "attach '{out}' as other",
        "install httpfs",
        "load httpfs",
        "create table written as select 1",
        "set enable_external_access = true",
        "pragma database_list",
        "select 1; select 2",
        "select * from secret_frame",
        "select getenv('MED_ASSETS_PSEUDONYM_KEY')",
        "",
    ],
)
def test_a_query_reaches_nothing_else(workspace: Workspace, tmp_path: Path, sql: str) -> None:
    secret_frame = [1]  # what DuckDB would find by its name in Python  # noqa: F841
    file, out = tmp_path / "secret.csv", tmp_path / "out"
    file.write_text("secret")
    with pytest.raises((duckdb.Error, ConfigurationError)):
        filled(workspace).lake.query(sql.format(file=file, out=out))
    assert main(["query", sql.format(file=file, out=out)]) == 1
    assert not out.exists()


def test_a_partition_can_not_lie_outside_of_its_table(workspace: Workspace) -> None:
    for partition in ("../x", "rt_dose/../../x", "/x", "rt_dose//x", "a\0b"):
        with pytest.raises(ConfigurationError, match="within its table"):
            workspace.lake.write("withdrawals", partition, [ROW])


def test_a_home_with_any_name_is_queried_and_its_catalog_moves_with_it(tmp_path: Path, workspace: Workspace) -> None:
    lake = type(workspace.lake)(tmp_path / "it's [a] *home* ü" / "lake")
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
        "+title2=${oc.env:HOME}",
        "hydra.searchpath=[file:///tmp]",
        "+hydra.searchpath=[file:///tmp]",
        "profile=../../rt_dose/profiles/demo",
        "profile=/etc/passwd",
        "profile=${oc.env:HOME}",
    ],
)
def test_an_override_reaches_nothing_but_the_configuration(workspace: Workspace, override: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        training.experiment(workspace, "breast_us", "tinyusfm", [override])
    assert "a-key-that-only" not in str(refused.value)


def conf_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "lumbar_mr" / "mine.yaml").write_text(text)
    monkeypatch.setenv(experiments.CONF_VARIABLE, str(tmp_path / "conf"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("defaults: [_base\n", "mine"),
        ("defaults:\n  - _base\n  - _self_\n  - profiles: full\nscedule: {epochs: 2}\n", "scedule"),
        ("defaults:\n  - _base\n  - _self_\n  - profiles: full\ntitle: ${oc.env:HOME}\n", "resolver"),
        ("title: \x00\n", "mine"),
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
    (why,) = training.broken(workspace, "lumbar_mr").values()
    assert names in why
    assert main(["experiments"]) == 1
    shown = capsys.readouterr().out
    assert "lumbar_mr/mine can't be used" in shown
    assert "rt_dose/baseline" in shown
    from assets import build_program, keys

    built = {asset.key for asset in build_program("lumbar_mr")}
    assert keys.experiment_key("lumbar_mr", "middle_slice", "checkpoint") in built
    assert keys.experiment_key("lumbar_mr", "mine", "checkpoint") not in built
