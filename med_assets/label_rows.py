"""One label of a case as its source has it, for the tables of `med-assets import` and `med-assets explain`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class LabelRow:
    """A label: its value in the source (label value, segment or ROI number), its name, its volume, and what it counts as here."""

    value: int
    name: str
    voxels: int
    ml: float
    maps_to: str = ""
    cases: int | None = None
    """Cases that have voxels of it, in a table of several."""

    def shown(self) -> dict[str, Any]:
        """The row as people read it."""
        return {
            "source value": self.value,
            "name": self.name,
            **({} if self.cases is None else {"cases": self.cases}),
            "voxels": self.voxels,
            "ml": f"{self.ml:.3f}",
            "maps to": self.maps_to or "-",
        }


def summed(rows: Iterable[LabelRow]) -> list[LabelRow]:
    """Return a row for each value and name, with the cases that have voxels of it, and all their voxels and ml."""
    found: dict[tuple[int, str], LabelRow] = {}
    for row in rows:
        before = found.get((row.value, row.name), replace(row, voxels=0, ml=0.0))
        found[row.value, row.name] = replace(
            row,
            voxels=before.voxels + row.voxels,
            ml=before.ml + row.ml,
            cases=(before.cases or 0) + (row.voxels > 0),
        )
    return [found[key] for key in sorted(found)]
