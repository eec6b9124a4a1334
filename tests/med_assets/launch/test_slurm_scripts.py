"""Scripts of Slurm's nodes, run by bash on their own: what a node lacks, what it is given, and how a stage stops at its limit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from med_assets.experiments.policies import Policies
from med_assets.launch import slurm_scripts
from med_assets.launch.configuration import Launch, StageLaunch
from med_assets.launch.launcher import Handle, Phase
from med_assets.launch.slurm import Configuration, SlurmLauncher, options, state_of
from med_assets.launch.slurm_scripts import (
    NO_ENVIRONMENT,
    NO_HOME,
    NO_PROGRAM,
    NO_SOURCE,
    SEEN,
    STUCK,
    node_script,
    shared_script,
)
from med_assets.launch.stages import Stage
from med_assets.settings import SECRETS
from med_assets.training.status import REQUEUE
from tests.conftest import REPOSITORY
from tests.docs_blocks import blocks
from tests.resources.slurm_cluster import until

STAGE = """#!{python}
import os, signal, sys, time
from pathlib import Path
home = Path(os.environ["MED_ASSETS_HOME"])
home.mkdir(parents=True, exist_ok=True)
(home / "seen").write_text(repr(dict(os.environ)) + repr(sys.argv[1:]))
def stop(number, frame):
    if os.environ.get("SAVES"):
        (home / "store" / "raw").mkdir(parents=True)
        (home / "store" / "raw" / "manifest.json").write_text("{{}}")
    sys.exit({requeue})
