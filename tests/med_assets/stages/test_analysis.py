"""The hook for analyses: one given by a program is an asset, a command and a part of the report, and redone only for new inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from PIL import Image

from assets import build_program, keys
from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analysis
from med_assets.evaluation.analyse import Measuring, folder_of
from med_assets.evaluation.analysis import Analysis
from med_assets.program import ReportTable
from med_assets.reporting.evaluation_sections import analyses
from med_assets.reporting.report_facts import gather
from med_assets.settings import Workspace
from med_assets.storage.versions import versioned
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource
from tests.med_assets.stages import models
from tests.med_assets.stages.builders import P

CASES = ("t0", "t1", "t2")


@versioned("1")
def lengths(ws: Workspace, out: Path) -> list[ReportTable]:
    """An analysis of one number per case, which a case named bad has not."""
    measuring, rows = Measuring(ws, "lengths", "1"), []
    for case in Catalog(ws, P).cases():

        def work(case: Mapping[str, Any] = case) -> Mapping[str, Any]:
            if case.case_id == "bad":
                raise ValueError("expected a length, got none")
            with (ws.home / "measured").open("a") as stream:
                stream.write(f"{case.case_id}\n")
            return {"length": len(case.case_id)}

        if (found := measuring.of(case.case_id, case.artifact, work)) is not None:
            rows.append({"case": case.case_id, "length": found["length"], "undefined": None})
    measuring.record(P, "lengths")
    Image.new("RGB", (8, 8)).save(out / "plot.png")
    return [ReportTable("Lengths of names", "Letters of each.", pd.DataFrame(rows), (out / "plot.png",), ("a plot",))]


def settings(ws: Workspace) -> Mapping[str, Any]:
    return {"unit": ws.option(P, "unit", "letters")}


LENGTHS = Analysis("lengths", "Lengths", "How long names are.", ("dataset", "splits"), lengths, settings)
ABLATION = Analysis("ablation", "Ablation", "Takes long.", ("checkpoint/baseline",), lengths, expensive=True)


@pytest.fixture
def ws(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Three training cases in a program with two analyses, one of them expensive."""
    monkeypatch.setattr(program.get(P), "analyses", lambda: (LENGTHS, ABLATION), raising=False)
    models.cases(workspace, {"train": CASES}, synthetic=CASES)
    return workspace


def measured(ws: Workspace) -> list[str]:
    return (ws.home / "measured").read_text().split()


def test_equal_inputs_give_the_same_version_and_are_computed_once(ws: Workspace) -> None:
    first, again = stages.analyse(ws, P, "lengths"), stages.analyse(ws, P, "lengths")
    assert first.data_version == again.data_version
    assert (first.counts["new"], again.counts) == (1, {"new": 0, "reused": 1, "failed": 0})
    assert first.tables["Lengths of names"]["length"].tolist() == [2, 2, 2]
    assert again.images["plot"].is_file()
    assert sorted(path.name for path in folder_of(ws, P, "lengths").iterdir()) == [
        "01_lengths_of_names.csv", "analysis.json", "plot.png",
    ]  # fmt: skip
    assert measured(ws) == [*CASES]


def test_one_more_case_is_measured_alone_and_gives_what_all_at_once_would(ws: Workspace) -> None:
    stages.analyse(ws, P, "lengths")
    models.cases(ws, {"train": ["more"]}, batch="b2")
    after = stages.analyse(ws, P, "lengths")
    assert measured(ws) == [*CASES, "more"]
    for kind in ("measure", "analysis"):
        for key in ws.store.keys(kind):
            ws.store.remove(key)
    assert stages.analyse(ws, P, "lengths").data_version == after.data_version


