"""The rules of a profile as a table for people: each element that may stay, what happens to it, and the values it may have."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, keyword_for_tag

from med_assets.deidentification.clinical_words import CLINICAL_WORDS
from med_assets.deidentification.profile import CODE_TERMS, KNOWN_VALUES, Action
from med_assets.deidentification.profiles import STRICT, Profile


@dataclass(frozen=True)
class Rule:
    """What a profile does to an element; `values` are all texts that may stay, none where they are no list (numbers, UIDs, a program's own texts)."""

    tag: str
    keyword: str
    vr: str
    action: Action
    values: tuple[str, ...]


def rules(profile: Profile) -> Iterator[Rule]:
    """Every rule of a profile, by tag. Every element that has none is removed."""
    for tag, action in sorted(profile.actions.items()):
        keyword = keyword_for_tag(tag)
        yield Rule(
            f"({tag >> 16:04X},{tag & 0xFFFF:04X})",
            keyword,
            dictionary_VR(tag),
            action,
            tuple(sorted(_values(profile, keyword, action))),
        )


def beyond_strict(profile: Profile) -> list[Rule]:
    """The rules of a profile that the strict one does not have, or with fewer values."""
    strict = {rule.keyword: rule for rule in rules(STRICT)}
    return [rule for rule in rules(profile) if strict.get(rule.keyword) != rule]


def _values(profile: Profile, keyword: str, action: Action) -> frozenset[str]:
    match action:
        case Action.WORDS:
            return CLINICAL_WORDS
        case Action.KEEP:
            return CODE_TERMS.get(keyword, frozenset())
        case Action.FIXED:
            return frozenset({profile.fixed(keyword)})
        case _:
            return KNOWN_VALUES.get(keyword, frozenset()) | profile.closed.get(keyword, frozenset())
