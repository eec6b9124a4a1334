"""The two confidentiality profiles, and which of them a program of a home has: `strict`, the default, or `research`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pydicom.dataset import Dataset

from med_assets.deidentification.profile import ALLOWED, FIXED_VALUES, METHODS, Action, profile
from med_assets.deidentification.research import TEXTS, closed, research
from med_assets.dicom.elements import text
from med_assets.dicom.undecoded import tag_of
from med_assets.settings import Settings
from med_assets.storage.names import DEIDENTIFICATION
from med_assets.storage.versions import version_of


@dataclass(frozen=True)
class Profile:
    """What happens to each element (`actions`, by tag), which values may stay beyond KNOWN_VALUES, and how objects declare it."""

    name: str
    version: str
    method: str
    """DeidentificationMethod (0012,0063), which names profile and version."""
    options: tuple[tuple[str, str], ...]
    """DeidentificationMethodCodeSequence (0012,0064), code and meaning of context group 7050 of PS3.16."""
    actions: Mapping[int, Action] = field(repr=False)
    texts: Mapping[str, frozenset[str]] = field(repr=False, default_factory=dict)
    """Values of text elements beyond KNOWN_VALUES."""
    closed: Mapping[str, frozenset[str]] = field(repr=False, default_factory=dict)
    """All values of elements beyond the strict profile that can be listed, which the residual scan holds them against."""

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    @cached_property
    def keeps_descriptions(self) -> bool:
        """Whether words of descriptions stay."""
        return Action.WORDS in self.actions.values()

    def fixed(self, keyword: str) -> str:
        """The text that replaces whatever an element of Action.FIXED has."""
        return self.method if keyword == "DeidentificationMethod" else FIXED_VALUES[keyword]


STRICT = Profile(
    "strict",
    version_of(profile),
    FIXED_VALUES["DeidentificationMethod"],
    METHODS,
    ALLOWED,
)
"""The allow-list of `profile`."""

_RESEARCH_VERSION = f"{version_of(research)}.{version_of(profile)}"
"""A rule of the strict profile that changes, changes this one too."""

RESEARCH = Profile(
    "research",
    _RESEARCH_VERSION,
    f"med_assets research profile {_RESEARCH_VERSION}",
    (*METHODS, ("113108", "Retain Patient Characteristics Option")),
    {tag_of(tag): action for tag, action in research().items()},
    TEXTS,
    closed(),
)
"""The allow-list with what `research` keeps more."""

PROFILES: Mapping[str, Profile] = {STRICT.name: STRICT, RESEARCH.name: RESEARCH}


def profile_of(ws: Settings, program: str) -> Profile:
    """The profile that a program of a home takes cases in by."""
    return PROFILES[ws.deidentification_of(program)]


def declared_profile(ds: Dataset) -> Profile:
    """The profile that a stored object names; the strict one, under which its DeidentificationMethod is a finding, for an object that names none."""
    method = text(ds, "DeidentificationMethod")
    return next((each for each in PROFILES.values() if each.method == method), STRICT)


assert set(PROFILES) == set(DEIDENTIFICATION)
