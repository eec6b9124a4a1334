"""What de-identification did to the elements of a case, counted by rule, outcome and keyword, never with a value."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydicom.datadict import dictionary_has_tag, dictionary_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from med_assets.deidentification.profile import Action
from med_assets.deidentification.profiles import STRICT, Profile


class Outcome(StrEnum):
    """What de-identification made of an element."""

    KEPT = "kept"
    CHANGED = "changed"
    REMOVED = "removed"
    ADDED = "added"


NOT_ALLOWED, DECLARED = "not on the allow-list", "declared"
"""Rules of elements that the profile does not name, and of those that say how the object was de-identified."""

PRIVATE, UNKNOWN = "private elements", "elements that the dictionary does not know"
"""Stand for their tags, which a sender may choose."""

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Number of elements by rule, outcome and keyword."""


@dataclass
class Tally:
    """Counts over the objects of one case. A sequence counts as one element, which is changed where an item is treated."""

    profile: Profile = STRICT
    n: Counter[tuple[str, Outcome, str]] = field(default_factory=Counter)

    def add(self, before: Dataset, after: Dataset) -> None:
        """Count the elements of an object as it was received and as it is stored."""
        for tag, stored in before.items():
            action = self.profile.actions.get(tag)
            rule = NOT_ALLOWED if action is None else action.name.lower()
            self.n[rule, _outcome(stored, action, after), _name(tag)] += 1
        for tag in after.keys() - before.keys():
            self.n[DECLARED, Outcome.ADDED, _name(tag)] += 1

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """The counts, sorted."""
        out: dict[str, dict[str, dict[str, int]]] = {}
        for (rule, outcome, name), n in sorted(self.n.items()):
            out.setdefault(rule, {}).setdefault(str(outcome), {})[name] = n
        return out


def totals(counts: Counts) -> dict[str, int]:
    """Elements by outcome."""
    out = dict.fromkeys(map(str, Outcome), 0)
    for outcomes in counts.values():
        for outcome, names in outcomes.items():
            out[outcome] += sum(names.values())
    return out


def _outcome(stored: DataElement | RawDataElement, action: Action | None, after: Dataset) -> Outcome:
    if stored.tag not in after:
        return Outcome.REMOVED
    if action is Action.NESTED:
        return Outcome.CHANGED
    return Outcome.KEPT if _text(stored) == _text(after.get_item(stored.tag)) else Outcome.CHANGED


def _text(element: DataElement | RawDataElement | Dataset | None) -> bytes:
    """A value as bytes, without padding, whether it is decoded or not."""
    value = getattr(element, "value", None)
    if isinstance(value, bytes):
        return value.rstrip(b" \0")
    many = hasattr(value, "__iter__") and not isinstance(value, str) and not hasattr(value, "family_name")
    return "\\".join(map(str, value) if many and value is not None else [str(value or "")]).strip().encode()


def _name(tag: BaseTag) -> str:
    if tag.is_private:
        return PRIVATE
    return dictionary_keyword(tag) or UNKNOWN if dictionary_has_tag(tag) else UNKNOWN
