"""What the foundation model has seen of MSD Task06, and the seed's own split of it."""

from collections import Counter

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.programs.lung_ct import exposure

KEY = b"a-key-that-only-the-tests-know"
SEED_VALIDATION = ["015", "020", "022", "046", "048", "062", "064", "071", "073", "079", "086", "092", "096"]


def test_the_lists_are_the_63_cases_each_once() -> None:
    every = [*exposure.TRAINED, *exposure.SELECTED, *exposure.TESTED]
    assert (len(exposure.TRAINED), len(exposure.SELECTED), len(exposure.TESTED)) == (40, 10, 13)
    assert len(set(every)) == 63


def test_the_seed_s_split_has_its_13_validation_cases_of_which_2_are_unseen() -> None:
    folds = exposure.task06_folds()
    assert Counter(folds.values()) == {0: 13, 1: 13, 2: 13, 3: 12, 4: 12}
    validation = sorted(case for case, fold in folds.items() if fold == 0)
    assert validation == [f"lung_{number}" for number in SEED_VALIDATION]
    pseudonym = Deidentifier(KEY).pseudonym
    seen = {case: exposure.exposure(KEY, pseudonym(exposure.patient_id(case))) for case in validation}
    assert Counter(seen.values()) == {"trained": 6, "selected": 5, "unseen": 2}
    assert {case for case, what in seen.items() if what == "unseen"} == {"lung_062", "lung_064"}


def test_splits_and_exposure_are_by_pseudonym_of_the_workspace_s_key() -> None:
    pseudonym = Deidentifier(KEY).pseudonym("MSD-Task06_Lung-lung_015")
    assert exposure.exposure(KEY, pseudonym) == "selected"
    assert exposure.exposure(b"another key than the first", pseudonym) == "unseen"
    assert exposure.task06_splits(KEY)[pseudonym] == ("val", 0)
    assert exposure.exposure(KEY, "MSD-Task06_Lung-lung_015") == "unseen"
