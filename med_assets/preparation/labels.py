"""The labels of a prepared case, for people."""

from pathlib import Path

from med_assets import program
from med_assets.capabilities import LabelRows
from med_assets.dicom.label_rows import LabelRow, read_rows


def label_rows(program_name: str, prepared: Path) -> list[LabelRow]:
    """The labels of a prepared case as its source has them, and what each counts as."""
    chosen = program.get(program_name)
    return chosen.label_rows(prepared) if isinstance(chosen, LabelRows) else read_rows(prepared)