signal.signal(signal.SIGTERM, stop)
(home / "ready").touch()
time.sleep(float(os.environ.get("TAKES", "0")))
"""


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """A node: its scratch, its file of secrets, and a program in place of `med-assets`, which has tests of its own."""
    programs, scratch, secrets = tmp_path / "bin", tmp_path / "scratch", tmp_path / "node.env"
    programs.mkdir()
    scratch.mkdir()
    (programs / "med-assets").write_text(STAGE.format(python=sys.executable, requeue=REQUEUE))
    (programs / "med-assets").chmod(0o700)
    secrets.write_text(f"MED_ASSETS_HOME={tmp_path}/home\nMED_ASSETS_PSEUDONYM_KEY='a key with a blank'\n")
    secrets.chmod(0o600)
    return {"programs": programs, "scratch": scratch, "secrets": secrets, "home": tmp_path / "home"}


def start(node: dict[str, Any], path: str | None = None, **variables: str) -> subprocess.Popen[bytes]:
    text = node_script(
        ["med-assets", "run", "intake", "rt_dose"],
        {"MED_ASSETS_PROFILE": "demo"},
        str(node["secrets"]),
        str(node["scratch"]),
    )
    assert "a key" not in text
    script = node["scratch"] / "slurm.sh"
    script.write_text(text)
    env = {
        "PATH": path or f"{node['programs']}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/dev/null",
        **variables,
    }
    return subprocess.Popen(["bash", str(script)], env=env, stderr=subprocess.DEVNULL)


def test_a_stage_has_its_settings_and_the_secrets_of_the_node(node: dict[str, Any]) -> None:
    assert start(node).wait(20) == 0
    seen = (node["home"] / "seen").read_text()
    for text in ("a key with a blank", "'MED_ASSETS_PROFILE': 'demo'", "['run', 'intake', 'rt_dose']"):
        assert text in seen
    assert [path.name for path in node["scratch"].iterdir()] == ["slurm.sh"]


@pytest.mark.parametrize("mode", [0o644, 0o660, None])
def test_secrets_that_others_can_read_or_that_are_missing_end_the_job(node: dict[str, Any], mode: int | None) -> None:
    node["secrets"].unlink() if mode is None else node["secrets"].chmod(mode)
    assert start(node).wait(20) == NO_ENVIRONMENT
    assert not node["home"].exists()


def test_a_node_without_the_program_says_so(node: dict[str, Any]) -> None:
    assert start(node, path="/usr/bin:/bin").wait(20) == NO_PROGRAM


@pytest.mark.parametrize(
    ("program", "token", "code"),
    [("/nowhere/python", "a", NO_SOURCE), ("/bin/true", "b", NO_HOME), ("/bin/true", "a", 0)],
)
def test_a_node_that_shares_folders_looks_for_them_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, token: str, code: int
) -> None:
    monkeypatch.setattr(slurm_scripts, "SEEN_WITHIN_S", 0)
    (tmp_path / SEEN).write_text(token)
    (tmp_path / "slurm.sh").write_text(shared_script([program], "a"))
    env = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash", "slurm.sh"], cwd=tmp_path, env=env, check=False).returncode == code
    assert (tmp_path / slurm_scripts.EXIT).exists() == (code == 0)


@pytest.mark.parametrize(("saves", "code"), [("", STUCK), ("yes", REQUEUE)])
def test_at_the_limit_a_stage_that_saved_nothing_is_not_requeued(node: dict[str, Any], saves: str, code: int) -> None:
    process = start(node, TAKES="60", SAVES=saves)
    until(lambda: (node["home"] / "ready").exists(), "the stage runs")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, STUCK), (signal.SIGTERM, REQUEUE)])
def test_the_code_of_a_stage_that_ends_while_its_script_is_slow_is_kept(
    node: dict[str, Any], number: signal.Signals, code: int
) -> None:
    slow = {"BASH_FUNC_kill%%": '() { builtin kill "$@"; local code=$?; sleep 0.3; return $code; }'}
    process = start(node, TAKES="60", **slow)
    until(lambda: (node["home"] / "ready").exists(), "the stage runs")
    process.send_signal(number)
    assert process.wait(20) == code


@pytest.mark.parametrize("code", [NO_ENVIRONMENT, NO_PROGRAM, slurm_scripts.NO_SCRATCH])
def test_what_a_node_lacks_is_said_in_words(tmp_path: Path, code: int) -> None:
    state = state_of(
        Handle(tmp_path, "5", "Slurm job 5"), {"JobState": "FAILED", "ExitCode": f"{code}:0", "NodeList": "n1"}
    )
    assert state is not None
    assert state.phase is Phase.ENDED
    assert "n1" in state.message


def test_without_a_shared_file_system_nothing_names_a_path_of_the_submit_host(tmp_path: Path) -> None:
    asked = Configuration(shared_folder=False, environment_file="/etc/med-assets.env", scratch="/scratch")
    assert not SlurmLauncher(asked).shares_folder
    chosen = options(tmp_path / "0123456789abcdef", asked)
    assert "--chdir=/scratch" in chosen
    assert "--job-name=med-assets-0123456789abcdef" in chosen
    assert not any(str(tmp_path) in word for word in chosen)


@pytest.mark.parametrize("section", [{"environment_file": "node.env"}, {"scratch": "tmp"}])
def test_a_file_of_the_node_is_named_by_an_absolute_path(section: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="absolute path"):
        StageLaunch.model_validate({"launcher": "slurm", **section})


def test_an_experiment_runs_on_a_launcher_and_a_stage_may_run_in_its_process() -> None:
    assert StageLaunch.model_validate({"launcher": "in_process"}).launcher == "in_process"
    with pytest.raises(ValidationError, match="expected a launcher"):
        Launch.model_validate({"launcher": "in_process"})
    assert os.path.isabs(Configuration().scratch)


def test_the_template_of_a_nodes_variables_has_all_secrets_and_no_value_of_one() -> None:
    template = REPOSITORY / "deploy" / "slurm" / "node.env"
    words = subprocess.run(
        ["bash", "-c", 'set -a; . "$1"; env -0', "bash", str(template)],
        env={},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    found = dict(word.split("=", 1) for word in words if "=" in word)
    secret = {"MED_ASSETS_PSEUDONYM_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert secret <= set(SECRETS)
    assert {found[name] for name in secret} == {""}
    assert Path(found["MED_ASSETS_HOME"]).is_absolute()


def test_the_stages_of_the_page_are_taken_by_the_configuration() -> None:
    (block,) = [block.text for block in blocks(REPOSITORY / "docs" / "slurm.md") if block.text.startswith("stages:")]
    found = Policies.model_validate(yaml.safe_load(block)).stages
    assert found[Stage.TRAIN].launch.configuration("slurm").model_dump()["gpus"] == 1
    assert not SlurmLauncher(found[Stage.PREPARE].launch.configuration("slurm")).shares_folder
    assert found[Stage.DATASET].launch.launcher == "in_process"
