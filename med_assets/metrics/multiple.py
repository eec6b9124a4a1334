"""Correction of p for the number of hypotheses."""

from collections.abc import Sequence


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Values of p adjusted by Holm's method, which holds the chance of any false alarm; None stays None and is not counted.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    defined = sorted((value, index) for index, value in enumerate(p) if value is not None)
    out: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, index) in enumerate(defined):
        largest = max(largest, min(1.0, value * (len(defined) - rank)))
        out[index] = largest
    return out
