"""The command line, run as a person would."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from med_assets.cli.command_line import cli
from med_assets.cli.main import main
from med_assets.settings import Workspace
from tests.conftest import REPOSITORY, settings_of
from tests.med_assets.stages import models


@pytest.fixture(scope="module")
def landed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one synthetic case and one folder that holds no DICOM, taken in; copy it, never change it."""
    home = tmp_path_factory.mktemp("landed")
    broken = home / "landing" / "rt_dose" / "broken"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings_of(home).items():
            environment.setenv(name, value)
        assert main(["phantoms", "rt_dose", str(broken.parent)]) == 0
        broken.mkdir()
        (broken / "notes.txt").write_text("no DICOM here")
        assert main(["ingest", "rt_dose", "--now"]) == 0
    return home


@pytest.fixture
def landed(workspace: Workspace, landed_home: Path) -> Workspace:
    """A workspace with a copy of that home."""
    shutil.copytree(landed_home, workspace.home)
    return workspace


def case_id(ws: Workspace) -> str:
    return str(ws.lake.rows("dataset", "rt_dose")[0]["case_id"])


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environ}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True, check=True)


def test_cases_lists_what_is_usable_and_why_the_rest_is_not(
    landed: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["cases", "rt_dose"]) == 0
    listed = capsys.readouterr().out
    assert case_id(landed) in listed
    assert main(["cases", "rt_dose", "--quarantined"]) == 0
    quarantined = capsys.readouterr().out
    assert case_id(landed) not in quarantined
    assert "quarantined" in quarantined


def test_explain_follows_a_case_from_file_to_split(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["explain", case_id(landed)[:8]]) == 0
    story = capsys.readouterr().out
    for part in (
        "DICOM instances",
        "marked synthetic",
        "prepared as",
        "in the dataset",
        "is in split",
        "no model was scored",
    ):
        assert part in story


