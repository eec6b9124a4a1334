"""From an evaluation to thresholds, the table of all studies, the queue, and back with what a reader decided."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from pydicom.uid import MRImageStorage

from med_assets import program
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.dataset.reader_decisions import decided
from med_assets.dicom.objects import Identity, new_object, save
from med_assets.errors import ConfigurationError
from med_assets.programs.lumbar_mr import studies
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.pictures import plot_overview
from med_assets.programs.lumbar_mr.thresholds import fit, normal_cases, risk_settings, tables_of
from med_assets.reporting import model_sections, style
from med_assets.reporting.checks import synthetic_report
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import gather
from med_assets.reporting.stage import report_path
from med_assets.screening.stage import QUEUE, TABLE, folder_of
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from med_assets.training.job import run
from tests.med_assets.programs.lumbar_mr.builders import TINY, write_prepared
from tests.med_assets.programs.lumbar_mr.test_score import cohort

P, EXPERIMENT = "lumbar_mr", "point_net"
SPLITS = {"train": ("t0", "t1"), "val": ("v0", "v1", "v2", "v3"), "test": ("x0", "x1")}
ODD, UNLABELLED = ("v3", "x1"), ("v2",)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with eight small spines, of which two are transitional and one is unlabelled, and an evaluated model."""
    folder = tmp_path_factory.mktemp("screening")
    with pytest.MonkeyPatch.context() as patch:
        settings(patch, folder / "home")
        ws = Workspace.from_env()
        rows, places = [], []
        for number, (name, split) in enumerate((name, split) for split, names in SPLITS.items() for name in names):
            lstv = "sacralised" if name in ODD else "unknown" if name in UNLABELLED else "normal"
            prepared = write_prepared(folder / name, number, lstv=lstv)
            with ws.store.create(f"prepared/{digest(name)}") as out:
                shutil.copytree(prepared, out, dirs_exist_ok=True)
            with ws.store.create(f"raw/{digest(name)}") as out:
                whose = Identity(f"P-{name}", f"1.2.3.{number}", "1.2.4")
                save(new_object(whose, MRImageStorage, "MR", f"1.2.3.{number}.1", f"1.2.3.{number}.2"), out / "a.dcm")
            keys = {"program": P, "case_id": name, "patient_id": f"p-{name}", "version": digest(name)}
            rows.append(keys | {"content_hash": digest(name), "given_split": None, "synthetic": True})
            places.append(
                {"program": P, "patient_id": f"p-{name}", "split": split, "fold": number % 2, "assigned_by": "test"}
            )
        outcome = {"batch": "b1", "status": "ok", "reason_code": None, "reason": None}
        for table, more in (("raw_cases", {"n_instances": 1}), ("prepared_cases", {})):
            kind = table.partition("_")[0]
            found = [row | outcome | more | {"artifact": f"{kind}/{row['version']}"} for row in rows]
            ws.lake.write(table, f"{P}/b1", found)
        ws.lake.write("dataset", P, [row | {"artifact": f"prepared/{row['version']}"} for row in rows])
        ws.lake.write("splits", P, places)
        stages.train(ws, P, EXPERIMENT, (*TINY, "inference.found_above=0"), launch=run)
        stages.evaluate(ws, P, EXPERIMENT)
    return folder / "home"


def settings(patch: pytest.MonkeyPatch, home: Path) -> None:
    for name, value in {"HOME": str(home), "PSEUDONYM_KEY": "a key for tests that is long enough", "PURPOSE": "demo", "PROFILE": "demo"}.items():  # fmt: skip
        patch.setenv(f"MED_ASSETS_{name}", value)


