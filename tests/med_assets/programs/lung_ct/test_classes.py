"""How the labels of a case become what an experiment trains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct.classes import check_mapping, relabelling
from med_assets.programs.lung_ct.experiment import Labels
from med_assets.programs.lung_ct.prepared import PreparedCase
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared

VALUES = np.array([0, 5, 1, 3, 6], np.int16)
"""Positions of background, tumour, left lung, heart and what is not labelled in the combinations of the case."""


def mapping(*pairs: tuple[int | str, int | str]) -> Labels:
    return Labels(mode="mapping", mapping=pairs)


@pytest.mark.parametrize(
    ("settings", "classes", "values"),
    [
        (Labels(mode="target"), (23,), [0, 23, 0, 0, 255]),
        (Labels(mode="auto"), (23, 28, 30, 42, 115), [0, 23, 28, 115, 255]),
        (mapping((12, 23)), (23,), [0, 23, 0, 0, 255]),
        (mapping((7, 23)), (23,), [0, 0, 0, 23, 255]),
        (mapping((7, 23), (12, 115)), (23, 115), [0, 115, 0, 23, 255]),
        (mapping(("heart", 23)), (23,), [0, 0, 0, 23, 255]),
        (mapping(("GTV", "lung tumor")), (23,), [0, 23, 0, 0, 255]),
        (mapping(("SCT:80891009", 133), (2, 254)), (133, 254), [0, 0, 254, 133, 255]),
    ],
)
def test_labels_count_as_the_mode_says(
    case: PreparedCase, settings: Labels, classes: tuple[int, ...], values: list[int]
) -> None:
    found = relabelling(case, settings)
    assert found.classes == classes
    assert found(VALUES).tolist() == values


def test_a_case_without_the_target_is_asked_for_it_all_the_same(tmp_path: Path) -> None:
    healthy = PreparedCase.open(write_prepared(tmp_path / "healthy", tumours=0))
    assert 23 not in healthy.names
    assert 23 in relabelling(healthy, Labels(mode="auto")).classes


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((12, 255), "below 255"),
        ((12, 300), "below 255"),
        ((12, 16), "which none was trained on"),
        ((12, 20), r"which stands for"),
        ((12, "hart"), "nearest: 'heart'"),
        ((1, 23), r"got 1, which no case has; they have the values \[2, 4, 7, 9, 12, 255\]"),
        (("liver", 23), "got 'liver', which no case has"),
        (("SCT:1", 23), "got 'SCT:1', which no case has"),
    ],
)
def test_a_mapping_that_can_not_be_meant_is_refused(
    case: PreparedCase, pair: tuple[int | str, int | str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_mapping([case], mapping(pair))


def test_a_label_that_two_pairs_give_two_classes_is_refused(case: PreparedCase) -> None:
    with pytest.raises(ConfigurationError, match="source value 7 the classes 23 and 115"):
        relabelling(case, mapping((7, 23), ("heart", 115)))


def test_where_mapped_labels_overlap_the_target_wins_then_the_earlier_pair(case: PreparedCase) -> None:
    several = replace(case, combinations=((), (7, 12), (2, 7), (2, 12), (7,), (7, 255)))
    found = relabelling(several, mapping((7, 115), (2, 28), (12, 23)))
    assert found.table.tolist() == [0, 23, 115, 23, 115, 115]


def test_two_labels_of_one_class_are_mapped_each_on_its_own(case: PreparedCase) -> None:
    heart = next(one for one in case.labels if one.value == 7)
    two = replace(case, labels=(*case.labels, replace(heart, value=8)), combinations=((), (7,), (8,), (7, 8)))
    assert relabelling(two, mapping((7, 23), (8, 24))).table.tolist() == [0, 23, 24, 23]
    assert relabelling(two, mapping((8, 24))).table.tolist() == [0, 0, 24, 24]
    assert relabelling(two, Labels(mode="auto")).table.tolist() == [0, 115, 115, 115]


def test_a_label_whose_name_intake_does_not_know_is_mapped_by_its_value(case: PreparedCase) -> None:
    strange = replace(case.labels[0], value=40, name="UNRECOGNISED_1", class_id=None)
    other = replace(case, labels=(*case.labels, strange), combinations=((), (40,), (12, 40)))
    assert relabelling(other, mapping((40, 133))).table.tolist() == [0, 133, 133]
    assert relabelling(other, Labels(mode="auto")).table.tolist() == [0, 0, 23]
    with pytest.raises(ValueError, match="names no label"):
        mapping(("UNRECOGNISED_1", 133))


def test_what_a_mapping_misses_is_listed(case: PreparedCase, tmp_path: Path) -> None:
    healthy = PreparedCase.open(write_prepared(tmp_path / "healthy", tumours=0))
    warnings = check_mapping([case, healthy], mapping((12, 23), (7, 115), (2, 28), (9, 42)))
    left = sum(one.voxels for each in (case, healthy) for one in each.labels if one.value == 4)
    assert warnings == [
        "labels.mapping: 12 has no voxel in 1 of 2 cases: healthy",
        f"labels.mapping leaves out source value 4 (right lung upper lobe): {left} voxels in 2 of 2 cases are background",
    ]
    with pytest.raises(ConfigurationError, match="got 12, which is empty in all 1 cases"):
        check_mapping([healthy], mapping((12, 23)))


def test_a_value_that_stands_for_different_labels_in_different_cases_is_listed(case: PreparedCase) -> None:
    swapped = {7: 115, 12: 23}
    other = replace(
        case,
        case_id="other",
        labels=tuple(
            replace(one, class_id=swapped[19 - one.value], name="") if one.value in swapped else one
            for one in case.labels
        ),
    )
    warnings = check_mapping([case, other], mapping((12, 23), (2, 28), (4, 30), (7, 115), (9, 42)))
    assert warnings == [
        f"labels.mapping: source value {value} is not the same label everywhere (115 heart in 1 cases, 23 lung tumor in 1 cases); "
        "map it by name or concept"
        for value in (12, 7)
    ]
    assert check_mapping([case, other], mapping(("heart", 115), ("lung tumor", 23), (2, 28), (4, 30), (9, 42))) == []