def test_other_settings_and_other_splits_run_it_again(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.analyse(ws, P, "lengths")
    ws.lake.write("splits", P, [row | {"fold": 1} for row in ws.lake.rows("splits", P)])
    assert stages.analyse(ws, P, "lengths").counts["new"] == 1
    monkeypatch.setenv("MED_ASSETS_RT_DOSE_UNIT", "characters")
    assert stages.analyse(Workspace.from_env(), P, "lengths").counts["new"] == 1


def test_a_case_that_fails_is_reported_left_out_and_tried_again(ws: Workspace) -> None:
    models.cases(ws, {"train": ["bad"]}, batch="b2")
    result = stages.analyse(ws, P, "lengths")
    assert result.summary["failures"] == {"bad": "ValueError: expected a length, got none"}
    assert result.tables["Lengths of names"]["case"].tolist() == [*CASES]
    assert [row["stage"] for row in ws.lake.rows("failures", P)] == ["analysis"]
    assert stages.analyse(ws, P, "lengths").counts == {"new": 1, "reused": 0, "failed": 1}
    assert "1 cases could not be measured" in next(iter(analyses(gather(ws, P)))).text


@pytest.mark.usefixtures("full_layout")
def test_the_report_shows_what_was_made_and_says_when_it_is_stale(ws: Workspace) -> None:
    stages.report(ws, P)
    page = ws.reports / P / "report.html"
    assert "Lengths" not in page.read_text()
    stages.analyse(ws, P, "lengths")
    stages.report(ws, P)
    assert "Lengths of names" in page.read_text()
    assert "has changed since" not in page.read_text()
    models.cases(ws, {"train": ["more"]}, synthetic=["more"], batch="b2")
    stages.report(ws, P)
    assert "The dataset has changed since; `med-assets analyse rt_dose lengths` makes it again." in page.read_text()


def test_a_report_for_patients_refuses_an_analysis_of_synthetic_cases(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.analyse(ws, P, "lengths")
    ws.lake.write("dataset", P, [row | {"synthetic": False} for row in ws.lake.rows("dataset", P)])
    monkeypatch.setenv("MED_ASSETS_PURPOSE", "production")
    with pytest.raises(ConfigurationError, match="'analyses': 1"):
        stages.report(Workspace.from_env(), P)


def test_the_command_runs_all_that_are_cheap_and_names_the_others(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", P]) == 0
    output = capsys.readouterr().out
    assert "analysed rt_dose/lengths: 1 new, 0 reused, 0 failed" in output
    assert "not run, since expensive; give the name: ablation" in output
    assert main(["analyse", P, "length"]) == 1
    assert "expected an analysis of rt_dose (lengths, ablation), got 'length'" in capsys.readouterr().err


def test_each_is_an_asset_and_an_expensive_one_waits_for_a_person_and_the_accelerator(ws: Workspace) -> None:
    graph = {asset.key: asset for asset in build_program(P)}
    cheap, expensive = graph[keys.key(P, "lengths")], graph[keys.key(P, "ablation")]
    (spec,) = cheap.specs
    assert {dep.asset_key for dep in spec.deps} == {keys.key(P, "dataset"), keys.key(P, "splits")}
    assert (spec.group_name, spec.tags[keys.STAGE_TAG], spec.tags[keys.FOLLOWS_TAG]) == (
        "rt_dose_results",
        "analysis",
        "any",
    )
    (waiting,) = expensive.specs
    assert (expensive.op.pool, waiting.tags.get(keys.FOLLOWS_TAG)) == (keys.POOL, None)
    assert {dep.asset_key for dep in waiting.deps} == {keys.experiment_key(P, "baseline", "checkpoint")}
    read = {dep.asset_key for spec in graph[keys.key(P, "report")].specs for dep in spec.deps}
    assert {cheap.key, expensive.key} <= read
    resources = {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
    done = dg.materialize([*graph.values()], selection=[cheap.key], resources=resources)
    (event,) = done.get_asset_materialization_events()
    assert event.materialization.tags is not None
    assert event.materialization.tags["dagster/data_version"] == stages.analyse(ws, P, "lengths").data_version


@pytest.mark.parametrize("name", program.registered())
def test_every_analysis_reads_what_there_is_and_says_what_it_is(name: str) -> None:
    from med_assets.experiments.configuration import names

    for one in analysis.of(name).values():
        assert one.inputs(names(name)), one.name
        assert one.title
        assert one.description.endswith(".")


def test_what_can_not_be_read_is_named() -> None:
    wrong = Analysis("wrong", "", "", ("evaluation/basline",), lengths)
    with pytest.raises(ConfigurationError, match="or of one of baseline, other, got 'evaluation/basline'"):
        wrong.inputs(["baseline", "other"])
    everything = Analysis("all", "", "", ("evaluation", "dataset"), lengths)
    assert everything.inputs(["a", "b"]) == [("leaderboard",), ("dataset",)]
