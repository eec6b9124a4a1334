"""The record of experiments: an index that tells where each run stands, and notebooks that were executed."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.launch import runs, training
from med_assets.records import Checkpoint, ExperimentEntry
from med_assets.reporting.experiment_facts import gather
from med_assets.reporting.index import PAGE
from med_assets.reporting.notebook import SECTIONS, cells
from med_assets.reporting.notebooks import Cell, stop_kernel, write_notebook
from med_assets.reporting.run_status import STALE, run_statuses
from med_assets.requested_records import SweepScore
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import GUARDED, PRIMARY, SUBJECTS, TRAIN, VAL, cases, configure, constant, model


@pytest.fixture(autouse=True, scope="module")
def kernel_ends() -> Iterator[None]:
    yield
    stop_kernel()


def make_decided(ws: Workspace) -> None:
    """A baseline of 5 Gy, one experiment that is better and one that is worse, evaluated; the gate was asked."""
    cases(ws, {"train": TRAIN, "val": VAL})
    model(ws, "mean_dose", constant(5.0, step=0.02))
    model(ws, "baseline", constant(5.5), history=(4.0, 3.0, 3.5), trained_at="2026-01-02T03:04:05+00:00")
    stages.champion(ws, P)


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_decided)


def rows(ws: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Make the index; its rows by experiment."""
    stages.index(ws, P)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ws.lake.rows(ExperimentEntry.TABLE, P):
        found.setdefault(row["experiment"], []).append(row)
    return found


def checkpoint(ws: Workspace, name: str) -> Checkpoint:
    return training.checkpoint_of(ws, P, name)


def notebook(path: Path) -> Any:
    return json.loads(path.read_text())


def text_of(path: Path) -> str:
    return "".join("".join(cell["source"]) for cell in notebook(path)["cells"])


def test_the_index_tells_where_every_experiment_stands_and_what_code_made_it(ws: Workspace) -> None:
    for name, commit in (("baseline", "c0ffee+dirty"), ("mean_dose", "beef")):
        record = ws.store.fetch(checkpoint(ws, name).checkpoint) / "provenance.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "git_commit": commit}))
        ws.lake.remove("runs", f"{P}/{name}/{checkpoint(ws, name).checkpoint.removeprefix('checkpoint/')}")
    found = rows(ws)
    assert not ws.lake.rows("runs", P), "a reader of runs records none"
    for name in ("baseline", "mean_dose"):
        runs.record_run(ws, checkpoint(ws, name), training.experiment(ws, P, name))
    assert [(found[name][0]["git_commit"], found[name][0]["dirty"]) for name in ("baseline", "mean_dose")] == [
        ("c0ffee", True),
        ("beef", False),
    ]
    assert found["baseline"][0]["status"].startswith("refused by the gate")
    assert "not shown to be better than mean_dose" in found["baseline"][0]["note"]
    assert found["mean_dose"][0]["status"].startswith("evaluated")
    assert found["dvh_aware"] == [
        found["dvh_aware"][0] | {"status": "not trained", "checkpoint": None, "metrics": None}
    ]
    assert json.loads(found["baseline"][0]["metrics"])["val openkbp_dose_score (Gy)"].endswith("(n = 30)")
    page = (ws.reports / P / PAGE).read_text()
    assert "| 2026-01-02 03:04 |" in page
    assert "| c0ffee dirty |" in page
    assert "| beef |" in page
    assert "`med-assets train rt_dose/dvh_aware`" in page
    assert "experiments.html" in (ws.reports / PAGE).read_text()
    not_trained = (ws.reports / PAGE).read_text().partition("Not trained: ")[2]
    assert "dvh_aware, ensemble, flow, flow_bounded, grad_loss" in not_trained
    assert "baseline" not in not_trained.partition("\n")[0]

    # A run keeps what was true when it was trained, whatever happens to its checkpoint later.
    later = replace(checkpoint(ws, "baseline"), dataset_version="another")
    runs.record_run(ws, later, training.experiment(ws, P, "baseline"), ["seed=7"])
    (kept,) = (run for run in runs.runs_of(ws, P) if run.experiment == "baseline")
    assert (kept.dataset_version, kept.overrides) == ("d", "")
    assert kept.environment == "MED_ASSETS_PROFILE=demo MED_ASSETS_PURPOSE=demo"


