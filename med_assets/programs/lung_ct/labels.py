"""Names and ids of anatomy: the 124 classes of VISTA3D, and what else segments and ROIs are called.

The table is `conf/lung_ct/_labels.yaml`. Names are compared without case, punctuation, blanks and the order of their words.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from med_assets.dicom.structure_names import Vocabulary
from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct.vocabulary import TEXTS
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import read_yaml

FILE = "_labels.yaml"

UNLABELLED = 255
"""Value of voxels of which the source says that nobody knows what is there: neither target nor background."""

CLASS_EMBEDDINGS = 512
"""Class embeddings of the network; ids from FIRST_FREE on name no anatomy."""

FIRST_FREE = 133
"""Ids from here to below UNLABELLED are free: the network has a class embedding for each, which no released weights trained."""

SHOWN = 5
"""Candidates named when a name is not known."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Superclass(_Frozen):
    """One name for several classes."""

    id: int = Field(ge=1, description="id of the class prompt")
    parts: tuple[int, ...] = Field(min_length=1, description="ids of the classes it stands for")


class Labels(_Frozen):
    """The content of the table."""

    classes: Mapping[str, int] = Field(description="class name to id")
    superclasses: Mapping[str, Superclass] = Field(description="names that stand for several classes")
    unsupported: tuple[int, ...] = Field(description="ids that no network was trained on")
    tumour_like: tuple[int, ...] = Field(description="ids whose points get the special labels 2 and 3")
    not_in_everything: tuple[int, ...] = Field(description="ids left out when everything is asked for")
    unlabelled: tuple[str, ...] = Field(description="names that say that nobody knows what is there")
    synonyms: Mapping[str, tuple[str, ...]] = Field(description="class name to other names of segments and ROIs")

    @model_validator(mode="after")
    def _is_unambiguous(self) -> Self:
        if unknown := sorted(set(self.synonyms) - set(self.classes)):
            raise ValueError(f"synonyms are for {unknown}, which are not in classes")
        owner: dict[str, str] = {}
        for name in self.classes:
            for other in (name, *self.synonyms.get(name, ())):
                if owner.setdefault(compared(other), name) != name:
                    raise ValueError(f"{other!r} stands for {name!r} and for {owner[compared(other)]!r}; remove one")
        ids = [*self.classes.values(), *(one.id for one in self.superclasses.values()), *self.unsupported]
        if len(set(ids)) != len(ids):
            raise ValueError("expected each id once among classes, superclasses and unsupported")
        if strangers := sorted({p for one in self.superclasses.values() for p in one.parts} - set(ids)):
            raise ValueError(f"superclasses have the parts {strangers}, which are no classes")
        return self


def words(name: str) -> str:
    """Return a name as names are compared: its words in lower case, sorted, in American spelling."""
    return " ".join(
        sorted(
            re.split(
                r"[\W_]+", unicodedata.normalize("NFKC", name).casefold().replace("tumour", "tumor").strip(" _-.,")
            )
        )
    )


def compared(name: str) -> str:
    """Return what names of segments and ROIs are compared by: their sorted words as one, so that `LungTumour` is `Lung tumor`."""
    return words(name).replace(" ", "")


@cache
def table() -> Labels:
    """Return the table of `conf/lung_ct/_labels.yaml`. Raises ConfigurationError that names what is wrong."""
    where = f"conf/lung_ct/{FILE}"
    content: Any = read_yaml(conf_folder("lung_ct") / FILE)
    try:
        return Labels.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


@cache
def _known() -> Mapping[str, int]:
    """Id by compared name, synonyms included."""
    found = table()
    return {compared(name): UNLABELLED for name in found.unlabelled} | {
        compared(other): number
        for name, number in found.classes.items()
        for other in (name, *found.synonyms.get(name, ()))
    }


@cache
def _names() -> Mapping[int, str]:
    return {number: name for name, number in table().classes.items()}


