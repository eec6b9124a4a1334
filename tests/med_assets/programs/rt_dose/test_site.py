"""Sites: the tables under conf/rt_dose/sites and what they refuse."""

import pytest
from pydantic import ValidationError

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.programs.rt_dose.expectations import expectations
from med_assets.programs.rt_dose.site import CONSTRAINT_COUNT, Site, load_site, site_names


@pytest.mark.parametrize("name", site_names())
def test_every_site_loads_and_is_named_after_its_file(name: str) -> None:
    assert load_site(name).name == name


@pytest.mark.parametrize("name", site_names())
def test_the_constraints_of_every_site_are_its_limits_and_experiments_are_composed_with_it(name: str) -> None:
    site = load_site(name)
    found = site.constraints(site.structures, site.targets[site.main_target])
    assert len(found) == CONSTRAINT_COUNT
    assert max(found) <= 1.3, "all are of order one"
    assert load("rt_dose", "baseline", [f"site={name}"], profile="demo").site == site


@pytest.mark.parametrize(
    ("name", "structure", "metric", "value", "unit"),
    [
        ("prostate_60", "Rectum", "V95%Rx", 15.0, "%"),
        ("prostate_60", "Bowel", "V68%Rx", 17.0, "cc"),
        ("lung_sbrt", "SpinalCord", "D0.035cc", 26.0, "Gy"),
        ("lung_sbrt", "Trachea", "D4cc", 15.6, "Gy"),
        ("breast", "Lung_Ipsi", "V8", 15.0, "%"),
        ("breast", "Heart", "V7", 5.0, "%"),
    ],
)
def test_a_template_has_the_limit_of_its_published_source(
    name: str, structure: str, metric: str, value: float, unit: str
) -> None:
    (limit,) = [one for one in load_site(name).limits if (one.structure, one.metric) == (structure, metric)]
    assert (limit.bound, limit.value, limit.unit) == ("max", value, unit)


def test_a_stereotactic_plan_may_be_hotter_than_others() -> None:
    bounds = {
        name: next(one.kwargs for one in expectations(load_site(name)) if one.column == "dose_max_ratio")
        for name in ("prostate_sib", "lung_sbrt")
    }
    assert bounds["prostate_sib"] != bounds["lung_sbrt"]
    assert load_site("lung_sbrt").dose_max_ratio[1] >= 1 / 0.6, "60 % is the lowest prescription isodose of RTOG 0915"


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
    with pytest.raises(ConfigurationError, match="breast, head_neck, lung_sbrt, prostate_60, prostate_sib"):
        load_site("elbow")


def test_a_limit_for_a_structure_that_the_site_has_not_is_refused() -> None:
    content = load_site("prostate_sib").model_dump()
    content["dvh_means"] = ("Larynx",)
    with pytest.raises(ValidationError, match="dvh_means names \\['Larynx'\\]"):
        Site.model_validate(content)
