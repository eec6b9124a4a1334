"""What a treatment site asks of a case: its structures, names, prescription levels and clinical limits.

A site is one file `conf/rt_dose/sites/<name>.yaml`. An experiment carries its whole site, so that a checkpoint can be
used years later with the channel order it was trained with, whatever the file says then.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from med_assets.errors import ConfigurationError
from med_assets.experiments import conf_folder
from med_assets.files import read_yaml

PRESENTATION: JsonDict = {"affects_result": False}
"""Marks a field that changes no weight of a network, so that it stays out of the hash of an experiment."""

CONSTRAINT_COUNT = 13
"""Length of the vector of planning constraints that conditions the networks: 3 target levels and 10 limits."""

VOLUME_SCALE_CC = 500.0
"""Volumes in the constraint vector are divided by this, so that all entries are of order one."""

Gy = Annotated[float, Field(gt=0, description="dose, Gy")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Frozen):
    """One line of the table of clinical limits."""

    structure: str = Field(description="structure that the limit is for")
    metric: str = Field(
        description="D95, D99, Dmean, Dmax, D0.1cc (Gy) or Vx (% or cc of the structure at x Gy or more)"
    )
    bound: Literal["min", "max"] = Field(description="whether the value is the least or the most allowed")
    value: float = Field(description="the limit, in `unit`")
    unit: Literal["Gy", "%", "cc"] = Field(description="unit of `value` and of the metric")


class Constraint(_Frozen):
    """One planning constraint of the conditioning vector, before scaling."""

    meaning: str = Field(description="what the number limits, for people")
    kind: Literal["fraction", "dose_gy", "volume_cc"] = Field(
        description="fraction is used as it is, dose_gy is divided by the prescription, volume_cc by 500"
    )
    value: float = Field(description="the number, in the unit that `kind` says")


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
    oars: tuple[str, ...] = Field(description="organs at risk among the structures")
    left_right: tuple[tuple[str, str], ...] = Field(
        description="pairs that swap when a patient is mirrored left to right"
    )
    synonyms: dict[str, tuple[str, ...]] = Field(
        description="ROI names that mean a structure; compared without case, spaces, '_', '-' and 'gy'",
        json_schema_extra=PRESENTATION,
    )
    body_synonyms: tuple[str, ...] = Field(
        description="ROI names of the outline of the patient", json_schema_extra=PRESENTATION
    )
    dose_mask_synonyms: tuple[str, ...] = Field(
        description="ROI names of the region that may receive dose, used in place of the body",
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
            "oars": set(self.oars),
            "left_right": {name for pair in self.left_right for name in pair},
            "synonyms": set(self.synonyms),
            "limits": {limit.structure for limit in self.limits},
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

    @property
    def channels(self) -> int:
        """Channels of the network input without the crude plan: CT and one signed distance per structure."""
        return 1 + len(self.structures)

    @property
    def main_target(self) -> str:
        """The target with the highest prescribed dose."""
        return max(self.targets, key=lambda name: self.targets[name])

    def constraints(self, present: tuple[str, ...] | list[str], prescription_gy: float) -> list[float]:
        """Return the 13 dimensionless planning constraints of a case.

        Target levels are divided by the prescription, 0 when the target is absent; limits are scaled by their kind.
        """
        levels = [gy / prescription_gy if name in present else 0.0 for name, gy in self.constraint_targets]
        scale = {"fraction": 1.0, "dose_gy": prescription_gy, "volume_cc": VOLUME_SCALE_CC}
        return levels + [limit.value / scale[limit.kind] for limit in self.constraint_limits]

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
    path = conf_folder("rt_dose", conf_root) / "sites" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(site_names(conf_root)) or "none"
        raise ConfigurationError(f"no site named {name!r} in conf/rt_dose/sites; known: {known}")
    content: Any = read_yaml(path)
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"conf/rt_dose/sites/{name}.yaml: {error}") from error