def class_of(name: str) -> int | None:
    """Return the class of a segment or ROI name, UNLABELLED where it says so, None for one that no class or synonym has."""
    return _known().get(compared(name))


def meaning(class_id: int | None) -> str:
    """Return what a label of this class counts as, for people: `23 lung tumor`; empty for one without a class."""
    if class_id is None:
        return ""
    return "not labelled" if class_id == UNLABELLED else f"{class_id} {name_of(class_id)}"


def name_of(number: int) -> str:
    """Return the name of a class or superclass. Raises ConfigurationError for an id that has none."""
    if number in _names():
        return _names()[number]
    for name, found in table().superclasses.items():
        if found.id == number:
            return name
    raise ConfigurationError(f"expected the id of a class of conf/lung_ct/{FILE}, got {number}, which has no name")


def resolve(name: str) -> int:
    """Return the id of a target named by anatomy.

    Raises ConfigurationError for a name that is unknown or stands for several classes, naming the nearest candidates.
    """
    found = class_of(name)
    if found is not None and found != UNLABELLED:
        return found
    several = {words(one): one for one in table().superclasses}.get(words(name))
    wanted = set(words(name).split())
    near = (
        [name_of(part) for part in table().superclasses[several].parts]
        if several
        else [one for one in table().classes if wanted <= set(words(one).split())]
    )
    if near:
        raise ConfigurationError(
            f"{name!r} is ambiguous: expected one class, it may be {_listed(near)}; name one of them"
        )
    by_words = {words(one): one for one in table().classes}
    close = difflib.get_close_matches(words(name), by_words, n=SHOWN, cutoff=0.4)
    nearest = _listed([by_words[one] for one in close]) if close else "nothing like it"
    raise ConfigurationError(
        f"expected the name of a class of conf/lung_ct/{FILE}, got {name!r}; nearest: {nearest}. Name one of them, or add "
        "a synonym there"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(one) for one in names[:SHOWN]) + more


def subclasses(number: int) -> tuple[int, ...]:
    """Return the classes that a prompt for `number` asks for: the parts of a superclass, else itself."""
    return next((one.parts for one in table().superclasses.values() if one.id == number), (number,))


def is_tumour_like(number: int) -> bool:
    """Whether points for this class get the special labels 2 and 3."""
    return number in table().tumour_like


def everything() -> tuple[int, ...]:
    """Return the ids asked for when everything is asked for, ascending."""
    return tuple(n for n in sorted(table().classes.values()) if n not in table().not_in_everything)


def check_target(number: int) -> int:
    """Return an id that a label may be mapped to: a class, or one from FIRST_FREE on, which needs no name.

    Raises ConfigurationError for a superclass, an unsupported id, one below FIRST_FREE without a name, and one from 255 on.
    """
    if number >= UNLABELLED:
        raise ConfigurationError(f"expected an id below {UNLABELLED}, which means unlabelled, got {number}")
    if len(parts := subclasses(number)) > 1:
        raise ConfigurationError(
            f"expected one class, got {number} ({name_of(number)}), which stands for {_listed([name_of(p) for p in parts])}; "
            "map to one of them"
        )
    if number in table().unsupported:
        raise ConfigurationError(f"expected a class that the network knows, got {number}, which none was trained on")
    if number < FIRST_FREE:
        name_of(number)
    return number


@cache
def vocabulary() -> Vocabulary:
    """All names of segments and ROIs that are anatomy: classes, superclasses, synonyms, and these with the side moved."""
    found = table()
    names = {
        *found.classes,
        *found.superclasses,
        *found.unlabelled,
        *(one for group in found.synonyms.values() for one in group),
    }
    names |= {f"{side} {name}" for side in ("left", "right") for name in found.superclasses}
    for name in tuple(names):
        side, _, rest = name.partition(" ")
        if side in ("left", "right"):
            first, _, last = rest.partition(" ")
            names |= {f"{rest} {side}", f"{first} {side} {last}".strip()}
    return Vocabulary(frozenset(names), compared, texts=TEXTS)
