"""Power laws: exact where the data are, refused where there is none."""

import numpy as np
import pytest

from med_assets.metrics.power_law import PowerLaw, fit, means_by_size

SIZES = (3, 6, 12)


def errors(sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    """Four cases whose errors fall as n ** -0.5, from 8, 4, 2 and 6."""
    return np.array([[level * n**-0.5 for n in sizes] for level in (8.0, 4.0, 2.0, 6.0)])[..., None]


def test_an_exact_power_law_is_found_in_every_resample() -> None:
    law = fit(errors(), SIZES, list("abcd"), 0)
    assert isinstance(law, PowerLaw)
    assert law.exponent.mean == pytest.approx(0.5)
    assert (law.exponent.low, law.exponent.high) == (None, None)  # it is the same in every resample
    assert law.change_percent.mean == pytest.approx(100 * (2**-0.5 - 1))
    assert (law.n, law.score.n) == (24, 4)
    assert law.score.mean == pytest.approx(5 * 24**-0.5)
    assert law.misfit_percent == pytest.approx(0, abs=1e-9)
    assert law.line[0] == pytest.approx((3, 5 * 3**-0.5))
    assert law.score.low is not None
    assert law.score.low < 5 * 24**-0.5


def test_of_a_score_that_is_better_when_higher_the_distance_to_the_best_is_fitted() -> None:
    law = fit(1 - errors() / 10, SIZES, list("abcd"), 0, best=1.0)
    assert isinstance(law, PowerLaw)
    assert law.exponent.mean == pytest.approx(0.5)
    assert law.score.mean == pytest.approx(1 - 0.5 * 24**-0.5)


@pytest.mark.parametrize(
    ("values", "sizes", "best", "why"),
    [
        (errors()[:, :2], (3, 6), None, "3 sizes or more to fit a power law, got 2"),
        (np.ones((4, 3, 1)), SIZES, 1.0, "a mean error above 0 at each size"),
        (np.full((4, 3, 1), np.nan), SIZES, None, "a mean error above 0 at each size"),
    ],
)
def test_what_has_no_power_law_says_why(
    values: np.ndarray, sizes: tuple[int, ...], best: float | None, why: str
) -> None:
    found = fit(values, sizes, list("abcd"), 0, best=best)
    assert isinstance(found, str)
    assert why in found


def test_classes_count_alike_and_a_case_counts_only_if_it_is_defined_at_every_size() -> None:
    values = np.array([[1.0, 1.0], [3.0, 1.0], [np.nan, 9.0], [6.0, 2.0]])[..., None]
    means, used = means_by_size(values, list("abcd"), [0, 0, 0, 1], 0)
    assert used.tolist() == [True, True, False, True]
    assert means[0].tolist() == [(2 + 6) / 2, (1 + 2) / 2]


def test_the_luck_of_the_draw_of_training_patients_widens_the_interval_where_it_was_repeated() -> None:
    noise = np.array([[1.2, 0.8], [0.9, 1.1], [1.0, np.nan]])
    repeated = fit(errors() * noise, SIZES, list("abcd"), 0)
    alone = fit(errors() * noise[:, :1], SIZES, list("abcd"), 0)
    assert isinstance(repeated, PowerLaw)
    assert isinstance(alone, PowerLaw)
    assert repeated.exponent.mean == pytest.approx(0.5)  # the mean of the repeats is exact
    steepest = fit(errors() * np.array([[1.2], [1.0], [1.0]]), SIZES, list("abcd"), 0)
    assert isinstance(steepest, PowerLaw)
    assert repeated.exponent.low is not None
    assert repeated.exponent.high is not None
    assert repeated.exponent.low < 0.5 < steepest.exponent.mean <= repeated.exponent.high  # type: ignore[operator]  # it has a mean
    assert (alone.exponent.low, alone.exponent.high) == (None, None)
