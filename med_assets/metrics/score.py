"""One measured number together with all that is needed to read it."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Score:
    """A measurement of one case: one row in the lake.

    `value` is the metric itself; None means undefined for this case (an absent structure), never "bad" and never 0.0.
    `truth` and `prediction` hold the two sides where the metric compares them; `limit`, `passed` and `passed_truth`
    are set for clinical limits only. `n` is the number of voxels (or points) that the value rests on.
    """

    metric: str
    subject: str
    value: float | None
    unit: str
    convention: str
    truth: float | None = None
    prediction: float | None = None
    limit: float | None = None
    passed: bool | None = None
    passed_truth: bool | None = None
    n: int | None = None


@dataclass(frozen=True)
class PooledScore(Score):
    """A score over all cases of a split at once, with its 95% interval; the ends are None where it has none."""

    low: float | None = None
    high: float | None = None
    interval: str = "none: pooled over cases"
    """How the interval was made."""


_DTYPES = {
    "metric": "string",
    "subject": "string",
    "value": "float64",
    "unit": "string",
    "convention": "string",
    "truth": "float64",
    "prediction": "float64",
    "limit": "float64",
    "passed": "boolean",
    "passed_truth": "boolean",
    "n": "Int64",
}


def to_frame(scores: Iterable[Score]) -> "pd.DataFrame":
    """Return scores as a table with one row each and the same column types whatever is missing.

    Undefined numbers become NaN in float columns and <NA> in the nullable ones, so that an all-undefined column does
    not change its type between cases.
    """
    import pandas as pd

    rows = [vars(score) for score in scores]
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(Score)])
    return frame.astype(_DTYPES)
