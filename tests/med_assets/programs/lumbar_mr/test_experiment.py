"""The configuration of lumbar_mr."""

import pytest

from med_assets.errors import ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.programs.lumbar_mr.experiment import LumbarExperiment


def loaded(name: str, *overrides: str, profile: str = "full") -> LumbarExperiment:
    found = experiments.load("lumbar_mr", name, overrides, profile=profile)
    assert isinstance(found, LumbarExperiment)
    return found


@pytest.mark.parametrize("profile", ["full", "small", "demo"])
def test_each_experiment_keeps_its_method_in_each_profile(profile: str) -> None:
    kinds = {name: loaded(name, profile=profile).network.kind for name in experiments.names("lumbar_mr")}
    trained = "resnet50d" if profile == "full" else "small"
    assert kinds == {
        "mean_position": "mean_position", "middle_slice": trained, "point_net": trained, "point_net_sequence": trained,
        "zero_shot": "resnet50d",
    }  # fmt: skip
    blind = loaded("middle_slice", profile=profile).slices
    assert (blind.combine, blind.middle) == (1, "series")
    assert loaded("point_net", profile=profile).slices.combine > 1
    assert loaded("point_net", profile=profile).inference.decoding == "peaks"
    sequence = loaded("point_net_sequence", profile=profile)
    assert (sequence.inference.decoding, sequence.initial, sequence.schedule.epochs) == ("sequence", "point_net", 0)


def test_the_full_network_is_the_released_one_and_can_start_from_it() -> None:
    found = loaded("point_net", "initial=released/point_net")
    assert found.network.decoder == (256, 128, 64, 32, 16)
    assert (found.target.radius_px, found.loss.level_weight) == (7, 1)


@pytest.mark.parametrize(
    "override",
    [
        "augment.rotate_deg=120",
        "target.radius_px=0",
        "slices.combine=0",
        "inference.found_above=1",
        "inference.decoding=mean",
        "inference.gap_sd_mm=0",
        "network.widths=[8,8]",
    ],
)
def test_what_can_not_be_meant_is_refused(override: str) -> None:
    with pytest.raises(ConfigurationError, match=override.split("=")[0]):
        loaded("point_net", override)


def test_slices_at_a_time_are_no_part_of_the_result_and_how_a_case_is_predicted_is() -> None:
    assert loaded("point_net").hash() == loaded("point_net", "inference.batch=2").hash()
    assert loaded("point_net").hash() != loaded("point_net", "slices.combine=3").hash()
    assert "5 slices within 8 mm of the model's own middle" in loaded("point_net").text()
    assert "middle slice of the series" in loaded("middle_slice").text()
    assert "strongest connected peak" in loaded("point_net").text()
    assert "36 mm apart (SD 6 mm)" in loaded("point_net_sequence").text()
