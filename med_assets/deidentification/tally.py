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


_KEPT, _CHANGED, _REMOVED, _ADDED = (outcome.value for outcome in Outcome)

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
    n: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Elements by tag and outcome, as numbers and text that Python hashes at once: a slice has 50."""

    def add(self, before: Dataset, after: Dataset) -> None:
        """Count the elements of an object as it was received and as it is stored."""
        received, kept = dict(before.items()), dict(after.items())
        actions = self.profile.actions
        self.n.update(
            [(int(tag), _outcome(stored, actions.get(tag), kept.get(tag))) for tag, stored in received.items()]
        )
        self.n.update([(int(tag), _ADDED) for tag in kept.keys() - received.keys()])

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """The counts, sorted."""
        out: dict[str, dict[str, dict[str, int]]] = {}
        for number, outcome in self.n:
            name, names = (
                _name(BaseTag(number)),
                out.setdefault(self._rule(number, outcome), {}).setdefault(outcome, {}),
            )
            names[name] = names.get(name, 0) + self.n[number, outcome]
        return {
            rule: {outcome: dict(sorted(out[rule][outcome].items())) for outcome in sorted(out[rule])}
            for rule in sorted(out)
        }

    def _rule(self, number: int, outcome: str) -> str:
        if outcome == _ADDED:
            return DECLARED
        action = self.profile.actions.get(BaseTag(number))
        return NOT_ALLOWED if action is None else action.name.lower()


def totals(counts: Counts) -> dict[str, int]:
    """Elements by outcome."""
    out = dict.fromkeys(map(str, Outcome), 0)
    for outcomes in counts.values():
        for outcome, names in outcomes.items():
            out[outcome] += sum(names.values())
    return out


def _outcome(
    stored: DataElement | RawDataElement, action: Action | None, after: DataElement | RawDataElement | None
) -> str:
    if after is None:
        return _REMOVED
    if action is Action.NESTED:
        return _CHANGED
    if type(stored.value) is bytes and type(after.value) is bytes and stored.value == after.value:
        return _KEPT  # without a copy of the pixels
    return _KEPT if _text(stored) == _text(after) else _CHANGED


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
