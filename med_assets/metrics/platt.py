"""Platt scaling: a logistic curve from a measure of confidence to the probability of success."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEPS = 100
"""Newton steps at most; ten are usual."""


@dataclass(frozen=True)
class Platt:
    """Probability of success = 1 / (1 + exp(-(slope * measure + intercept)))."""

    slope: float
    intercept: float

    def probability(self, measure: float) -> float:
        """Return the probability of success at a measure, 0 to 1."""
        return 1 / (1 + math.exp(-min(max(self.slope * measure + self.intercept, -700.0), 700.0)))


def fit_platt(measures: Sequence[float], successes: Sequence[bool]) -> Platt | None:
    """Fit the curve by maximum likelihood; None where success does not become likelier as the measure rises, and where all measures are equal.

    Targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1 and 0, so that a perfect separation has a finite slope.
    Source: Platt, Probabilistic outputs for support vector machines (1999); Lin, Lin and Weng (2007). Raises ValueError for sequences of
    different lengths and where there is no success or no failure.
    """
    good = int(sum(successes))
    bad = len(successes) - good
    if len(measures) != len(successes) or not good or not bad:
        raise ValueError(
            f"expected measures of successes and failures, got {len(measures)} measures, {good} successes, {bad} failures"
        )
    x, won = np.asarray(measures, dtype=np.float64), np.asarray(successes, dtype=bool)
    middle, spread = float(x.mean()), float(x.std())
    if spread <= 1e-12 * max(1.0, abs(middle)):
        return None
    z = (x - middle) / spread
    target = np.where(won, (good + 1) / (good + 2), 1 / (bad + 2))
    slope, intercept = 0.0, math.log((good + 1) / (bad + 1))
    loss = _loss(slope * z + intercept, target)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(slope * z + intercept)))
        weight, error = p * (1 - p), p - target
        gradient = np.array([float(error @ z), float(error.sum())])
        hessian = np.array([[float(weight @ (z * z)), float(weight @ z)], [float(weight @ z), float(weight.sum())]])
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        size = 1.0
        while size > 1e-8:
            trial = _loss((slope - size * step[0]) * z + intercept - size * step[1], target)
            if trial <= loss:
                break
            size /= 2
        slope, intercept = slope - size * float(step[0]), intercept - size * float(step[1])
        if loss - trial < 1e-12:
            break
        loss = trial
    return Platt(slope / spread, intercept - slope * middle / spread) if slope > 0 else None


def _loss(logit: np.ndarray, target: np.ndarray) -> float:
    """Cross-entropy of logits."""
    return float(np.sum(np.logaddexp(0, logit) - target * logit))