@pytest.fixture
def ws(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    shutil.copytree(evaluated, tmp_path / "home")
    settings(monkeypatch, tmp_path / "home")
    return Workspace.from_env()


def table(ws: Workspace, name: str = TABLE) -> pd.DataFrame:
    return pd.read_csv(folder_of(ws, P) / name)


def test_thresholds_come_from_normal_validation_cases_and_are_tried_on_normal_test_cases(ws: Workspace) -> None:
    result = stages.thresholds(ws, P, EXPERIMENT)
    rows = ws.lake.rows("thresholds", P)
    assert {(row["n"], row["tested"]) for row in rows} == {(2, 1)}
    assert {row["checkpoint"] for row in rows} == {ws.lake.rows("checkpoints", P)[0]["checkpoint"]}
    # Two normal cases can promise a third, and neither of the rates that are asked for.
    assert all(row["value"] is None and row["flagged"] is None for row in rows)
    assert rows[0]["synthetic"] is True
    assert stages.thresholds(ws, P, EXPERIMENT).data_version == result.data_version


def test_cases_without_a_reader_label_count_as_normal_only_where_a_home_is_set_so(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stages.thresholds(ws, P, EXPERIMENT).data_version
    monkeypatch.setenv("MED_ASSETS_LUMBAR_MR_UNJUDGED", "normal")
    with pytest.warns(FutureWarning, match="MED_ASSETS_LUMBAR_MR_UNLABELLED"):
        former = stages.thresholds(Workspace.from_env(), P, EXPERIMENT).data_version
    monkeypatch.delenv("MED_ASSETS_LUMBAR_MR_UNJUDGED")
    monkeypatch.setenv("MED_ASSETS_LUMBAR_MR_UNLABELLED", "normal")
    changed = Workspace.from_env()
    assert stages.thresholds(changed, P, EXPERIMENT).data_version == former != before
    assert {row["n"] for row in changed.lake.rows("thresholds", P)} == {3}
    monkeypatch.setenv("MED_ASSETS_LUMBAR_MR_UNLABELLED", "perhaps")
    with pytest.raises(ConfigurationError, match="unlabelled"):
        stages.thresholds(Workspace.from_env(), P, EXPERIMENT)


def test_without_a_normal_case_every_risk_is_unknown_and_nothing_fails(ws: Workspace) -> None:
    path = ws.home / "reads.csv"
    path.write_text("case_id,decision\nv0,indeterminate\nv1,indeterminate\n")
    stages.record(ws, P, path)
    stages.evaluate(ws, P, EXPERIMENT)
    assert "every risk is unknown" in stages.thresholds(ws, P, EXPERIMENT).summary["note"]
    stages.screening(ws, P, EXPERIMENT)
    assert set(table(ws)["risk"]) == {"Unknown"}


def test_the_table_has_every_study_and_starts_with_the_published_columns(ws: Workspace) -> None:
    stages.thresholds(ws, P, EXPERIMENT)
    result = stages.screening(ws, P, EXPERIMENT, top=3)
    found = table(ws)
    wanted = ["study_id", "series_id"]
    wanted += [f"{level}_{name}" for level in LEVELS for name in ("confidence", "entropy", "spatial_entropy")]
    assert list(found.columns[:17]) == wanted
    assert sorted(found["case_id"]) == sorted(name for names in SPLITS.values() for name in names)
    assert found.set_index("case_id").loc["v1", ["study_id", "series_id"]].tolist() == ["1.2.3.3", "1.2.3.3.1"]
    assert found["synthetic"].all()
    # v3 is transitional: the experiment leaves it out, so that its model was neither trained nor selected on it.
    assert set(found.loc[found["seen_in_training"], "case_id"]) == {"t0", "t1", "v0", "v1", "v2"}
    assert found["rank"].tolist() == list(range(1, 9))
    assert len(table(ws, QUEUE)) == 3
    assert result.counts["cases"] == 8


def test_a_trial_run_is_the_same_with_a_limit(ws: Workspace) -> None:
    stages.screening(ws, P, EXPERIMENT, limit=3)
    few = pd.read_csv(folder_of(ws, P, trial=True) / TABLE).sort_values("case_id")
    stages.screening(ws, P, EXPERIMENT)
    many = table(ws).sort_values("case_id")
    same = [name for name in few if name != "rank"]
    pd.testing.assert_frame_equal(few[same].reset_index(drop=True), many[same].head(3).reset_index(drop=True))


def test_a_trial_leaves_files_and_failures_of_the_full_run_as_they_are(ws: Workspace) -> None:
    (row,) = [row for row in ws.lake.rows("dataset", P) if row["case_id"] == "t1"]
    (ws.store.fetch(row["artifact"]) / "input.npy").unlink()
    stages.screening(ws, P, EXPERIMENT)
    full = {name: (folder_of(ws, P) / name).read_bytes() for name in (TABLE, QUEUE)}
    failures = ws.lake.rows("failures", f"{P}/screening")
    assert [row["case_id"] for row in failures] == ["t1"]
    result = stages.screening(ws, P, EXPERIMENT, limit=1)
    assert (result.counts["cases"], result.counts["failed"]) == (1, 0)
    assert result.summary["queue"] == f"reports/{P}/screening/trial/{QUEUE}"
    assert {name: (folder_of(ws, P) / name).read_bytes() for name in full} == full
    assert ws.lake.rows("failures", f"{P}/screening") == failures


def screened(ws: Workspace) -> list[Section]:
    """The sections of the report that screen."""
    return list(model_sections.screening(gather(ws, P)))


def test_the_report_screens_what_is_scored_and_counts_the_rest_without_loading_a_model(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("med_assets.programs.lumbar_mr.screening.SHOWN", 2)
    monkeypatch.setattr(style, "LAYOUT", None)  # the whole report, below, is laid out as users get it
    stages.thresholds(ws, P, EXPERIMENT)
    with monkeypatch.context() as patch:
        patch.delattr(type(program.get(P)), "predictor")
        sections = screened(ws)
    assert "Statistics dashboard" in {section.title for section in sections}
    for section in sections:
        assert f"2 cases not evaluated; run `med-assets audit-queue {P} --model {EXPERIMENT}`" in section.text
        assert "All 6 studies" in section.text, "the training cases are not scored by an evaluation"
    stages.screening(ws, P, EXPERIMENT)
    for section in screened(ws):
        assert "not evaluated" not in section.text
        assert "All 8 studies" in section.text


def test_a_study_that_fails_is_a_row_with_its_exception_and_nothing_else(ws: Workspace) -> None:
    (row,) = [row for row in ws.lake.rows("dataset", P) if row["case_id"] == "t0"]
    (ws.store.fetch(row["artifact"]) / "input.npy").unlink()
    result = stages.screening(ws, P, EXPERIMENT)
    assert "t0" not in set(table(ws)["case_id"])
    assert result.counts["failed"] == 1
    (failure,) = ws.lake.rows("failures", f"{P}/screening")
    assert (failure["case_id"], failure["error"][:15]) == ("t0", "ArtifactCorrupt")


def test_decisions_go_round_from_the_queue_to_the_case_table_and_the_thresholds(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit-queue", P, "--model", EXPERIMENT]) == 0
    queue = table(ws, QUEUE).assign(decision="", note="")
    queue["decision"] = queue["case_id"].map({"v2": "Normal", "v0": "lumbarised"}).fillna("")
    queue.to_csv(ws.home / "read.csv", index=False)
    assert main(["audit-queue", P, "--read", str(ws.home / "read.csv")]) == 0
    assert "2 decisions are in the case table" in capsys.readouterr().out
    assert main(["cases", P]) == 0
    assert "lumbarised" in capsys.readouterr().out
    stages.evaluate(ws, P, EXPERIMENT)
    known = ws.lake.read("evaluation_cases", P)
    labels = known[known["metric"] == "transitional"].set_index("case_id")["value"]
    assert (labels["v2"], labels["v0"]) == (0.0, 1.0)
    assert normal_cases(known, risk_settings())[0] == ["v1", "v2", "x0"]
    stages.screening(ws, P, EXPERIMENT)
    assert not {"v0", "v2"} & set(table(ws, QUEUE)["case_id"])
    assert table(ws).set_index("case_id").loc["v0", "read"] == "lumbarised"


def test_a_study_that_can_t_be_used_is_withdrawn_with_that_reason(ws: Workspace) -> None:
    path = ws.home / "reads.csv"
    path.write_text("case_id,decision,note\nx0,unusable,implant\n")
    assert stages.record(ws, P, path)["note"].tolist() == ["implant"]
    assert [(row["case_id"], row["reason"]) for row in ws.lake.rows("withdrawals", P)] == [("x0", "read as unusable")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,decision\nv0,normal\nnobody,normal\n", "line 3: unknown case"),
        ("case_id,decision\nv0,fine\n", "line 2: decision 'fine', expected one of normal"),
        ("case_id,decision\nv0,normal\nv0,normal\n", "1 cases have two lines"),
        ("case_id,answer\nv0,normal\n", "got no decision"),
    ],
)
def test_a_file_with_a_mistake_changes_nothing(ws: Workspace, text: str, message: str) -> None:
    path = ws.home / "reads.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        stages.record(ws, P, path)
    assert ws.lake.rows("reads", P) == []


@pytest.mark.parametrize(("images", "decisions"), [("the same", {"v0": "normal"}), ("others", {}), (None, {})])
def test_a_decision_outlives_a_new_version_of_a_case_with_the_same_images_alone(
    ws: Workspace, images: str | None, decisions: dict[str, str]
) -> None:
    sent = [row | {"images_hash": "the same"} for row in ws.lake.rows("raw_cases", f"{P}/b1")]
    ws.lake.write("raw_cases", f"{P}/b1", sent)
    path = ws.home / "reads.csv"
    path.write_text("case_id,decision\nv0,normal\n")
    stages.record(ws, P, path)
    assert decided(ws, P) == {"v0": "normal"}
    newer = {row["case_id"]: digest("new", row["version"]) for row in sent}
    again = [row | {"batch": "b2", "version": newer[row["case_id"]], "images_hash": images} for row in sent]
    ws.lake.write("raw_cases", f"{P}/b2", again)
    ws.lake.write("dataset", P, [row | {"version": newer[row["case_id"]]} for row in ws.lake.rows("dataset", P)])
    assert decided(ws, P) == decisions


def test_the_report_of_synthetic_cases_is_marked_and_there_is_none_for_production(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("med_assets.programs.lumbar_mr.screening.SHOWN", 2)
    stages.thresholds(ws, P, EXPERIMENT)
    stages.report(ws, P)
    page = report_path(ws, P).read_text()
    for title in (
        "Statistics dashboard", "Uncertainty by level", "Distributions at l5_s1", "Candidates for a radiologist", "Level comparison",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert synthetic_report(ws, P).passed
    report_path(ws, P).write_text(page.replace("synthetic", ""))
    assert not synthetic_report(ws, P).passed
    monkeypatch.setenv("MED_ASSETS_PURPOSE", "production")
    with pytest.raises(ConfigurationError, match="expected no synthetic case in a report for production"):
        stages.report(Workspace.from_env(), P)


def test_debugging_a_study_plots_every_step_of_it(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", P, "x0", "--model", EXPERIMENT, "--out", str(ws.home / "steps")]) == 0
    names = ["1_series", "2_intensities", "3_middle", "4_slices", "5_views", "6_combined", "7_measures"]
    assert [Path(line).stem for line in capsys.readouterr().out.splitlines()] == names
    assert all((ws.home / "steps" / f"{name}.png").stat().st_size > 2000 for name in names[:-1])
    assert pd.read_csv(ws.home / "steps" / "7_measures.csv")["level"].tolist() == list(LEVELS)


def test_a_program_without_screening_says_so(ws: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="rt_dose looks for no unusual cases"):
        stages.thresholds(ws, "rt_dose", "baseline")


def test_each_normal_case_is_held_against_the_normal_cases_of_other_folds() -> None:
    rows = cohort(60)
    rows["fold"] = rows["case_id"].str[1:].astype(int) // 2 % 3
    settings = risk_settings().model_copy(update={"measure": "confidence", "high_rate": 0.1})
    found = studies.false_alarms(rows, settings)
    # All normal cases are equally sure, so none is less sure than those of the other folds.
    row = found.rows[(found.rows["measure"] == "confidence") & (found.rows["rate asked for"] == 0.1)].iloc[0]
    assert (row["normal cases"], row["flagged"]) == (30, "0 of 30")
    assert "promised in every fold is 0.048" in found.text


def test_the_dashboard_counts_each_risk_once_and_flags_high_and_medium_alone() -> None:
    asked = {"measure": "confidence", "high_rate": 0.1, "medium_rate": 0.3}
    rows, settings = cohort(60), risk_settings().model_copy(update=asked)
    tables = tables_of(rows)
    normals = normal_cases(rows, settings)[0]
    record = fit(
        {case: tables[case] for case in normals},
        {case: case for case in tables},
        settings,
        checkpoint="c",
        dataset_version="d",
        trained_on=(),
        synthetic=True,
    )
    expected = [record.risk(own) for own in tables.values()]
    found = studies.dashboard(rows, settings, record).rows.set_index("studies")["number"]
    assert found["all"] == 60
    assert {risk: found[risk] for risk in studies.RISKS} == {risk: expected.count(risk) for risk in studies.RISKS}
    assert found["flagged (detection rate)"] == found["High"] + found["Medium"] == 30
    assert found[list(studies.RISKS)].sum() == 60


def test_without_thresholds_no_share_of_flagged_studies_is_made_up() -> None:
    found = studies.dashboard(cohort(6), risk_settings(), None).rows.set_index("studies")["number"]
    assert (found["all"], found["Unknown"]) == (6, 6)
    assert "flagged (detection rate)" not in found.index


def test_the_overview_is_plotted_where_levels_are_not_found(tmp_path: Path) -> None:
    rows = cohort(12)
    rows.loc[rows["metric"] == "entropy", "value"] = None
    path = plot_overview(rows, risk_settings(), tmp_path / "overview.png")
    assert path.stat().st_size > 1000


def test_a_queue_made_anew_keeps_what_readers_entered_in_it(ws: Workspace) -> None:
    stages.screening(ws, P, EXPERIMENT, top=3)
    path = folder_of(ws, P) / QUEUE
    first = pd.read_csv(path, dtype=str, keep_default_na=False)
    recorded, open_decision, open_note = first["case_id"]
    first.loc[0, "decision"] = "normal"
    first.loc[1, ["decision", "note"]] = ["Sacralised", "=see, L5"]
    first.loc[2, "note"] = "ask"
    first.loc[3, ["case_id", "decision"]] = ["left-the-table", "normal"]
    first.fillna("").to_csv(path, index=False)
    entered = ws.home / "recorded.csv"
    first[:1].to_csv(entered, index=False)
    stages.record(ws, P, entered)
    untouched = stages.screening(ws, P, EXPERIMENT, top=3)
    again = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("case_id")
    assert recorded not in again.index
    assert again.loc[open_decision, "decision"] == "Sacralised"
    assert again.loc[open_decision, "note"] == "'=see, L5", "which no spreadsheet computes"
    assert again.loc[open_note, "note"] == "ask"
    assert again.loc["left-the-table", "decision"] == "normal"
    assert untouched.summary["entries_kept"] == 3
    assert len(again) == 4
    one = stages.screening(ws, P, EXPERIMENT, top=1)
    again = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("case_id")
    assert {open_decision, open_note, "left-the-table"} <= set(again.index)
    path.write_bytes(b"\x00\xff no table")
    broken = stages.screening(ws, P, EXPERIMENT, top=1)
    assert broken.data_version == one.data_version, "what readers enter is no part of the result"
    assert (folder_of(ws, P) / str(broken.summary["earlier_queue"])).read_bytes() == b"\x00\xff no table"