def test_the_notebook_has_the_sweeps_of_its_experiment_and_no_others(ws: Workspace) -> None:
    def combination(experiment: str, number: int, mean: float) -> SweepScore:
        return SweepScore(
            program=P, experiment=experiment, sweep="s", number=number, overrides=f"optimiser.lr=1e-{number}", checkpoint=f"checkpoint/{number}", job=str(number),
            experiment_hash="h", dataset_version="earlier", synthetic=False, metric=PRIMARY, subject=SUBJECTS[PRIMARY], unit="Gy", mean=mean, low=mean - 1, high=mean + 1,
            n=30, n_val=30, n_failed=0, difference=None, difference_low=None, difference_high=None, best_epoch=1, epochs=2, hours=0.5, reason=None,
        )  # fmt: skip

    guarded = {"metric": GUARDED, "subject": SUBJECTS[GUARDED]}
    for name in ("baseline", "mean_dose"):
        found = [combination(name, number, mean) for number, mean in ((1, 4.0), (2, 3.0))]
        Catalog(ws, P).replace(SweepScore, [*found, *(replace(row, **guarded) for row in found)], name, "s")
    written = cells(gather(ws, P, "baseline", checkpoint(ws, "baseline").checkpoint))
    (text,) = (cell.text for cell in written if cell.text.startswith("Sweep over"))
    assert text.startswith("Sweep over optimiser.lr. ")
    assert "The dataset has changed since" in text
    best, other = (line for line in text.splitlines() if "(n = 30)" in line)
    assert "1e-2" in best
    assert r"3.00 \[2.00, 4.00\] (n = 30)" in best
    assert "1e-1" in other


