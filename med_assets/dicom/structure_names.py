"""How names of structures are compared: ROIs, segments, points and labels, in de-identification and in preparation alike."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from med_assets.errors import ConfigurationError


def normalise(name: str) -> str:
    """Return a name in the form that names are compared in: no case, `_`, `-`, blanks and "gy", compatibility forms as one."""
    folded = unicodedata.normalize("NFKC", str(name)).casefold()
    return "".join(folded.translate(str.maketrans("", "", "_-\0")).split()).replace("gy", "")


CLOSE_NAME = 0.7
"""Likeness of two names, 0 to 1, from which one is proposed for the other."""

_WORDS = {
    "lt": "l", "left": "l", "li": "l", "rt": "r", "right": "r", "re": "r", "fem": "femur", "femoral": "femur", "hd": "head",
    "bldr": "bladder", "bl": "bladder", "rect": "rectum", "prost": "prostate", "parot": "parotid", "oesophagus": "esophagus",
    "cord": "spinalcord", "sc": "spinalcord", "bs": "brainstem",
}  # fmt: skip
"""Abbreviations that clinics use, and what they stand for."""


def closest(name: str, known: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """Return structures that an ROI `name` may mean, likeliest first, each with the known name that is close to it.

    `known` maps structures to their names. Words are compared whatever their order, case and usual abbreviation; what names a
    side is close to nothing of the other side.
    """
    words = _words(name)
    found = []
    for structure, names in known.items():
        likeness, best = max(((_likeness(words, _words(one)), one) for one in (structure, *names)), default=(0.0, ""))
        if likeness >= CLOSE_NAME:
            found.append((likeness, structure, best))
    return [(structure, best) for _, structure, best in sorted(found, key=lambda one: (-one[0], one[1]))]


def _words(name: str) -> list[str]:
    folded = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    found = re.findall(r"[^\W\d_]+|\d+", folded.casefold())
    return sorted(_WORDS.get(word, word) for word in found)


def _likeness(one: list[str], other: list[str]) -> float:
    if {"l", "r"} <= {*one, *other} or not one or not other:
        return 0.0
    if set(other) <= set(one):  # a known name with more beside it, such as a version
        return 1.0 - 0.01 * (len(one) - len(other))
    return difflib.SequenceMatcher(None, " ".join(one), " ".join(other)).ratio()


@dataclass(frozen=True)
class Vocabulary(Collection[str]):
    """Names that mean something to a program; a name is in it when `compare` makes the same of it and of one of them.

    `patterns` are pairs of a regular expression, without regard to case, and the name that stands for what matches it as a
    whole, since such a name may hold more than it means. `texts` are values of other text elements, by keyword, that mean
    something to the program beside those of KNOWN_VALUES in deidentification/profile.py.
    """

    names: frozenset[str]
    compare: Callable[[str], str] = normalise
    patterns: tuple[tuple[str, str], ...] = ()
    texts: Mapping[str, frozenset[str]] = field(default_factory=dict, hash=False)
    _compared: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compared", frozenset(map(self.compare, self.names)))

    @staticmethod
    def of(names: Iterable[str]) -> "Vocabulary":
        """The names as a vocabulary; one that is given stays as it is."""
        return names if isinstance(names, Vocabulary) else Vocabulary(frozenset(names))

    def kept(self, name: str) -> str | None:
        """The name itself if it is in the vocabulary, what stands for it if it matches a pattern, else None."""
        if name in self:
            return name
        text = " ".join(str(name).split())
        return next((known for pattern, known in self.patterns if re.fullmatch(pattern, text, re.IGNORECASE)), None)

    def __contains__(self, name: object) -> bool:
        return self.compare(str(name)) in self._compared

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Match:
    """Which ROI is which structure, by its place in the given names.

    `found` maps structures to the ROI that is taken, `ambiguous` to the several that would fit and of which none is preferred,
    `passed_over` to those that fit and were not taken. `unmatched` are those that no structure claims.
    """

    found: dict[str, int]
    ambiguous: dict[str, tuple[int, ...]]
    passed_over: dict[str, tuple[int, ...]]
    unmatched: tuple[int, ...]


def match_rois(
    names: Sequence[str],
    synonyms: Mapping[str, Sequence[str]],
    preferred: Mapping[str, Sequence[str]] | None = None,
    fallback: Mapping[str, Sequence[str]] | None = None,
) -> Match:
    """Return which of the ROI `names` is which structure of `synonyms` (structure -> other names it goes by).

    A structure also goes by its own name, and where no ROI has any of these by those of `fallback`, the first that is there. Where
    several ROIs fit, the first name of `preferred` that one of them has decides; without one, and where two have the same
    name, they are ambiguous and none is chosen. Raises `ConfigurationError` where two structures claim one name.
    """
    preferred, fallback = preferred or {}, fallback or {}
    owner: dict[str, str] = {}
    for structure, others in synonyms.items():
        for name in (structure, *others, *fallback.get(structure, ())):
            if owner.setdefault(normalise(name), structure) != structure:
                raise ConfigurationError(
                    f"Expected each synonym to name one structure; {name!r} stands for {structure!r} and for "
                    f"{owner[normalise(name)]!r}. Remove one."
                )
    fits: dict[str, list[int]] = {}
    unmatched = []
    for index, name in enumerate(names):
        structure_or_none = owner.get(normalise(name))
        if structure_or_none is None:
            unmatched.append(index)
        else:
            fits.setdefault(structure_or_none, []).append(index)
    found, ambiguous, passed_over = {}, {}, {}
    for structure, indices in fits.items():
        last = {normalise(name) for name in fallback.get(structure, ())}
        named = [index for index in indices if normalise(names[index]) not in last]
        order = preferred.get(structure, ()) if named else fallback[structure]
        chosen = _first(named or indices, names, order)
        if chosen is None:
            ambiguous[structure] = tuple(named or indices)
            continue
        found[structure] = chosen
        if len(indices) > 1:
            passed_over[structure] = tuple(index for index in indices if index != chosen)
    return Match(found, ambiguous, passed_over, tuple(unmatched))


def _first(indices: Sequence[int], names: Sequence[str], order: Sequence[str]) -> int | None:
    """The one of several ROIs that is taken, None where nothing decides."""
    if len(indices) == 1:
        return indices[0]
    for wanted in order:
        having = [index for index in indices if normalise(names[index]) == normalise(wanted)]
        if having:
            return having[0] if len(having) == 1 else None
    return None
