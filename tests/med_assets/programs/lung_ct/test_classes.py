"""How the labels of a case become what an experiment trains."""

from pathlib import Path

import numpy as np
import pytest

from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct.classes import check_mapping, relabelling
from med_assets.programs.lung_ct.experiment import Labels
from med_assets.programs.lung_ct.prepared import PreparedCase
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared

VALUES = np.array([0, 23, 28, 115, 255], np.uint8)


def mapping(*pairs: tuple[int, int]) -> Labels:
    return Labels(mode="mapping", mapping=pairs)


@pytest.mark.parametrize(
    ("settings", "classes", "values"),
    [
        (Labels(mode="target"), (23,), [0, 23, 0, 0, 255]),
        (Labels(mode="auto"), (23, 28, 30, 42, 115), [0, 23, 28, 115, 255]),
        (mapping((5, 23)), (23,), [0, 23, 0, 0, 255]),
        # The heart is the third segment of the source: a wrong mapping is trained as given, and told by its scores.
        (mapping((3, 23)), (23,), [0, 0, 0, 23, 255]),
        (mapping((3, 23), (5, 115)), (23, 115), [0, 115, 0, 23, 255]),
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
    ("pair", "said"),
    [
        ((5, 255), "below 255"),
        ((5, 300), "below 255"),
        ((5, 16), "which none was trained on"),
        ((5, 20), r"which stands for"),
        ((9, 23), r"got 9, which no case has; they have \[1, 2, 3, 4, 5\]"),
    ],
)
def test_a_mapping_that_can_not_be_meant_is_refused(case: PreparedCase, pair: tuple[int, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_mapping([case], mapping(pair))


def test_a_mapping_of_labels_that_were_not_kept_is_refused(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "c", changes={"source_values": {"1": None, "2": 23}}))
    with pytest.raises(ConfigurationError, match="source value 1, whose name is of no class"):
        relabelling(case, mapping((1, 23)))