def test_explain_refuses_an_id_that_no_case_has(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nobody"]) == 1
    assert "expected exactly one case" in capsys.readouterr().err


def test_no_output_of_the_commands_names_the_patient(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["cases", "rt_dose"],
        ["explain", case_id(landed)],
        ["batches", "rt_dose"],
        ["query", "select * from raw_cases"],
    ):
        assert main(command) == 0
    shown = capsys.readouterr()
    assert "PHANTOM" not in shown.out + shown.err
    assert "notes.txt" not in shown.out + shown.err


def test_ingest_again_finds_nothing_new(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["ingest", "rt_dose", "--now"]) == 0
    assert "nothing new" in capsys.readouterr().out


def test_a_batch_done_again_reuses_its_work(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    batch = landed.lake.rows("raw_cases", "rt_dose")[0]["batch"]
    capsys.readouterr()
    assert main(["ingest", "rt_dose", "--batch", batch]) == 0
    assert "prepared: 0 new, 1 reused" in capsys.readouterr().out


def test_query_prints_rows_as_json_for_other_programs(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["query", "select case_id from dataset", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"case_id": case_id(landed)}]


def test_a_query_that_fails_says_so_and_exits_with_1(landed: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "select nothing from nowhere"]) == 1
    assert "expected one SELECT over the tables of the lake" in capsys.readouterr().err


def test_a_withdrawn_case_leaves_the_dataset_and_explain_says_why(
    landed: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = case_id(landed)
    assert main(["withdraw", "rt_dose", chosen, "--reason", "consent withdrawn"]) == 0
    assert landed.lake.rows("dataset", "rt_dose") == []
    assert main(["explain", chosen]) == 0
    assert "withdrawn: consent withdrawn" in capsys.readouterr().out


def test_withdraw_refuses_an_unknown_case(landed: Workspace) -> None:
    assert main(["withdraw", "rt_dose", "unknown", "--reason", "none"]) == 1


def test_without_a_key_a_command_says_which_variable_to_set(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MED_ASSETS_PSEUDONYM_KEY")
    assert main(["cases", "rt_dose"]) == 1
    assert "MED_ASSETS_PSEUDONYM_KEY" in capsys.readouterr().err


def test_doctor_finds_a_good_installation_and_names_what_is_missing(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    assert main(["doctor"]) == 0
    assert "accelerator" in capsys.readouterr().out
    monkeypatch.delenv("MED_ASSETS_PSEUDONYM_KEY")
    assert main(["doctor"]) == 1
    assert "->" in capsys.readouterr().out


def test_experiments_are_listed_and_printed_with_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments"]) == 0
    assert "rt_dose/baseline" in capsys.readouterr().out
    assert main(["experiments", "rt_dose/baseline", "schedule.epochs=7"]) == 0
    assert json.loads(capsys.readouterr().out)["schedule"]["epochs"] == 7


def test_an_unknown_experiment_is_refused_with_the_known_ones(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "rt_dose/nothing"]) == 1
    assert "baseline" in capsys.readouterr().err


def test_a_word_that_is_no_experiment_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "baseline"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ("med-assets:", "expected a command, got none", "`med-assets --help`")),
        (["trian"], ("med-assets:", "got 'trian'", "perhaps train is meant")),
        (["--dbug", "report", "rt_dose"], ("med-assets:", "got '--dbug'", "perhaps --debug is meant")),
        (["train"], ("med-assets train:", "expected PROGRAM/EXPERIMENT, got nothing", "`med-assets train --help`")),
        (["train", "rt_dose/baseline", "--rsume", "must"], ("got '--rsume'", "perhaps --resume is meant")),
        (
            ["train", "rt_dose/baseline", "--resume", "atuo"],
            ("--resume:", "auto, must, never", "perhaps auto is meant"),
        ),
        (["train", "rt_dose/baseline", "--launcher", "slurn"], ("--launcher:", "perhaps slurm is meant")),
        (["report", "rt_does"], ("expected one of breast_us", "perhaps rt_dose is meant")),
        (["report", "rt_dose", "more", "words"], ("got 'more words' too",)),
        (["phantoms", "rt_dose", "x", "-n", "2.5"], ("--number:", "expected a whole number, got '2.5'")),
        (["ingest", "rt_dose", "--batch"], ("expected --batch with a value, got none",)),
        (["ingest", "rt_dose", "--now=1"], ("expected --now alone, got a value",)),
        (["withdraw", "rt_dose", "case"], ("expected --reason TEXT, got nothing",)),
        (["export", "rt_dose/baseline"], ("expected --out FOLDER, got nothing",)),
    ],
)
def test_a_misuse_is_one_line_with_what_was_expected_and_what_is_near(
    words: list[str], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert all(name in shown.err for name in names), shown.err


@pytest.mark.parametrize(
    ("words", "sizes", "overrides"),
    [
        (["--sizes", "8", "16", "--repeats", "2", "a=1"], (8, 16), ("a=1",)),
        (["a=1", "b=2", "--repeats", "2", "--sizes", "8", "16"], (8, 16), ("a=1", "b=2")),
        (["--sizes=8", "a=1", "--sizes", "16", "--repeats", "2"], (8, 16), ("a=1",)),
        (["--sizes", "8", "--repeats", "2", "--", "--sizes"], (8,), ("--sizes",)),
    ],
)
def test_an_option_of_several_values_takes_the_words_up_to_the_next_option(
    words: list[str], sizes: tuple[int, ...], overrides: tuple[str, ...]
) -> None:
    context = cli.commands["learning-curve"].make_context("learning-curve", ["rt_dose/baseline", *words])
    assert context.params["sizes"] == sizes
    assert context.params["repeats"] == 2
    assert context.params["overrides"] == overrides


def test_help_lists_every_command_and_imports_no_library(tmp_path: Path) -> None:
    done = run("-X", "importtime", "-m", "med_assets.cli", "--help")
    assert re.findall(r"^  ([a-z][a-z-]*) ", done.stdout, re.MULTILINE) == list(cli.commands)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "pandas", "dagster", "numpy", "pyarrow", "pydantic"}


