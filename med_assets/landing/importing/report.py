"""What an import made of each case."""

from dataclasses import dataclass, field

from med_assets.dicom.label_rows import LabelRow


@dataclass(frozen=True)
class ImportReport:
    """Names of case folders: written now, there already, left out (with the reason), and replaced by corrected content."""

    imported: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    updated: tuple[str, ...] = ()
    labels: tuple[LabelRow, ...] = ()
    """The labels of all cases that are there, summed by value and name; of label volumes alone."""
    notes: tuple[str, ...] = ()
    """What else a person should know of the import, a sentence each."""
