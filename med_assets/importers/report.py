"""What an import made of each case."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImportReport:
    """What became of each case, by the name of its folder: written now, there already, or left out and why."""

    imported: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
