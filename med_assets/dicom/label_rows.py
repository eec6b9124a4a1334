"""One label of a case as its source has it, for the tables of `med-assets import` and `med-assets explain`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from med_assets.storage.files import read_json, write_json

FILE = "labels.json"
"""File of a prepared case with its rows, in programs whose arrays do not say them."""

Shown = str | int | float


@dataclass(frozen=True)
class LabelRow:
    """A label: its value in the source (label value, segment or ROI number, or a word), its name, its volume, and what it counts as here.

    `voxels` and `ml` are None of what was not drawn, since it counts as nothing. A label that is no volume has `measured`
    instead: what places it, such as the pixels of a mask of one image or the position of a point, by name and unit.
    """

    value: int | str
    name: str
    voxels: int | None = None
    ml: float | None = None
    maps_to: str = ""
    cases: int | None = None
    """Cases that have voxels of it, in a table of several."""
    measured: Mapping[str, Shown] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """The row as people read it."""
        volume = {
            "voxels": "-" if self.voxels is None else self.voxels,
            "ml": "-" if self.ml is None else f"{self.ml:.3f}",
        }
        return {
            "source value": self.value,
            "name": self.name,
            **({} if self.cases is None else {"cases": self.cases}),
            **(self.measured or volume),
            "maps to": self.maps_to or "-",
        }


def summed(rows: Iterable[LabelRow]) -> list[LabelRow]:
    """Return a row for each value and name, with the cases that have voxels of it, and all their voxels and ml."""
    found: dict[tuple[int | str, str], LabelRow] = {}
    for row in rows:
        before = found.get((row.value, row.name), replace(row, voxels=0, ml=0.0))
        found[row.value, row.name] = replace(
            row,
            voxels=(before.voxels or 0) + (row.voxels or 0),
            ml=(before.ml or 0.0) + (row.ml or 0.0),
            cases=(before.cases or 0) + bool(row.voxels),
        )
    return [found[key] for key in sorted(found, key=lambda key: (f"{key[0]:>12}", key[1]))]


def write_rows(folder: Path, rows: Iterable[LabelRow]) -> None:
    """Keep the labels of a prepared case, in this order."""
    write_json(folder / FILE, [asdict(row) for row in rows])


def read_rows(folder: Path) -> list[LabelRow]:
    """Return what `write_rows` kept; nothing of a case that was prepared by an earlier version."""
    return [LabelRow(**row) for row in read_json(folder / FILE)] if (folder / FILE).is_file() else []