def test_a_promoted_run_is_the_champion_and_one_of_a_changed_configuration_is_stale(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(ws, "grad_loss", constant(3.0))
    stages.champion(ws, P)
    (row,) = rows(ws)["grad_loss"]
    assert row["status"] == f"champion, {STALE}", "these models are no results of the configuration"
    assert "the configuration changed" in row["note"]
    configure(tmp_path, monkeypatch)
    (tmp_path / "conf" / P / "grad_loss.yaml").unlink()
    (row,) = rows(ws)["grad_loss"]
    assert "conf/rt_dose/grad_loss.yaml is gone" in row["note"]


def test_a_run_stays_a_row_when_the_experiment_is_trained_again(ws: Workspace) -> None:
    first = rows(ws)["baseline"][0]["checkpoint"]
    stages.record_experiment(ws, P, "baseline")
    second = model(ws, "baseline", constant(4.0), trained_at="2026-02-02T00:00:00+00:00")
    stages.record_experiment(ws, P, "baseline")
    newest, oldest = rows(ws)["baseline"]
    assert (newest["checkpoint"], oldest["checkpoint"]) == (second, first)
    assert oldest["status"] == "earlier checkpoint"
    assert newest["notebook"].endswith("baseline/2026-02-02_baseline.ipynb")
    assert "/earlier/" in oldest["notebook"], "its notebook and figures moved aside, and are still there"
    assert (ws.home / oldest["notebook"]).is_file()
    assert (ws.home / oldest["notebook"]).with_name("figures").is_dir()


def test_no_place_and_no_key_is_among_the_variables_of_a_command(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RT_DOSE_SITE", "head_neck"), ("RT_DOSE_LANDING", "bucket"), ("LUNG_CT_TARGET", "lung")):
        monkeypatch.setenv(f"MED_ASSETS_{name}", value)
    found = runs.variables(Workspace.from_env(), P)
    assert found == {"MED_ASSETS_PROFILE": "demo", "MED_ASSETS_PURPOSE": "demo", "MED_ASSETS_RT_DOSE_SITE": "head_neck"}


def test_a_notebook_has_all_sections_was_executed_and_names_no_path_of_the_machine(ws: Workspace) -> None:
    result = stages.record_experiment(ws, P, "baseline")
    path = ws.home / result.summary["notebook"]
    assert path.name == "2026-01-02_baseline.ipynb"
    found, text = notebook(path), text_of(path)
    assert all(f"## {section}\n" in text for section in SECTIONS)
    code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    assert str(ws.home) not in path.read_text()
    assert "openkbp_dose_score against the baseline mean_dose: +0." in text
    assert "It is worse beyond doubt than the baseline mean_dose" in text
    assert "The gate's verdict is: refused, regressed." in text
    assert "4.0" in str(code[3]["outputs"]), "the history is read from the lake"
    assert re.search(r"mae of body +\| at most 3 +\| +\| not measured", text)
    assert re.search(r"time of training +\| at most 4 h +\| 0.000417 +\| reached", text)
    assert "It reaches 1 of the 1 targets that could be measured." in text
    for name in ("training_curves.png", "training_curves.pdf"):
        assert f"figures/{name}" in text
        assert (path.parent / "figures" / name).is_file()

    # What did not change is neither plotted nor executed again.
    before = {one: one.read_bytes() for one in path.parent.rglob("*") if one.is_file()}
    again = stages.record_experiment(ws, P, "baseline")
    assert (again.counts, again.data_version) == ({"executed": 0, "plotted": 0}, result.data_version)
    assert {one: one.read_bytes() for one in before} == before
    model(ws, "grad_loss", constant(3.0, step=0.02))
    stages.champion(ws, P)
    later = stages.record_experiment(ws, P, "baseline")
    assert later.counts == {"executed": 1, "plotted": 0}, "there is a champion now, and the figures are as they were"
    assert "worse beyond doubt than the champion grad_loss" in text_of(path)
    ws.lake.remove("evaluation", f"{P}/baseline")
    with pytest.raises(ConfigurationError, match="med-assets evaluate rt_dose/baseline"):
        stages.record_experiment(ws, P, "baseline")


def test_a_notebook_that_fails_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    with pytest.raises(MedAssetsError, match=r"n\.ipynb: a cell failed with ZeroDivisionError"):
        write_notebook(path, [Cell("1 / 0", code=True)])
    with pytest.raises(MedAssetsError, match="without paths of this machine"):
        write_notebook(path, [Cell("import os; os.getcwd()", code=True)], private=[str(tmp_path)])
    assert not path.exists()
    write_notebook(path, [Cell("'os' in dir()", code=True)])
    assert "False" in path.read_text(), "no notebook sees what another left"


def stamps(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Time of change (ns) and inode of every file under the folders."""
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def test_report_and_run_statuses_write_nothing_to_lake_or_store(ws: Workspace) -> None:
    for name in VAL:
        with ws.store.create("raw/" + digest(name)) as folder:
            (folder / "case.txt").write_text(name)
    before = stamps(ws.lake.root, ws.home / "store")
    statuses = run_statuses(ws, P)
    assert {one.run.experiment for one in statuses if one.run is not None} == {"baseline", "mean_dose"}
    stages.report(ws, P)
    assert ">Targets<" in (ws.reports / P / "report.html").read_text()
    assert stamps(ws.lake.root, ws.home / "store") == before
    stages.index(ws, P)
    after = stamps(ws.lake.root, ws.home / "store")
    changed = {path for path, stamp in after.items() if before.get(path) != stamp}
    assert {path.relative_to(ws.lake.root).parts[0] for path in changed} == {ExperimentEntry.TABLE}
