"""Sites: the tables under conf/rt_dose/sites and what they refuse."""

import pytest
from pydantic import ValidationError

from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose.site import Site, load_site, site_names


@pytest.mark.parametrize("name", site_names())
def test_every_site_loads_and_is_named_after_its_file(name: str) -> None:
    assert load_site(name).name == name


def test_the_prostate_network_sees_nine_channels_in_the_published_order() -> None:
    site = load_site("prostate_sib")
    assert site.channels == 9
    assert site.structures == ("PTV70", "PTV56", "Prostate", "Rectum", "Bladder", "Femur_L", "Femur_R", "Bowel")


def test_constraints_are_scaled_and_zero_for_an_absent_target() -> None:
    found = load_site("prostate_sib").constraints(["PTV70", "PTV56"], 70.0)
    assert found[:3] == [1.0, 0.8, 0.0]
    assert found[3:] == pytest.approx([0.5, 0.35, 0.2, 75 / 70, 0.5, 0.35, 0.25, 0.1, 195 / 500, 45 / 70])


def test_mirroring_swaps_left_and_right_only() -> None:
    site = load_site("prostate_sib")
    swapped = [site.structures[index] for index in site.mirrored()]
    assert swapped == ["PTV70", "PTV56", "Prostate", "Rectum", "Bladder", "Femur_R", "Femur_L", "Bowel"]


def test_an_unknown_site_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="head_neck, prostate_sib"):
        load_site("elbow")


def test_a_limit_for_a_structure_that_the_site_has_not_is_refused() -> None:
    content = load_site("prostate_sib").model_dump()
    content["dvh_means"] = ("Larynx",)
    with pytest.raises(ValidationError, match="dvh_means names \\['Larynx'\\]"):
        Site.model_validate(content)
