"""What a treatment site asks of a case: its structures, names, prescription levels and clinical limits.

A site is one file `conf/rt_dose/sites/<name>.yaml`. An experiment carries its whole site, so that a checkpoint can be
used years later with the channel order it was trained with, whatever the file says then.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from med_assets.dicom.structure_names import Match, Vocabulary, closest, match_rois
from med_assets.errors import ConfigurationError
from med_assets.metrics.dvh_criteria import Criterion
from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.programs.rt_dose.vocabulary import TEXTS
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import digest, read_yaml
from med_assets.storage.names import OPTION

if TYPE_CHECKING:
    from med_assets.dicom.rtplan import OrganLimit, Plan

PRESENTATION: JsonDict = {"affects_result": False}
"""Marks a field that changes no weight of a network, so that it stays out of the hash of an experiment."""

CONSTRAINT_COUNT = 13
"""Length of the vector of planning constraints that conditions the networks: 3 target levels and 10 limits."""

VOLUME_SCALE_CC = 500.0
"""Volumes in the constraint vector are divided by this, so that all entries are of order one."""

SAME_LEVEL_GY = 0.05
"""Difference of two dose levels that a plan and a site may write of the same one, Gy."""

BODY, DOSE_MASK = "body", "dose_mask"
"""What the outline of the patient and the region that may receive dose are called beside the structures of a site."""

_CONFORMITY = re.compile(r"CI(?P<percent>\d+(\.\d+)?)%Rx")


def conformity_share(name: str) -> float | None:
    """Return of a criterion such as CI95%Rx the percentage of the prescribed dose, None for any other."""
    match = _CONFORMITY.fullmatch(name)
    return float(match["percent"]) if match else None


def stand_in(structure: str, pattern: str) -> str:
    """Return the name that an ROI gets at intake whose own name matches a pattern, since that may hold more than the structure."""
    return f"{structure} by pattern {digest(pattern)[:8]}"


Gy = Annotated[float, Field(gt=0, description="dose, Gy")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Frozen):
    """One line of the table of clinical limits."""

    structure: str = Field(description="structure that the limit is for")
    metric: str = Field(
        description="D95, D99, Dmean, Dmax, D0.1cc (Gy), Vx (% or cc of the structure at x Gy or more), Vx%Rx (the same at x % of "
        "the prescribed dose or more) or HI (homogeneity index, 1)"
    )
    bound: Literal["min", "max"] = Field(description="whether the value is the least or the most allowed")
    value: float = Field(description="the limit, in `unit`")
    unit: Literal["Gy", "%", "cc", "1"] = Field(description="unit of `value` and of the metric")

    @property
    def criterion(self) -> Criterion:
        """How the limited value is computed."""
        return Criterion.parse(self.metric, "cc" if self.unit == "cc" else "%")

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        if self.criterion.unit != self.unit:
            raise ValueError(
                f"{self.metric} of {self.structure} is in {self.criterion.unit} and its limit in {self.unit}; correct the unit"
            )
        return self


class Constraint(_Frozen):
    """One planning constraint of the conditioning vector, before scaling."""

    meaning: str = Field(description="what the number limits, for people")
    kind: Literal["fraction", "dose_gy", "volume_cc"] = Field(
        description="fraction is used as it is, dose_gy is divided by the prescription, volume_cc by 500"
    )
    value: float = Field(description="the number, in the unit that `kind` says")
    structures: tuple[str, ...] = Field(
        default=(),
        description="organs whose limit in the plan of a case comes before `value`; the strictest of several",
        json_schema_extra=PRESENTATION,
    )
    metric: str | None = Field(
        default=None,
        description="what that limit is of: Dmax (Gy), or Vx or Vx%Rx (the share of the organ)",
        json_schema_extra=PRESENTATION,
    )

    @model_validator(mode="after")
    def _a_plan_can_state_it(self) -> Self:
        if bool(self.structures) != (self.metric is not None):
            raise ValueError(f"{self.meaning}: expected structures and metric together, got one without the other")
        if self.metric is not None:
            kind = Criterion.parse(self.metric).kind
            fits = {"max": "dose_gy", "volume_at_dose": "fraction", "volume_at_share": "fraction"}.get(kind)
            if fits != self.kind:
                raise ValueError(
                    f"{self.meaning}: expected metric Dmax of kind dose_gy, or Vx or Vx%Rx of kind fraction, which a plan can state, got "
                    f"{self.metric} of kind {self.kind}"
                )
        return self

    def stated(self, limits: Sequence["OrganLimit"], prescription_gy: float) -> float | None:
        """Return the strictest value that limits of its organs state, in the unit of `kind`; None where none does."""
        criterion = Criterion.parse(self.metric or "Dmax")
        if criterion.kind == "max":
            found = [one.any_part_gy for one in limits if one.any_part_gy is not None]
            return min(found, default=None)
        level = criterion.amount or 0.0
        if criterion.kind == "volume_at_share":
            level *= prescription_gy / 100
        same = [one for one in limits if one.dose_gy is not None and abs(one.dose_gy - level) <= SAME_LEVEL_GY]
        return min((one.percent / 100 for one in same if one.percent is not None), default=None)


class VolumeObjective(_Frozen):
    """A part of an organ that the DVH-aware loss keeps below a dose."""

    structure: str = Field(description="organ at risk")
    dose_gy: Gy = Field(description="dose level, Gy")
    fraction: float = Field(
        ge=0, le=1, description="largest fraction of the organ allowed at that dose or above, 0 to 1"
    )


class BeamPlan(_Frozen):
    """How the crude plan of a case is made that a network may see; see `beams`."""

    gantry_deg: tuple[float, ...] = Field(
        min_length=1, description="gantry angles of the site's technique, IEC 61217, deg; an arc by angles along it"
    )
    iterations: int = Field(ge=0, description="steps of the optimisation of the fluences, count")
    organ_weight: float = Field(ge=0, description="weight of dose in organs at risk, against 1 in the targets")
    elsewhere_weight: float = Field(ge=0, description="weight of dose in other voxels of the body")


class Site(_Frozen):
    """A treatment site: names, levels and limits. Bit k of a mask and channel 1 + k are `structures[k]`."""

    name: str = Field(description="name of the site, the name of its file")
    title: str = Field(description="name for people", json_schema_extra=PRESENTATION)
    structures: tuple[str, ...] = Field(
        description="structures in channel order, at most 16", min_length=1, max_length=16
    )
    targets: dict[str, Gy] = Field(description="target structures and their prescribed dose, Gy; highest first")
    required: tuple[str, ...] = Field(
        description="structures without which a case is rejected", json_schema_extra=PRESENTATION
    )
    expected: tuple[str, ...] = Field(
        default=(), description="structures that every case should have", json_schema_extra=PRESENTATION
    )
    expected_missing: Literal["exclude", "refuse"] = Field(
        default="exclude",
        description="what an expected structure that is missing costs: its own metrics (a warning names it), or the case",
        json_schema_extra=PRESENTATION,
    )
    min_dose_coverage: float = Field(
        default=0.98,
        ge=0,
        le=1,
        description="share of the body that the dose grid covers at least, else a warning",
        json_schema_extra=PRESENTATION,
    )
    target_mean_ratio: tuple[float, float] = Field(
        default=(0.85, 1.15),
        description="mean dose of the main target / prescription of an acceptable plan, lowest and highest",
        json_schema_extra=PRESENTATION,
    )
    dose_max_ratio: tuple[float, float] = Field(
        default=(0.9, 1.4),
        description="highest dose / prescription of an acceptable plan, lowest and highest",
        json_schema_extra=PRESENTATION,
    )
    oars: tuple[str, ...] = Field(description="organs at risk among the structures")
    left_right: tuple[tuple[str, str], ...] = Field(
        description="pairs that swap when a patient is mirrored left to right"
    )
    synonyms: dict[str, tuple[str, ...]] = Field(
        description="ROI names that mean a structure; compared without case, spaces, '_', '-' and 'gy'",
        json_schema_extra=PRESENTATION,
    )
    tg263: dict[str, str] = Field(
        default={},
        description="name of each structure in the nomenclature of AAPM TG-263, which matches it and is proposed to people",
        json_schema_extra=PRESENTATION,
    )
    patterns: dict[str, tuple[str, ...]] = Field(
        default={},
        description="regular expressions, without regard to case, that the whole name of a structure's ROI matches; used where no "
        "ROI has one of its names, the first that fits",
        json_schema_extra=PRESENTATION,
    )
    preferred: dict[str, tuple[str, ...]] = Field(
        default={},
        description="which ROI is taken where several have a name of the structure: the first of these that is there",
        json_schema_extra=PRESENTATION,
    )
    body_synonyms: tuple[str, ...] = Field(
        description="ROI names of the outline of the patient, the first that is there", json_schema_extra=PRESENTATION
    )
    dose_mask_synonyms: tuple[str, ...] = Field(
        description="ROI names of the region that may receive dose, used in place of the body; the first that is there",
        json_schema_extra=PRESENTATION,
    )
    default_prescription_gy: Gy | None = Field(
        description="prescription when the plan states none, Gy; null rejects such a case",
        json_schema_extra=PRESENTATION,
    )
    crop_margin_mm: float = Field(
        ge=0, description="margin kept around all structures along z, mm", json_schema_extra=PRESENTATION
    )
    crop_inplane_mm: float | None = Field(
        gt=0, description="side of the kept square in y and x, mm; null keeps all", json_schema_extra=PRESENTATION
    )
    limits: tuple[Limit, ...] = Field(description="clinical limits that reports check", json_schema_extra=PRESENTATION)
    criteria: dict[str, tuple[str, ...]] = Field(
        default={},
        description="further DVH rows by structure: those of limits, and CIx%Rx, Paddick's conformity index at x % of the prescribed dose",
        json_schema_extra=PRESENTATION,
    )
    gamma: tuple[GammaSettings, ...] = Field(
        default=(GammaSettings(),),
        min_length=1,
        description="criteria and sampling of gamma; plots show the first",
        json_schema_extra=PRESENTATION,
    )
    beam_plan: BeamPlan = Field(
        description="crude plan of each case, an input of networks that use it", json_schema_extra=PRESENTATION
    )
    constraint_targets: tuple[tuple[str, Gy], ...] = Field(
        description="the 3 target levels of the constraint vector, Gy"
    )
    constraint_limits: tuple[Constraint, ...] = Field(description="the 10 limits of the constraint vector")
    dvh_volumes: tuple[VolumeObjective, ...] = Field(description="volumes that the DVH-aware loss limits")
    dvh_means: tuple[str, ...] = Field(description="organs whose mean dose the DVH-aware loss keeps from rising")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = set(self.structures)
        if len(known) != len(self.structures):
            raise ValueError("structures must be distinct")
        used = {
            "targets": set(self.targets),
            "required": set(self.required),
            "expected": set(self.expected),
            "oars": set(self.oars),
            "left_right": {name for pair in self.left_right for name in pair},
            "synonyms": set(self.synonyms),
            "tg263": set(self.tg263),
            "patterns": set(self.patterns),
            "preferred": set(self.preferred),
            "criteria": set(self.criteria),
            "limits": {limit.structure for limit in self.limits},
            "constraint_limits": {name for limit in self.constraint_limits for name in limit.structures},
            "dvh_volumes": {objective.structure for objective in self.dvh_volumes},
            "dvh_means": set(self.dvh_means),
        }
        for where, names in used.items():
            if unknown := sorted(names - known):
                raise ValueError(f"{where} names {unknown}, which are not in structures")
        if not self.targets:
            raise ValueError("a site needs at least one target")
        count = len(self.constraint_targets) + len(self.constraint_limits)
        if count != CONSTRAINT_COUNT:
            raise ValueError(
                f"constraint_targets and constraint_limits must hold {CONSTRAINT_COUNT} together, found {count}"
            )
        return self

    @model_validator(mode="after")
    def _all_can_be_computed(self) -> Self:
        self.match(())
        for structure, texts in self.patterns.items():
            for pattern in texts:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"patterns of {structure}: {pattern!r} is no regular expression: {error}"
                    ) from error
        for structure, names in self.criteria.items():
            for name in names:
                try:
                    conformity_share(name) or Criterion.parse(name)
                except ValueError as error:
                    raise ValueError(f"criteria of {structure}: {error}") from error
        repeated = [name for name, count in Counter(one.name for one in self.gamma).items() if count > 1]
        if repeated:
            raise ValueError(f"gamma must have each criterion once, found {repeated} several times")
        return self

    def match(self, names: Sequence[str]) -> Match:
        """Return which of the ROI names that intake stored is which structure; BODY and DOSE_MASK are two beside the site's."""
        outlines = {BODY: self.body_synonyms, DOSE_MASK: self.dose_mask_synonyms}
        stand_ins = {name: tuple(stand_in(name, one) for one in found) for name, found in self.patterns.items()}
        synonyms = {name: (*self.synonyms.get(name, ()), *self._tg263(name)) for name in self.structures} | outlines
        return match_rois(names, synonyms, {**self.preferred, **outlines}, stand_ins)

    def proposals(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Return the ROI names, as senders wrote them, that match no structure, each with the structures that it may mean."""
        vocabulary = self.vocabulary()
        known = {name: (*self.synonyms.get(name, ()), *self._tg263(name)) for name in self.structures}
        found = []
        for name in names:
            if vocabulary.kept(name) is None:
                close = [f"{one} (as {best})" for one, best in closest(name, known)[:2]]
                standard = [f"{self.tg263[one]} in TG-263" for one, _ in closest(name, known)[:1] if one in self.tg263]
                found.append((name, "; ".join([" or ".join(close), *standard]) if close else ""))
        return found

    def _tg263(self, structure: str) -> tuple[str, ...]:
        return (self.tg263[structure],) if structure in self.tg263 else ()

    def vocabulary(self) -> Vocabulary:
        """Return the ROI names that mean something at this site; what matches a pattern is replaced by its stand-in."""
        groups = (
            self.structures,
            tuple(self.tg263.values()),
            *self.synonyms.values(),
            self.body_synonyms,
            self.dose_mask_synonyms,
        )
        patterns = tuple((one, stand_in(name, one)) for name, found in self.patterns.items() for one in found)
        names = {name for group in groups for name in group} | {name for _, name in patterns}
        return Vocabulary(frozenset(names), patterns=patterns, texts=TEXTS)

    def prescribed_gy(self, structure: str, prescription_gy: float) -> float:
        """Return what a plan prescribes to a structure, Gy: a target's level in proportion to the plan's, and the plan's elsewhere."""
        level = self.targets.get(structure)
        return prescription_gy if level is None else level * prescription_gy / self.targets[self.main_target]

    @property
    def channels(self) -> int:
        """Channels of the network input without the crude plan: CT and one signed distance per structure."""
        return 1 + len(self.structures)

    @property
    def main_target(self) -> str:
        """The target with the highest prescribed dose."""
        return max(self.targets, key=lambda name: self.targets[name])

    def constraints(
        self, present: Sequence[str], prescription_gy: float, stated: Mapping[str, float] | None = None
    ) -> list[float]:
        """Return the 13 dimensionless planning constraints of a case; `stated` holds those of its own plan, see `stated_by`.

        Target levels are divided by the prescription, 0 when the target is absent; limits are scaled by their kind.
        """
        own = stated or {}
        levels = [
            own.get(name, gy) / prescription_gy if name in present else 0.0 for name, gy in self.constraint_targets
        ]
        scale = {"fraction": 1.0, "dose_gy": prescription_gy, "volume_cc": VOLUME_SCALE_CC}
        limits = self.constraint_limits
        return levels + [own.get(limit.meaning, limit.value) / scale[limit.kind] for limit in limits]

    def stated_by(self, plan: "Plan", structures: Mapping[int, str], prescription_gy: float) -> dict[str, float]:
        """Return the constraints that a plan states itself: levels of targets, Gy, by name, and limits, in the unit of their kind, by meaning.

        `structures` are the site's by the ROI number that the plan names.
        """
        own: dict[str, float] = {}
        names = {name for name, _ in self.constraint_targets}
        for roi, gy in plan.target_prescriptions:
            if roi is not None and (name := structures.get(roi)) in names:
                own[name] = max(gy, own.get(name, 0.0))
        for limit in self.constraint_limits:
            of_it = [one for one in plan.organ_limits if structures.get(one.roi_number) in limit.structures]
            if of_it and (value := limit.stated(of_it, prescription_gy)) is not None:
                own[limit.meaning] = value
        return own

    def mirrored(self) -> tuple[int, ...]:
        """Return for each structure the index of the one that takes its place when x is flipped."""
        order = {name: index for index, name in enumerate(self.structures)}
        for left, right in self.left_right:
            order[left], order[right] = order[right], order[left]
        return tuple(order[name] for name in self.structures)


def site_names(conf_root: Path | None = None) -> tuple[str, ...]:
    """Return the names of the sites under `conf/rt_dose/sites`, sorted."""
    return tuple(sorted(path.stem for path in (conf_folder("rt_dose", conf_root) / "sites").glob("*.yaml")))


def load_site(name: str, conf_root: Path | None = None) -> Site:
    """Read and check `conf/rt_dose/sites/<name>.yaml`. Raises ConfigurationError, naming the field that is wrong."""
    path = conf_folder("rt_dose", conf_root) / "sites" / f"{OPTION.check(name)}.yaml"
    if not path.is_file():
        known = ", ".join(site_names(conf_root)) or "none"
        raise ConfigurationError(f"no site named {name!r} in conf/rt_dose/sites; known: {known}")
    content: Any = read_yaml(path)
    try:
        return Site.model_validate(content)
    except (ValidationError, ConfigurationError) as error:
        raise ConfigurationError(f"conf/rt_dose/sites/{name}.yaml: {error}") from error
