"""Platt scaling."""

import numpy as np
import pytest

from med_assets.metrics.platt import fit_platt


def test_the_curve_that_made_the_outcomes_is_found() -> None:
    rng = np.random.default_rng(1)
    measures = rng.uniform(-3, 3, 4000)
    won = rng.random(4000) < 1 / (1 + np.exp(-(1.5 * measures - 0.5)))
    found = fit_platt(measures.tolist(), won.tolist())
    assert found is not None
    assert (found.slope, found.intercept) == (pytest.approx(1.5, abs=0.15), pytest.approx(-0.5, abs=0.15))
    # At the maximum of the likelihood the mean probability is the share of successes, but for Platt's targets.
    assert np.mean([found.probability(one) for one in measures]) == pytest.approx(won.mean(), abs=1e-3)


def test_a_perfect_separation_has_a_finite_slope_and_probabilities_of_platt_s_targets() -> None:
    found = fit_platt([0.1] * 10 + [0.9] * 10, [False] * 10 + [True] * 10)
    assert found is not None
    assert found.probability(0.9) == pytest.approx(11 / 12, abs=1e-4)
    assert found.probability(0.1) == pytest.approx(1 / 12, abs=1e-4)


def test_a_measure_that_falls_with_success_or_is_the_same_for_all_gives_no_curve() -> None:
    assert fit_platt([0.9, 0.8, 0.2, 0.1], [False, False, True, True]) is None
    assert fit_platt([0.5] * 6, [True, False] * 3) is None
    with pytest.raises(ValueError, match="2 successes, 0 failures"):
        fit_platt([0.1, 0.2], [True, True])
