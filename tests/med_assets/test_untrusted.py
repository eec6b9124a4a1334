"""Law 9: overrides reach nothing but the configuration."""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from med_assets import experiments
from med_assets.cli import main
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace, key_weakness
from med_assets.stages import training
from tests.conftest import REPOSITORY, TEST_KEY

ROW = {"program": "rt_dose", "case_id": "c", "reason": "moved away"}


def filled(ws: Workspace) -> Workspace:
    ws.lake.write("withdrawals", "rt_dose", [ROW])
    return ws


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
        "title=${oc.${profile}:MED_ASSETS_PSEUDONYM_KEY}",
        "title=${${title}}",
        "title=${oc.env :HOME}",
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


@pytest.mark.parametrize(
    "key",
    [
        "a" * 40,
        "ab" * 20,
        "abcabcabc" * 5,
        "1234567890123456",
        "abcdefghijklmnopqrst",
        "Password12345678!",
        "zyxwvutsrqponmlkjihg",
    ],
)
def test_a_pseudonym_key_of_no_entropy_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="random") as refused:
        Workspace.from_env({"MED_ASSETS_PSEUDONYM_KEY": key})
    assert key not in str(refused.value)


def test_random_keys_and_those_of_the_demo_and_the_tests_are_taken() -> None:
    for key in (*(secrets.token_hex(32) for _ in range(200)), *(secrets.token_hex(8) for _ in range(50)), TEST_KEY):
        assert key_weakness(key) is None, key
    for line in (REPOSITORY / "Makefile").read_text().splitlines():
        if "MED_ASSETS_PSEUDONYM_KEY" in line:
            assert key_weakness(line.rpartition("=")[2].strip()) is None


def test_all_that_a_command_writes_is_for_its_owner_alone(workspace: Workspace, tmp_path: Path) -> None:
    landing = workspace.landing / "breast_us"
    environ = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(REPOSITORY))
    for arguments in (["phantoms", "breast_us", str(landing), "--seed", "3"], ["ingest", "breast_us", "--now"]):
        command = [sys.executable, "-m", "med_assets.cli", *arguments]
        done = subprocess.run(
            command, env=environ, umask=0o022, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
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
    command = (
        f"{sys.executable} -m med_assets.cli query 'select * from withdrawals, range(100000)' --format csv | head -1"
    )
    environ = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, shell=True, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("program,")
    assert done.stderr == ""
