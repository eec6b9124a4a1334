"""An evaluation of which not one case can be scored ends with an error, and one failure beside scores does not."""

import pytest

from med_assets.errors import MedAssetsError, ScoringFailed
from med_assets.evaluation.scoring import demand_scores


def test_no_score_at_all_is_an_error_that_names_the_first_failure() -> None:
    with pytest.raises(ScoringFailed, match=r"scores of 2 cases.*the first, a1: ValueError") as caught:
        demand_scores([], {"b2": "KeyError", "a1": "ValueError"}, "rt_dose")
    assert isinstance(caught.value, MedAssetsError)  # the command line exits with 1 for it


def test_some_scores_or_no_failure_pass() -> None:
    demand_scores([{"case_id": "a1"}], {"b2": "KeyError"}, "rt_dose")
    demand_scores([], {}, "rt_dose")
