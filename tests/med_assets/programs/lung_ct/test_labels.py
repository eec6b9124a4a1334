"""The dictionary of anatomy: names, synonyms, superclasses, and what may be mapped to."""

import pytest

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct import labels


def test_the_table_has_the_124_names_and_the_8_ids_without_one() -> None:
    found = labels.table()
    assert len(found.classes) == 124
    assert set(range(1, 133)) - set(found.classes.values()) == {2, 16, 18, 20, 21, 129, 130, 131}
    assert labels.name_of(23) == "lung tumor"
    assert labels.name_of(132) == "airway"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("lung tumor", 23),
        ("Lung_Tumour", 23),
        ("cancer", 23),
        ("GTV-1", 23),
        ("kidney_right", 5),
        ("lung_upper_lobe_left", 28),
        ("rib_left_1", 63),
        ("vertebrae_L5", 33),
        ("urinary_bladder", 15),
        ("lung", None),
        ("Ignore", labels.UNLABELLED),
        ("couch", None),
    ],
)
def test_segment_names_find_their_class(name: str, number: int | None) -> None:
    assert labels.class_of(name) == number


def test_an_unknown_target_lists_its_nearest_candidates() -> None:
    with pytest.raises(ConfigurationError, match="got 'hart'; nearest: 'heart'"):
        labels.resolve("hart")


@pytest.mark.parametrize("name", ["kidney", "lung", "gluteus", "rib 1"])
def test_a_name_of_several_classes_is_ambiguous_and_lists_them(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ambiguous: expected one class, it may be '(left|right)"):
        labels.resolve(name)


def test_superclasses_are_expanded_and_all_else_is_itself() -> None:
    assert labels.subclasses(2) == (5, 14)
    assert labels.subclasses(20) == (28, 29, 30, 31, 32)
    assert len(labels.subclasses(21)) == 62
    assert labels.subclasses(23) == (23,)


def test_everything_leaves_out_tumours_superclasses_and_what_no_network_knows() -> None:
    asked = labels.everything()
    assert len(asked) == 132 - 15
    assert {23, 57, 1} & set(asked) == {57, 1}


@pytest.mark.parametrize(
    ("number", "why"),
    [(255, "below 255"), (300, "below 255"), (20, "map to one of them"), (16, "none was trained"), (0, "no name")],
)
def test_no_label_is_mapped_to_what_is_no_class(number: int, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        labels.check_target(number)


@pytest.mark.parametrize("number", [133, 254])
def test_ids_above_those_of_the_foundation_are_free_to_be_mapped_to(number: int) -> None:
    assert labels.check_target(number) == number


def test_every_class_can_be_mapped_to_and_resolved_by_its_name() -> None:
    for name, number in labels.table().classes.items():
        assert labels.check_target(labels.resolve(name)) == number


def test_names_of_anatomy_pass_deidentification_in_the_order_of_other_tools_too() -> None:
    keeps = Deidentifier(b"any key", labels.vocabulary()).structure
    for name in (
        "Lung Tumor",
        "GTV-1",
        "kidney_right",
        "lung_upper_lobe_left",
        "rib_left_1",
        "lung_left",
        "vertebrae_C1",
    ):
        assert keeps(name), name
    assert not keeps("tumor of Jane Doe")
