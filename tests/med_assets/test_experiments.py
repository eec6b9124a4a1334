"""From conf/ to a validated, frozen experiment and its hash."""

import json
import re
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from med_assets.errors import ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.experiments.configuration import Experiment
from med_assets.storage.conf import CONF_VARIABLE, conf_folder

NAMES = experiments.names("rt_dose")


def test_files_that_start_with_an_underscore_are_no_experiments() -> None:
    assert NAMES == (
        "adversarial", "attention_unet", "baseline", "cascade", "combined", "ddpm", "deeper_unet", "dvh_aware", "ensemble", "flow", "flow_bounded", "grad_loss",
        "grad_vgg", "mean_dose", "residual", "residual_beams", "residual_beams_dvh", "structure_weighted", "swin_unetr",
    )  # fmt: skip


@pytest.mark.parametrize("profile", [None, "full", "small", "demo"])
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_loads_in_every_profile(name: str, profile: str | None) -> None:
    found = experiments.load("rt_dose", name, profile=profile)
    assert (found.name, found.profile) == (name, profile or "full")


def test_experiments_differ_in_their_hashes() -> None:
    assert len({experiments.load("rt_dose", name).hash() for name in NAMES}) == len(NAMES)


def test_the_full_profile_leaves_an_experiment_as_it_is() -> None:
    assert experiments.load("rt_dose", "baseline") == experiments.load("rt_dose", "baseline", profile="full")


def test_the_demo_wins_over_the_experiment_and_an_override_over_the_demo() -> None:
    found = experiments.load("rt_dose", "baseline", ["schedule.batch=3"], profile="demo")
    assert found.model_dump()["network"]["base_channels"] == 8
    assert found.schedule.batch == 3


def test_an_override_may_choose_the_site() -> None:
    assert experiments.load("rt_dose", "baseline", ["site=head_neck"]).model_dump()["site"]["name"] == "head_neck"


def test_a_result_changes_the_hash_and_a_title_or_the_machine_does_not() -> None:
    base = experiments.load("rt_dose", "baseline").hash()
    assert experiments.load("rt_dose", "baseline", ["optimiser.lr=2e-4"]).hash() != base
    assert experiments.load("rt_dose", "baseline", ["site=head_neck"]).hash() != base
    for override in (
        "runtime.workers=0",
        "runtime.accelerator=cpu",
        "title=Other",
        "site.title=Other",
        "launch.gpus=2",
    ):
        assert experiments.load("rt_dose", "baseline", [override]).hash() == base


def test_a_field_that_came_later_leaves_the_hash_of_an_experiment_that_does_not_use_it() -> None:
    found = experiments.load("rt_dose", "baseline")
    hashed = experiments.result_fields(found)
    assert not {"diffusion", "adversary"} & hashed.keys()
    assert hashed["network"].keys() == {"kind", "base_channels", "template_mm"}
    deeper = experiments.load("rt_dose", "baseline", ["network.levels=5"])
    assert experiments.result_fields(deeper)["network"]["levels"] == 5
    assert deeper.hash() != found.hash()
    old = json.loads(found.to_json())
    del old["diffusion"], old["adversary"], old["network"]["levels"], old["losses"]["perceptual"]
    assert experiments.from_json("rt_dose", json.dumps(old)) == found


def test_json_and_back_is_the_same_experiment() -> None:
    found = experiments.load("rt_dose", "dvh_aware")
    again = experiments.from_json("rt_dose", found.to_json())
    assert again == found
    assert again.hash() == found.hash()


def test_an_experiment_that_was_written_before_it_had_a_launch_section_is_still_read() -> None:
    found = experiments.load("rt_dose", "baseline")
    old = json.loads(found.to_json())
    del old["launch"]
    assert experiments.from_json("rt_dose", json.dumps(old)) == found


def test_an_experiment_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        experiments.load("rt_dose", "baseline").seed = 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["no_such_key=1"], "no_such_key"),
        (["+no_such_key=1"], "Extra inputs are not permitted"),
        (["optimiser.lr=-1"], "optimiser.lr"),
        (["patches.size=[3,16,16]"], "multiples of 16"),
        (["losses.mse=0"], "mse or structure must be above 0"),
        (["site=elbow"], "elbow"),
        (["launch.launcher=cloud"], "launch.launcher"),
        (["launch.time_min=5"], "time_min (5 min) must be longer than stop_before_limit_s (300 s)"),
        (["launch.options=['--array=1-4']"], "--array=1-4 is set by the launcher itself"),
        (["launch.options=[-A imaging]"], "expected an option of sbatch in one word"),
    ],
)
def test_what_can_not_be_used_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        experiments.load("rt_dose", "baseline", overrides)


def test_an_unknown_experiment_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="known: adversarial, attention_unet"):
        experiments.load("rt_dose", "basline")


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="profiles/huge"):
        experiments.load("rt_dose", "baseline", profile="huge")


def test_the_environment_may_name_another_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rt_dose").mkdir()
    (tmp_path / "rt_dose" / "mine.yaml").write_text("a: 1\n")
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path))
    assert experiments.names("rt_dose") == ("mine",)


def test_a_file_that_changed_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    shutil.copytree(conf_folder("rt_dose"), tmp_path / "rt_dose")
    before = experiments.load("rt_dose", "baseline", conf_root=tmp_path)
    assert experiments.load("rt_dose", "baseline", conf_root=tmp_path) == before
    path = tmp_path / "rt_dose" / "_base.yaml"
    path.write_text(path.read_text().replace("seed: 42", "seed: 43"))
    assert experiments.load("rt_dose", "baseline", conf_root=tmp_path).seed == 43


def test_every_field_says_what_it_is() -> None:
    missing = []
    waiting: list[type] = [experiments.model_of("rt_dose")]
    while waiting:
        model = waiting.pop()
        assert issubclass(model, experiments.BaseModel)
        for name, info in model.model_fields.items():
            if not info.description:
                missing.append(f"{model.__name__}.{name}")
            if isinstance(info.annotation, type) and issubclass(info.annotation, experiments.BaseModel):
                waiting.append(info.annotation)
    assert missing == []
    assert issubclass(experiments.model_of("rt_dose"), Experiment)
