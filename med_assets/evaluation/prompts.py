"""What a person shows a model in one image: points inside and outside of what is sought, and a box around it."""

from dataclasses import dataclass

from med_assets.errors import ConfigurationError

FORMS = {2: "COLUMN,ROW such as 120,85", 4: "FIRST_COLUMN,FIRST_ROW,LAST_COLUMN,LAST_ROW such as 90,60,180,140"}
"""How points and boxes are written, by how many numbers they have."""


@dataclass(frozen=True)
class Prompts:
    """Columns and rows of the whole picture, from 0: points, and a box by its first and last pixel."""

    inside: tuple[tuple[int, int], ...] = ()
    outside: tuple[tuple[int, int], ...] = ()
    box: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        """Raise ConfigurationError where nothing is shown, or the box is none."""
        if not self.inside and self.box is None:
            raise ConfigurationError("expected a point inside of the lesion (--inside) or a box (--box), got neither")
        if self.box is not None and (self.box[0] >= self.box[2] or self.box[1] >= self.box[3]):
            raise ConfigurationError(f"expected a box as {FORMS[4]}, got {','.join(map(str, self.box))}")


def numbers_of(text: str, count: int) -> tuple[int, ...]:
    """Read so many whole numbers with commas between them. Raises ConfigurationError."""
    parts = text.split(",")
    if len(parts) != count or not all(part.strip().isdecimal() and len(part) < 8 for part in parts):
        raise ConfigurationError(f"expected {FORMS[count]}, got {text[:40]!a}")
    return tuple(int(part) for part in parts)
