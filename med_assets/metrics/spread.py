"""How far several predictions of one case lie apart: of the members of an ensemble, and of mirrored copies of the case.

Each prediction is added and let go, so that a volume is held a few times, however many there are.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AGREEMENT = "agreement.json"
"""File beside a prediction that is the mean of several, with how far they lie apart."""

CALLED = 0.5
"""Probability above which an element belongs to a structure."""

DOSED = 0.1
"""Share of the highest mean dose from which on voxels count: elsewhere all agree on next to nothing."""


class Space(StrEnum):
    """What the numbers of a prediction are, which says how they are averaged and compared."""

    LOGITS = "logits"
    """Logits of one structure at each element: probabilities are averaged."""
    CLASS_LOGITS = "class logits"
    """Logits of classes along the first axis: probabilities are averaged."""
    PROBABILITIES = "probabilities"
    """Of one structure, a first axis of 1, or of the background and of each class along the first axis."""
    HEAT_MAPS = "heat maps"
    """Probabilities of each level along the first axis."""
    DOSE_GY = "dose"
    """Gy."""


@dataclass(frozen=True)
class Agreement:
    """How far `n` predictions of a case agree: a measure whose higher values are surer, its definition, and what else is measured."""

    n: int
    agreement: float
    definition: str
    measured: dict[str, float]
    """By name with unit."""


class Spread:
    """Sums up predictions of one case, in probabilities or Gy."""

    def __init__(self, space: Space) -> None:
        self._of = _summed(space)
        self.n = 0

    def add(self, prediction: Array) -> None:
        """Add a prediction."""
        self.n += 1
        self._of.add(prediction)

    def agreement(self) -> Agreement | None:
        """How far the predictions agree; None for fewer than two."""
        if self.n < 2:
            return None
        value, measured = self._of.measured(self.n)
        return Agreement(self.n, value, self._of.DEFINITION, measured)


def _summed(space: Space) -> "_Masks | _Classes | _HeatMaps | _Doses":
    """What sums up predictions of this kind."""
    match space:
        case Space.LOGITS:
            return _Masks(lambda found: found)
        case Space.PROBABILITIES:
            return _Masks(lambda found: found[0] if len(found) == 1 else np.asarray(found[1:].sum(axis=0)))
        case Space.CLASS_LOGITS:
            return _Classes()
        case Space.HEAT_MAPS:
            return _HeatMaps()
        case Space.DOSE_GY:
            return _Doses()


def entropy(probability: Array) -> Array:
    """Return -p ln p, 0 at 0, nats."""
    safe = np.where(probability > 0, probability, 1.0)
    return np.asarray(-safe * np.log(safe))


class _Masks:
    DEFINITION = (
        f"Dice of each two of the predicted masks (probability above {CALLED:g}), mean over pairs; 1 for two empty ones"
    )

    def __init__(self, structure: Callable[[Array], Array]) -> None:
        self.structure = structure
        self.masks: list[NDArray[np.uint8]] = []
        self.sizes: list[int] = []
        self.total: Array | float = 0.0
        self.entropies: Array | float = 0.0

    def add(self, prediction: Array) -> None:
        found = self.structure(prediction)
        mask = found > CALLED
        self.masks.append(np.packbits(mask))
        self.sizes.append(int(np.count_nonzero(mask)))
        self.total = self.total + found
        self.entropies = self.entropies + entropy(found) + entropy(1 - found)

    def measured(self, n: int) -> tuple[float, dict[str, float]]:
        dices = []
        for one, other in itertools.combinations(range(n), 2):
            both = int(np.bitwise_count(self.masks[one] & self.masks[other]).sum(dtype=np.int64))
            size = self.sizes[one] + self.sizes[other]
            dices.append(2 * both / size if size else 1.0)
        mean = np.asarray(self.total) / n
        anywhere = np.unpackbits(np.bitwise_or.reduce(self.masks), count=mean.size).reshape(mean.shape).astype(bool)
        if not anywhere.any():
            return float(np.mean(dices)), {}
        whole = (entropy(mean) + entropy(1 - mean))[anywhere]
        each = np.asarray(self.entropies)[anywhere] / n
        return float(np.mean(dices)), _of_entropies(float(whole.mean()), float(each.mean()))


class _Classes:
    DEFINITION = (
        "1 - mutual information of the class and the prediction, divided by the logarithm of the number of classes"
    )

    def __init__(self) -> None:
        self.total: Array | float = 0.0
        self.entropies = 0.0

    def add(self, prediction: Array) -> None:
        self.total = self.total + prediction
        self.entropies += float(entropy(prediction).sum())

    def measured(self, n: int) -> tuple[float, dict[str, float]]:
        mean = np.asarray(self.total) / n
        found = _of_entropies(float(entropy(mean).sum()), self.entropies / n)
        return 1 - found["mutual information, nats"] / math.log(len(mean)), found


def _of_entropies(of_mean: float, mean: float) -> dict[str, float]:
    """The entropy of the mean prediction, and what of it comes from differences between predictions; it is at least 0 but for rounding."""
    return {"predictive entropy, nats": of_mean, "mutual information, nats": max(0.0, of_mean - mean)}


class _HeatMaps:
    DEFINITION = (
        "overlap of each two heat maps of a level, the sum of the lower values over that of the higher ones, mean over pairs, at the level "
        "where it is least"
    )

    def __init__(self) -> None:
        self.found: list[Array] = []

    def add(self, prediction: Array) -> None:
        self.found.append(prediction)

    def measured(self, n: int) -> tuple[float, dict[str, float]]:
        axes = tuple(range(1, self.found[0].ndim))
        pairs = []
        for one, other in itertools.combinations(self.found, 2):
            high = np.maximum(one, other).sum(axis=axes)
            low = np.minimum(one, other).sum(axis=axes)
            pairs.append(np.divide(low, high, out=np.ones_like(low), where=high > 0))
        levels = np.mean(pairs, axis=0)
        return float(levels.min()), {"mean overlap of heat maps": float(levels.mean())}


class _Doses:
    DEFINITION = f"minus the standard deviation of the predicted doses (n - 1), Gy, mean over the voxels with {DOSED:.0%} or more of the highest mean dose"

    def __init__(self) -> None:
        self.n = 0
        self.mean: Array | float = 0.0
        self.squares: Array | float = 0.0

    def add(self, prediction: Array) -> None:
        # Welford's update, which loses no digits where doses are nearly equal.
        self.n += 1
        change = prediction - self.mean
        self.mean = self.mean + change / self.n
        self.squares = self.squares + change * (prediction - self.mean)

    def measured(self, n: int) -> tuple[float, dict[str, float]]:
        mean, deviation = np.asarray(self.mean), np.sqrt(np.asarray(self.squares) / (n - 1))
        inside = deviation[(mean > 0) & (mean >= DOSED * mean.max())]
        value = float(inside.mean()) if inside.size else 0.0
        greatest = float(inside.max()) if inside.size else 0.0
        return -value, {"SD of predictions, Gy": value, "greatest SD of a voxel, Gy": greatest}
