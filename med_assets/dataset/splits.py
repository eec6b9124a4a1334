"""Sticky, patient-safe assignment of patients to train, validation and test.

A patient's split is derived from a hash of the patient's pseudonym, so it depends on nothing else: not on who came before,
not on the order of arrival. What was once assigned is kept as recorded, even when the policy changes later.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from med_assets import program
from med_assets.errors import CaseRejected
from med_assets.records import DatasetCase, SplitAssignment

SPLITS = ("train", "val", "test", "external")
GIVEN = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
    "external": "external",
}


class SplitPolicy(BaseModel):
    """How patients are assigned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["hashed", "given", "fixed"] = Field(
        "hashed", description="a hash of the patient, the split given in the data, or a fixed list"
    )
    val_fraction: float = Field(0.15, ge=0, lt=1, description="share of patients for validation, 0..1")
    test_fraction: float = Field(0.15, ge=0, lt=1, description="share of patients for the test set, 0..1")
    folds: int = Field(5, ge=2, description="number of cross-validation folds among all patients")
    salt: str = Field("med_assets", description="changes the hash; once patients are assigned it changes new ones only")
    fixed: Mapping[str, str] = Field(default_factory=dict, description="patient pseudonym to split, for policy 'fixed'")

    @model_validator(mode="after")
    def _leaves_some_for_training(self) -> "SplitPolicy":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self


def split_policy(program_name: str) -> SplitPolicy:
    """The policy in `conf/<program>/_program.yaml`."""
    return SplitPolicy.model_validate(program.config(program_name).get("splits", {}))


def hash_fraction(patient_id: str, salt: str) -> float:
    """Uniform number in [0, 1) that depends on the patient and the salt only."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{patient_id}".encode()).digest()[:8], "big") / 2**64


def _assign(patient_id: str, given: str | None, policy: SplitPolicy) -> tuple[str, str]:
    if policy.policy == "fixed" and patient_id in policy.fixed:
        return policy.fixed[patient_id], "fixed"
    if policy.policy == "given":
        if not given or given not in GIVEN:
            raise CaseRejected(
                "no_given_split", f"expected a split given in the data (one of {sorted(GIVEN)}), got {given!r}"
            )
        return GIVEN[given], "given"
    if given == "external":  # an external test set is never assigned to training
        return "external", "given"
    fraction = hash_fraction(patient_id, policy.salt)
    if fraction < policy.test_fraction:
        return "test", "hashed"
    return ("val" if fraction < policy.test_fraction + policy.val_fraction else "train"), "hashed"


def assign(
    program: str,
    cases: Iterable[DatasetCase],
    earlier: Iterable[SplitAssignment],
    policy: SplitPolicy,
    fixed: Mapping[str, tuple[str, int]] | None = None,
) -> tuple[list[SplitAssignment], dict[str, str]]:
    """Split and fold of every patient, sorted by patient, and reasons by patient that could not be assigned.

    `earlier` assignments are kept as they are, also of patients no longer present.
    Patients whose cases carry two different given splits are not assigned. `fixed` is a program's own list for the policy
    "fixed", split and fold by patient; the policy's list comes first, and the hash decides for all others.
    """
    rows = {row.patient_id: row for row in earlier}
    given: dict[str, set[str]] = {}
    for case in cases:
        if case.patient_id not in rows:
            given.setdefault(case.patient_id, set()).add(case.given_split or "")
    problems: dict[str, str] = {}
    for patient_id in sorted(given):
        wishes = given[patient_id]
        try:
            if policy.policy == "given" and len(wishes) > 1:
                raise CaseRejected("two_given_splits", f"expected one given split per patient, got {sorted(wishes)}")
            split, how = _assign(patient_id, next(iter(wishes)), policy)
        except CaseRejected as rejected:
            problems[patient_id] = rejected.message
            continue
        fold = int(hash_fraction(patient_id, policy.salt + "|fold") * policy.folds)
        if policy.policy == "fixed" and how != "fixed" and patient_id in (fixed or {}):
            split, fold, how = *(fixed or {})[patient_id], "fixed"
        rows[patient_id] = SplitAssignment(
            program=program, patient_id=patient_id, split=split, fold=fold, assigned_by=how
        )
    return [rows[patient_id] for patient_id in sorted(rows)], problems