LIBRARIES = {
    "torch", "monai", "lightning", "transformers", "dagster", "pandas", "numpy", "pyarrow", "duckdb", "scipy", "skimage", "sklearn",
    "pydicom", "highdicom", "nibabel", "PIL", "matplotlib", "jinja2", "great_expectations", "hydra", "omegaconf", "boto3", "pydantic",
}  # fmt: skip
"""Libraries that take time to import."""

TABLES = {"pandas", "numpy", "pyarrow", "pydantic"}


EACH_IN_A_PROCESS = f"""
import json, os, sys
import {", ".join(sorted(TABLES))}
from med_assets.cli.main import main

before = sorted({LIBRARIES!r} & set(sys.modules))
for words in json.loads(sys.argv[1]):
    if not os.fork():
        code = main(words)
        print("IMPORTED", json.dumps([before, code, sorted({LIBRARIES!r} & set(sys.modules))]), flush=True)
        os._exit(0)
    os.wait()
"""
"""Runs each command in a process that is forked from one with the libraries which every command may use."""


def test_a_command_imports_what_it_uses(landed: Workspace) -> None:
    may_use = {
        ("cases", "rt_dose"): TABLES,
        ("leaderboard", "rt_dose"): TABLES,
        ("explain", case_id(landed)): TABLES,
        ("query", "select count(*) as n from raw_cases"): {*TABLES, "duckdb"},
        ("experiments", "rt_dose"): {*TABLES, "jinja2"},
    }
    twice = [
        words for words in may_use for _ in range(2)
    ]  # the first composes what it needs, so that the next one finds it
    lines = run("-c", EACH_IN_A_PROCESS, json.dumps(twice)).stdout.splitlines()
    found = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("IMPORTED")]
    assert [(set(before), code) for before, code, _ in found] == [(TABLES, 0)] * len(twice)
    seconds = zip(may_use.items(), found[1::2], strict=True)
    assert {words: more for (words, used), (_, _, imported) in seconds if (more := set(imported) - used)} == {}


def test_a_shell_completes_commands_options_and_programs() -> None:
    completed = {
        "med-assets learn": "plain,learning-curve",
        "med-assets train rt_dose/baseline --res": "plain,--resume",
        "med-assets train rt_dose/baseline --resume m": "plain,must",
        "med-assets cases rt_": "plain,rt_dose",
        "med-assets score pred": "file,pred",
    }
    for words, found in completed.items():
        environ = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_MED_ASSETS_COMPLETE": "bash_complete"}
        assert run("-m", "med_assets.cli", **environ).stdout.split() == [found], words


def test_a_champion_is_promoted_monitored_and_rolled_back_from_the_command_line(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    models.cases(workspace, {"train": models.TRAIN, "val": models.VAL})
    models.model(workspace, "mean_dose", models.constant(5.0))
    assert main(["rollback", "rt_dose", "--reason", "none yet"]) == 1
    assert "expected an earlier champion, found none" in capsys.readouterr().err
    first = models.model(workspace, "baseline", models.constant(4.0))
    assert main(["promote", "rt_dose"]) == 0
    assert f"champion: baseline ({first})" in capsys.readouterr().out
    second = models.model(workspace, "grad_loss", models.constant(3.0))
    assert main(["promote", "rt_dose", "--experiment", "grad_loss"]) == 0
    for name in models.TRAIN:
        models.score(workspace, second, name, 1.0)
    capsys.readouterr()
    assert main(["monitor", "rt_dose"]) == 0
    shown = capsys.readouterr().out
    assert f"0 new, {len(models.TRAIN) + len(models.VAL)} reused" in shown
    assert "headline" in shown
    assert main(["rollback", "rt_dose", "--reason", "hot spots"]) == 0
    assert f"champion: baseline ({first}), rolled back: hot spots" in capsys.readouterr().out
    models.model(workspace, "dvh_aware", models.constant(4.5))
    assert main(["promote", "rt_dose", "--experiment", "dvh_aware"]) == 1
    assert "not shown to be better than baseline" in capsys.readouterr().out
