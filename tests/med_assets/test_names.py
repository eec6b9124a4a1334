"""Names from outside: each way in refuses what is no name of its kind, in ASCII, and writes nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from assets import intake, run
from med_assets import program
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analysis
from med_assets.experiments import configuration as experiments
from med_assets.landing import batches
from med_assets.launch import training
from med_assets.programs.rt_dose.site import load_site
from med_assets.review.explain import find_case
from med_assets.settings import Workspace
from med_assets.storage import names
from med_assets.storage.conf import CONF_VARIABLE, conf_folder
from resources import build
from tests.conftest import REPOSITORY

P = "rt_dose"

HOSTILE = {
    "other folder": "../x",
    "deeper other folder": "a/../../x",
    "absolute": "/etc/passwd",
    "home": "~root",
    "empty": "",
    "blank": " ",
    "dot": ".",
    "two dots": "..",
    "NUL": "baseline\0",
    "newline": "baseline\n",
    "escape sequence": "\x1b[2Jbaseline",
    "long": "a" * 300,
    "look-alike": "b\u0430seline",
    "full width": "\uff42aseline",
    "other digits": "\u0661\u0662",
    "turned": "\u202ebaseline",
    "half a character": "baseline\udc80",
    "drive": "C:\\x",
    "back slash": "..\\x",
    "stream": "baseline:x",
    "trailing dot": "baseline.",
    "trailing blank": "baseline ",
    "leading blank": " baseline",
    "leading dash": "-baseline",
    "pattern": "*",
    "SQL": "x'; drop table y--",
    "interpolation": "${oc.env:HOME}",
}

WAYS_IN: dict[str, Callable[[Workspace, str], object]] = {
    "program": lambda ws, name: program.get(name),
    "conf folder": lambda ws, name: conf_folder(name),
    "experiment": lambda ws, name: training.experiment(ws, P, name),
    "profile": lambda ws, name: experiments.load(P, "baseline", profile=name),
    "group of an override": lambda ws, name: training.experiment(ws, P, "baseline", [f"profiles={name}"]),
    "field of an override": lambda ws, name: training.experiment(ws, P, "baseline", [f"{name}=1"]),
    "site": lambda ws, name: load_site(name),
    "batch": lambda ws, name: batches.manifest(ws, P, name),
    "case": lambda ws, name: find_case(ws, name),
    "analysis": lambda ws, name: analysis.find(P, name),
    "written table": lambda ws, name: ws.lake.write(name, P, []),
    "listed table": lambda ws, name: ws.lake.partitions(name),
    "written partition": lambda ws, name: ws.lake.write("splits", name, []),
    "partition of a program": lambda ws, name: ws.lake.write("splits", f"{P}/{name}", []),
    "removed partition": lambda ws, name: ws.lake.remove("splits", f"{P}/{name}"),
    "withdrawn case": lambda ws, name: stages.withdraw(ws, P, name, "a reason"),
    "artifact": lambda ws, name: ws.store.has(name),
    "artifact of a kind": lambda ws, name: ws.store.remove(f"raw/{name}"),
    "whole graph": lambda ws, name: run.materialize(ws, P, [name]),
}

COMMANDS = [
    [["ingest"], []],
    [["ingest", P, "--batch"], []],
    [["train"], []],
    [["train", P + "/"], []],
    [["train"], ["/baseline"]],
    [["crossval", P + "/"], []],
    [["learning-curve", P + "/"], []],
    [["evaluate", P + "/"], []],
    [["record", P + "/"], []],
    [["thresholds", P + "/"], []],
    [["export", "--out", "x", P + "/"], []],
    [["experiments", P + "/"], []],
    [["experiments"], []],
    [["weights", "--experiment", P + "/"], []],
    [["promote", P, "--experiment"], []],
    [["rollback", P, "--reason", "r", "--to"], []],
    [["rollback", P, "--reason", "r", "--to", "checkpoint/"], []],
    [["analyse", P], []],
    [["explain"], []],
    [["predict", P, "c", "--out", "x", "--model"], []],
    [["debug", P, "--out", "x"], []],
    [["debug", P, "c", "--out", "x", "--model"], []],
    [["audit-queue", "lumbar_mr", "--model"], []],
    [["withdraw", P, "--reason", "r"], []],
    [["card", "model", P + "/"], []],
    [["card", "dataset", P, "--version"], []],
]
"""Words of each command before the name, and what is behind it in the same word."""


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("way", WAYS_IN)
def test_no_way_in_takes_what_is_no_name(workspace: Workspace, tmp_path: Path, way: str) -> None:
    before = files_of(tmp_path)
    for title, name in HOSTILE.items():
        if way == "whole graph" and name == "":
            continue
        with pytest.raises(ConfigurationError) as refused:
            WAYS_IN[way](workspace, name)
        assert str(refused.value).isascii(), title
        assert str(refused.value).isprintable() or "\n" in str(refused.value), title
        assert len(str(refused.value)) < 1000, title
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(("before", "after"), COMMANDS, ids=lambda words: "_".join(words) or "-")
def test_no_command_takes_what_is_no_name(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: list[str], after: list[str]
) -> None:
    there = files_of(tmp_path)
    for title, name in HOSTILE.items():
        *words, last = [*before, name]
        if words[-1].endswith("/"):
            words, last = words[:-1], words[-1] + last
        with pytest.raises(SystemExit) as ended:
            main([*words, "".join([last, *after])])
        shown = capsys.readouterr()
        assert ended.value.code == 2, title
        assert shown.out == "", title
        assert shown.err.isascii(), title
        assert "expected" in shown.err or name.startswith("-"), title  # which is no option of the command either
    assert files_of(tmp_path) == there


@pytest.mark.parametrize("title", [title for title, name in HOSTILE.items() if not name.startswith("-")])
def test_predict_takes_a_case_or_a_folder_that_is_there(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], title: str
) -> None:
    assert main(["predict", P, HOSTILE[title], "--out", str(tmp_path / "out")]) == 1
    assert len(capsys.readouterr().err.splitlines()) <= 1
    assert not (tmp_path / "out").exists()


def test_a_partition_of_the_graph_is_named_as_intake_names_batches(workspace: Workspace, tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for title, name in HOSTILE.items():
            if not name or "\n" in name or "\udc80" in name:  # Dagster takes no such partition
                continue
            instance.add_dynamic_partitions(f"{P}_batches", [name])
            asset = intake.raw_cases(P)
            definition = asset.partitions_def
            assert isinstance(definition, dg.DynamicPartitionsDefinition)
            instance.add_dynamic_partitions(definition.name or "", [name])
            done = dg.materialize(
                [asset], partition_key=name, instance=instance, resources=build(), raise_on_error=False
            )
            assert not done.success, title
            (failure,) = done.get_step_failure_events()
            assert "expected the name of a batch" in str(failure.event_specific_data), title
    assert not list(workspace.home.rglob("*.parquet"))


def test_an_experiment_file_with_a_name_that_dagster_can_not_take_costs_nothing_else(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import assets

    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    folder = tmp_path / "conf" / P
    for name in ("my-copy", "b\u0430seline", "a b", "old.baseline"):
        shutil.copy(folder / "mean_dose.yaml", folder / f"{name}.yaml")
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
    refused = training.sorted_out(workspace, P)[1]
    assert set(refused) == {"my-copy", "b\u0430seline", "a b", "old.baseline"}
    assert all("expected the name of an experiment" in why for why in refused.values())
    assert "mean_dose" in training.usable(workspace, P)
    assert P in assets.programs(assets.build())


def test_what_lies_in_a_table_under_no_name_is_no_partition(workspace: Workspace) -> None:
    workspace.lake.write("splits", P, [])
    (workspace.lake.root / "splits" / "._rt_dose.parquet").write_bytes(b"what a file manager left")
    assert workspace.lake.partitions("splits") == [P]
    assert workspace.lake.rows("splits") == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (names.PROGRAM, "rt_dose"),
        (names.EXPERIMENT, "finetune_single_domain_01"),
        (names.OPTION, "prostate_sib"),
        (names.OPTION, "head-neck"),
        (names.BATCH, "2026-01-31T09-30-00_0a1b2c"),
        (names.CASE, "0f3c"),
        (names.CASE, "source-0123abcd-no_dicom-2"),
        (names.ANALYSIS, "low_dose_variability"),
        (names.TABLE, "rt_dose_facts"),
        (names.ARTIFACT, "checkpoint/0123456789abcdef"),
        (names.PARTITION, "rt_dose/2026-01-31T09-30-00_0a1b2c"),
        (names.PARTITION, "rt_dose/baseline/0123456789abcdef"),
    ],
)
def test_a_name_is_given_back_as_it_is(kind: names.Kind, name: str) -> None:
    assert kind.check(name) == name
    assert not kind.fits(None)
    assert not kind.fits(3)


def test_all_experiments_programs_and_analyses_have_names() -> None:
    for name in program.registered():
        assert names.PROGRAM.fits(name)
        assert all(map(names.EXPERIMENT.fits, experiments.names(name)))
        assert all(map(names.ANALYSIS.fits, analysis.of(name)))
        assert names.TABLE.fits(program.fact_table(name))
