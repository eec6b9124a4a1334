"""Whose scans are cases: the classes, the one rule by which a participant's scan is chosen, and what a whole cohort looks like."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from med_assets.catalog import Case
from med_assets.errors import ConfigurationError
from med_assets.experiments.parts import Settings
from med_assets.programs.retinal_oct.vocabulary import CLASSES, TEXTS
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import read_yaml

CONF = "_cohort.yaml"
SPLITS = ("train", "val", "test")
COHORTS = ("whole", "partial")
"""Values of MED_ASSETS_RETINAL_OCT_COHORT: whole must have the expected counts, partial need not."""


class View(Settings):
    """Which scan of a participant: all that decides it."""

    device: str = Field(description="folder of the device under retinal_oct/structural_oct")
    protocol: str = Field(description="protocol of manifest.tsv")
    eye: Literal["R", "L"] = Field(description="laterality of manifest.tsv")
    other_eye: bool = Field(description="whether the other eye is taken where this one was not scanned")

    @field_validator("protocol")
    @classmethod
    def _survives_intake(cls, protocol: str) -> str:
        known = sorted(TEXTS["ClinicalTrialSeriesID"])
        if protocol not in known:
            raise ValueError(f"expected a protocol that intake keeps, one of {known}, got {protocol!r}")
        return protocol

    def choose(self, rows: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
        """Return the one row of a participant's manifest that is this view, None where there is none; in any order of rows."""
        mine = [one for one in rows if one["protocol"] == self.protocol and f"/{self.device}/" in one["filepath"]]
        eyes = (self.eye, "L" if self.eye == "R" else "R") if self.other_eye else (self.eye,)
        for eye in eyes:
            if found := [one for one in mine if one["laterality"] == eye]:
                return min(found, key=lambda one: (one["content_time"], one["sop_instance_uid"]))
        return None


class Cohort(Settings):
    """`conf/retinal_oct/_cohort.yaml`."""

    classes: dict[str, str] = Field(description="study_group of participants.tsv by the name of its class, in order")
    sites: tuple[str, ...] = Field(description="clinical sites")
    min_located: float = Field(
        gt=0, le=1, description="least share of participants whose labelled scan is located, 0 to 1"
    )
    labelled: View = Field(description="the scan that is classified")
    unlabelled: tuple[View, ...] = Field(description="scans that are pretrained on alone")
    expected: dict[str, tuple[int, ...]] = Field(
        description="participants by split, in the order of the classes, count"
    )

    @model_validator(mode="after")
    def _is_known_to_intake(self) -> Self:
        if tuple(self.classes) != CLASSES:
            raise ValueError(f"expected the classes {CLASSES} in this order, got {tuple(self.classes)}")
        if other := set(self.sites) - TEXTS["ClinicalTrialSiteName"]:
            raise ValueError(f"expected sites that intake keeps, {sorted(TEXTS['ClinicalTrialSiteName'])}; got {other}")
        if set(self.expected) != set(SPLITS) or any(len(one) != len(CLASSES) for one in self.expected.values()):
            raise ValueError(f"expected {len(CLASSES)} counts for each of {SPLITS}")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """All scans that are taken of a participant, the labelled one first."""
        return (self.labelled, *self.unlabelled)


def cohort() -> Cohort:
    """Read the file. Raises ConfigurationError that names it and the field."""
    try:
        return Cohort.model_validate(read_yaml(conf_folder("retinal_oct") / CONF))
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(f"conf/retinal_oct/{CONF}: {error}") from error


def objections(cases: Sequence[Case], rules: Cohort, *, whole: bool) -> list[str]:
    """Return what is wrong with the labelled cases in their splits, in words.

    Every site and every class must be in every split; a `whole` cohort also has the expected counts, of each split at least
    `min_located` of each class and no more than there are.
    """
    labelled = [case for case in cases if case.facts["protocol"] == rules.labelled.protocol]
    messages = []
    for name, wanted in (("site", rules.sites), ("study_group", CLASSES)):
        present = {(case.split, case.facts[name]) for case in labelled}
        for split in SPLITS:
            absent = [one for one in wanted if (split, one) not in present]
            if absent:
                what = "sites" if name == "site" else "classes"
                messages.append(
                    f"expected all {what} in {split}, got none of {', '.join(absent)}; import their participants too"
                )
    if whole:
        counts = Counter((case.split, case.facts["study_group"]) for case in labelled)
        for split, numbers in rules.expected.items():
            for group, expected in zip(CLASSES, numbers, strict=True):
                found = counts[split, group]
                if not rules.min_located * expected <= found <= expected:
                    messages.append(
                        f"expected {expected} participants of {group} in {split} (at least {rules.min_located:.0%}), got {found}"
                    )
        if messages:
            messages.append(
                "see what was skipped, or set MED_ASSETS_RETINAL_OCT_COHORT=partial for a part of the cohort"
            )
    return messages
