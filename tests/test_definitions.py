"""The composition root: what is in the graph, and what loading it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import definitions
from assets import keys
from med_assets import program
from med_assets.capabilities import Screens
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analysis
from med_assets.experiments import configuration as experiments
from med_assets.experiments import policies

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = Path(__file__).with_name("graph_snapshot.json")
HEAVY = (
    "torch", "monai", "great_expectations", "lightning", "pymedphys", "matplotlib", "nbformat", "nbclient", "pandas", "scipy",
    "numpy", "pydicom", "pyarrow", "duckdb", "skimage", "sklearn", "highdicom", "nibabel", "PIL", "boto3", "transformers",
)  # fmt: skip
"""Libraries that no process needs that only loads the definitions."""

COMPOSING = ("hydra", "omegaconf")
"""Those that it needs where the cache lacks an experiment."""

FEW = ("lumbar_mr", "lung_ct")
"""Programs with few experiments: composing those of all takes six seconds."""


def clean_environment() -> dict[str, str]:
    left = {name: text for name, text in os.environ.items() if not name.startswith(("MED_ASSETS_", "DAGSTER_"))}
    return left | {"MED_ASSETS_CACHE": os.environ["MED_ASSETS_CACHE"]}


def graph() -> dict[str, Any]:
    """What must not change unnoticed: keys, inputs, gates, partitions, groups, kinds, pools, tags, schedules."""
    found: dict[str, Any] = {"assets": {}, "sensors": {}, "schedules": {}}
    for asset in definitions.graph:
        for spec in asset.specs:
            found["assets"][spec.key.to_user_string()] = {
                "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
                "gates": sorted(check.name for check in asset.check_specs if check.blocking),
                "partitions": getattr(spec.partitions_def, "name", None),
                "group": spec.group_name,
                "kinds": sorted(spec.kinds),
                "tags": {name: text for name, text in sorted(spec.tags.items()) if not name.startswith("dagster/kind")},
                "owners": list(spec.owners),
                "pool": asset.op.pool,
            }
    for sensor in definitions.defs.sensors or ():
        assert isinstance(sensor, dg.SensorDefinition)
        found["sensors"][sensor.name] = [sensor.default_status.value, [target.job_name for target in sensor.targets]]
    resolved = definitions.defs.get_repository_def()
    found["jobs"] = {
        name: sorted(key.to_user_string() for key in resolved.get_job(name).asset_layer.executable_asset_keys)
        for name in sorted(resolved.job_names)
        if not name.startswith("__")
    }
    for schedule in definitions.defs.schedules or ():
        assert isinstance(schedule, dg.ScheduleDefinition)
        found["schedules"][schedule.name] = [schedule.cron_schedule, schedule.default_status.value, schedule.job_name]
    return found


def code_versions() -> dict[str, str | None]:
    """Code versions by asset; they hold the hashes of the experiments."""
    return {spec.key.to_user_string(): spec.code_version for asset in definitions.graph for spec in asset.specs}


def test_the_graph_is_the_recorded_one() -> None:
    """To accept a change on purpose: `python -m tests.test_definitions`, and look at the difference."""
    assert graph() == json.loads(SNAPSHOT.read_text())


@pytest.mark.parametrize("name", program.registered())
def test_every_program_has_every_stage_of_the_design(name: str) -> None:
    found = {spec.key for asset in definitions.graph for spec in asset.specs}
    wanted = {keys.key(name, stage) for stage in keys.PER_PROGRAM}
    wanted |= {
        keys.experiment_key(name, each, stage) for each in experiments.names(name) for stage in keys.PER_EXPERIMENT
    }
    assert wanted <= found


@pytest.mark.parametrize("name", program.registered())
def test_a_program_has_a_list_by_risk_if_it_looks_for_unusual_cases(name: str) -> None:
    found = {spec.key for asset in definitions.graph for spec in asset.specs}
    assert (keys.key(name, keys.SCREENING) in found) == isinstance(program.get(name), Screens)


@pytest.mark.parametrize("name", program.registered())
def test_only_what_trains_or_is_expensive_waits_for_a_decision_and_for_the_accelerator(name: str) -> None:
    expensive = {keys.key(name, one.name) for one in analysis.of(name).values() if one.expensive}
    for asset in definitions.graph:
        if asset.key.path[0] != name:
            continue
        stage = asset.key.path[1]
        decided = stage in {"checkpoint", "learning_curve"} or asset.key in expensive
        predicts = stage in {"evaluation", "monitoring", "predictions", "screening"}
        assert (asset.op.pool == keys.POOL) == (decided or predicts), asset.key
        follows = any(keys.FOLLOWS_TAG in spec.tags for spec in asset.specs)
        waits = stage in {"raw_cases", "monitoring", "predictions"} or decided
        assert follows == (not waits), asset.key


@pytest.mark.parametrize("name", program.registered())
def test_a_program_has_the_learning_curve_that_it_asks_for_and_all_its_analyses(name: str) -> None:
    found = {spec.key for asset in definitions.graph for spec in asset.specs}
    assert (keys.key(name, keys.LEARNING_CURVE) in found) == (policies.of(name).learning_curve is not None)
    assert {keys.key(name, one) for one in analysis.of(name)} <= found


@pytest.mark.parametrize("name", program.registered())
def test_the_demo_of_every_program_trains_experiments_that_there_are(name: str) -> None:
    cohort = policies.of(name).demo
    assert cohort is not None
    assert set(cohort.experiments) <= set(experiments.names(name))


def test_every_asset_says_what_it_is_whose_it_is_and_which_code_makes_it() -> None:
    for asset in definitions.graph:
        for spec in asset.specs:
            assert spec.description, spec.key
            assert spec.owners, spec.key
            assert spec.kinds, spec.key
            assert spec.code_version, spec.key


def test_loading_them_with_a_warm_cache_imports_no_heavy_library_and_gives_the_same(tmp_path: Path) -> None:
    """Cold are the programs of the fewest experiments; those of all are composed where this process, or one before it, loaded them first."""
    code = (
        "import json, sys, definitions; "
        f"print(json.dumps(sorted({{*{HEAVY!r}, *{COMPOSING!r}}} & set(sys.modules)))); "
        "from tests.test_definitions import graph, code_versions; print(json.dumps([graph(), code_versions()]))"
    )

    def load(**more: str) -> tuple[list[str], dict[str, Any], dict[str, str | None]]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT, env=clean_environment() | more, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        imported, found = (json.loads(line) for line in done.stdout.splitlines())
        return imported, *found

    imported, whole, versions = load()
    assert imported == []
    assert (whole, versions) == (graph(), code_versions())
    imported, some, versions = load(**{program.PROGRAMS_VARIABLE: ",".join(FEW), "MED_ASSETS_CACHE": str(tmp_path)})
    assert imported == sorted(COMPOSING)
    assert set(some["assets"]) == {key for key in whole["assets"] if key.startswith(tuple(f"{name}/" for name in FEW))}
    assert some["assets"] == {key: whole["assets"][key] for key in some["assets"]}
    assert versions == {key: code_versions()[key] for key in some["assets"]}


def test_the_composition_root_stays_short() -> None:
    assert len((ROOT / "definitions.py").read_text().splitlines()) < 60


@pytest.mark.slow
def test_dagster_finds_the_definitions_through_the_workspace_file(tmp_path: Path) -> None:
    env = clean_environment() | {
        "DAGSTER_HOME": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_site_may_use_some_programs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(program.PROGRAMS_VARIABLE, "rt_dose, lung_ct")
    assert program.registered() == ("lung_ct", "rt_dose")
    monkeypatch.setenv(program.PROGRAMS_VARIABLE, "rt_dose,dental_ct")
    with pytest.raises(ConfigurationError, match=r"expected programs among .*'rt_dose'.* got \['dental_ct'\]"):
        program.registered()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(graph(), indent=1, sort_keys=True) + "\n")
