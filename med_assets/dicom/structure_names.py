"""How names of structures are compared: ROIs, segments, points and labels, in de-identification and in preparation alike."""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field


def normalise(name: str) -> str:
    """Return a name in the form that names are compared in: no case, `_`, `-`, blanks and "gy", compatibility forms as one."""
    folded = unicodedata.normalize("NFKC", str(name)).casefold()
    return "".join(folded.translate(str.maketrans("", "", "_-\0")).split()).replace("gy", "")


@dataclass(frozen=True)
class Vocabulary(Collection[str]):
    """Names that mean something to a program; a name is in it when `compare` makes the same of it and of one of them."""

    names: frozenset[str]
    compare: Callable[[str], str] = normalise
    _compared: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compared", frozenset(map(self.compare, self.names)))

    @staticmethod
    def of(names: Iterable[str]) -> "Vocabulary":
        """The names as a vocabulary; one that is given stays as it is."""
        return names if isinstance(names, Vocabulary) else Vocabulary(frozenset(names))

    def __contains__(self, name: object) -> bool:
        return self.compare(str(name)) in self._compared

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __len__(self) -> int:
        return len(self.names)
