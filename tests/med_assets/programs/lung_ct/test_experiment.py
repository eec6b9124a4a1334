"""The configuration of lung_ct."""

import pytest

from med_assets.errors import ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.experiments.configuration import MemoryPlan
from med_assets.programs.lung_ct.experiment import LungExperiment


def loaded(name: str, *overrides: str, profile: str = "full") -> LungExperiment:
    found = experiments.load("lung_ct", name, overrides, profile=profile)
    assert isinstance(found, LungExperiment)
    return found


@pytest.mark.parametrize("profile", ["full", "small", "demo"])
@pytest.mark.parametrize("name", experiments.names("lung_ct"))
def test_each_experiment_begins_where_its_profile_says(name: str, profile: str) -> None:
    found = loaded(name, profile=profile)
    begins = {
        "foundation": "released/vista3d132" if profile == "full" else "random",
        "from_scratch": "random",
        "ensemble": "random",
    }
    assert found.initial == begins.get(name, "foundation")
    assert found.schedule.validate_first == (found.initial != "random")
    assert found.network.kind == ("vista3d132" if profile == "full" else "small")


def test_the_full_profile_is_the_recipe_of_the_reference_numbers() -> None:
    found = loaded("task06_sanity")
    assert (found.labels.mode, found.labels.mapping) == ("mapping", ((1, 23),))
    assert (found.optimiser.lr, found.optimiser.min_lr, found.optimiser.weight_decay) == (5e-5, 5e-5, 0.01)
    assert (found.schedule.epochs, found.schedule.batch, found.precision, found.seed) == (5, 1, "16-mixed", 0)
    assert found.patches.size == (128, 128, 128)
    assert found.prompts.drop_points == 1.0
    assert (found.inference.overlap, found.inference.mode) == (0.25, "constant")
    assert loaded("target_anatomy").schedule.epochs == 50
    assert loaded("foundation").schedule.epochs == 0


def test_a_memory_plan_has_another_patch_and_the_probe_a_small_one() -> None:
    found = loaded("target_anatomy")
    assert [found.at(plan).patch() for plan in found.schedule.fallbacks][-1] == [64, 64, 64]
    assert found.at(MemoryPlan(batch=1)).patch() == [128, 128, 128]
    assert found.probe().patch() == [32, 32, 32]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("patches.size=[128,128,120]", r"patches\.size must be multiples of 16"),
        ("inference.window=[100,128,128]", r"inference\.window must be multiples of 16"),
        ("schedule.fallbacks=[{batch:1,patch:[72,72,72]}]", r"schedule\.fallbacks: patch must be multiples of 16"),
        ("labels.mode=mapping", r"e\.g\. mapping=\[\[1,23\]\]"),
        ("labels.mapping=[[1,23]]", r"labels\.mapping is for labels\.mode=mapping"),
        ("labels={mode:mapping,mapping:[[1,23],[1,24]]}", "each source value can be mapped once"),
        ("prompts.drop_labels=0.5", "the class prompts can't be dropped"),
    ],
)
def test_what_can_not_be_trained_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        loaded("target_anatomy", override)


def test_windows_at_a_time_are_no_part_of_the_result() -> None:
    assert loaded("auto_seg").hash() == loaded("auto_seg", "inference.batch=4").hash()
    assert loaded("auto_seg").hash() != loaded("auto_seg", "inference.overlap=0.5").hash()
