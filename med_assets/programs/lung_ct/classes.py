"""Which classes an experiment trains, and how the labels of a case become them.

A mapping names labels of the source by their value there, by name or by coded concept. The order of segments in a file, and
the number of a name that intake did not know (`UNRECOGNISED_<k>`), say nothing and match nothing.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct import labels
from med_assets.programs.lung_ct.experiment import Labels
from med_assets.programs.lung_ct.labels import UNLABELLED
from med_assets.programs.lung_ct.prepared import PreparedCase, SourceLabel

BACKGROUND = 0

_CONCEPT = re.compile(r"[A-Za-z0-9_]+:[A-Za-z0-9._-]+\Z")


@dataclass(frozen=True)
class Relabelling:
    """A case's labels as the experiment counts them: the classes asked for, and by position in its combinations the class."""

    classes: tuple[int, ...]
    table: np.ndarray

    def __call__(self, sources: np.ndarray) -> np.ndarray:
        """Return the classes uint8 of an array of positions in the case's combinations."""
        changed: np.ndarray = self.table[np.asarray(sources)]
        return changed


def matches(label: SourceLabel, key: int | str) -> bool:
    """Whether a mapping's first entry means this label: its value in the source, its coded concept, or its name.

    Names of one class are the same name, so that `lung tumor` is a source's `GTV` too.
    """
    if isinstance(key, int):
        return label.value == key
    if _CONCEPT.match(key):
        return label.concept == key
    class_id = labels.class_of(key)
    return label.class_id == class_id if class_id is not None else labels.compared(label.name) == labels.compared(key)


def target_of(value: int | str) -> int:
    """Return the class id that a mapping's second entry means, an id or a name. Raises ConfigurationError."""
    return labels.check_target(labels.resolve(value) if isinstance(value, str) else value)


def mapped(case: PreparedCase, settings: Labels) -> dict[int, int]:
    """Return the class id by source value of the labels that a mapping takes, in the order of the mapping.

    Raises ConfigurationError where one label is mapped to two classes.
    """
    found: dict[int, int] = {}
    for key, value in settings.mapping:
        target = target_of(value)
        for label in case.labels:
            if matches(label, key) and found.setdefault(label.value, target) != target:
                raise ConfigurationError(
                    f"case {case.case_id}: labels.mapping gives source value {label.value} the classes {found[label.value]} and "
                    f"{target}; name each label once, by value, name or concept"
                )
    return found


def relabelling(case: PreparedCase, settings: Labels) -> Relabelling:
    """Return the relabelling of one case.

    In a mapping, labels that it does not take are background; where those that it takes overlap the workspace's target wins,
    then the earlier pair. What is declared unlabelled stays so where no label with a class is. Raises ConfigurationError.
    """
    classes = {label.value: label.class_id for label in case.labels if label.class_id is not None}
    unlabelled = {value: UNLABELLED for value, class_id in classes.items() if class_id == UNLABELLED}
    named = {value: class_id for value, class_id in classes.items() if class_id != UNLABELLED}
    if settings.mode == "mapping":
        wanted = mapped(case, settings)
        asked = tuple(sorted({target_of(value) for _, value in settings.mapping}))
    elif settings.mode == "target":
        wanted, asked = {value: one for value, one in named.items() if one == case.target_id}, (case.target_id,)
    else:
        # The target is what every case is labelled for, so a case without it is asked for it too.
        wanted, asked = named, tuple(sorted({*case.names, case.target_id} - {BACKGROUND, UNLABELLED}))
    rank = {value: (class_id != case.target_id, place) for place, (value, class_id) in enumerate(wanted.items())}
    table = np.zeros(len(case.combinations), dtype=np.uint8)
    for index, values in enumerate(case.combinations):
        taken = sorted((value for value in values if value in wanted), key=rank.__getitem__)
        if taken:
            table[index] = wanted[taken[0]]
        elif any(value in unlabelled for value in values) and not any(value in named for value in values):
            table[index] = UNLABELLED
    return Relabelling(asked, table)


def check_mapping(cases: Sequence[PreparedCase], settings: Labels) -> list[str]:
    """Return what a user should know of a mapping: labels that some cases lack, and labels that it leaves out.

    Raises ConfigurationError when it names a class that can't be trained, a label that no case has, or one without a voxel.
    """
    if settings.mode != "mapping":
        return []
    warnings = []
    there = sorted({label.value for case in cases for label in case.labels})
    for key, value in settings.mapping:
        target_of(value)
        hit = {case.case_id: [label for label in case.labels if matches(label, key)] for case in cases}
        if not any(hit.values()):
            raise ConfigurationError(
                f"expected labels.mapping to name labels of the source, got {key!r}, which no case has; they have the values "
                f"{there} ({_names(cases)})"
            )
        voxels = {case_id: sum(label.voxels for label in found) for case_id, found in hit.items()}
        if not any(voxels.values()):
            raise ConfigurationError(
                f"expected labels.mapping to name labels with voxels, got {key!r}, which is empty in all {len(cases)} cases"
            )
        if absent := sorted(case_id for case_id, count in voxels.items() if not count):
            warnings.append(
                f"labels.mapping: {key!r} has no voxel in {len(absent)} of {len(cases)} cases: {', '.join(absent)}"
            )
        called = Counter(_called(label) for found in hit.values() for label in found if label.voxels)
        if isinstance(key, int) and len(called) > 1:
            counts = ", ".join(f"{name} in {n} cases" for name, n in sorted(called.items()))
            warnings.append(
                f"labels.mapping: source value {key} is not the same label everywhere ({counts}); map it by name or concept"
            )
    left: dict[int, list[SourceLabel]] = {}
    for case in cases:
        taken = mapped(case, settings)
        for label in case.labels:
            if label.value not in taken and label.class_id != UNLABELLED and label.voxels:
                left.setdefault(label.value, []).append(label)
    return warnings + [
        f"labels.mapping leaves out source value {value} ({', '.join(sorted({one.name for one in found}))}): "
        f"{sum(one.voxels for one in found)} voxels in {len(found)} of {len(cases)} cases are background"
        for value, found in sorted(left.items())
    ]


def _called(label: SourceLabel) -> str:
    """The class of a label, or its name; the numbers of names that intake does not know say nothing."""
    if label.class_id is not None:
        return labels.meaning(label.class_id)
    return "a name without a class" if label.name.startswith("UNRECOGNISED_") else label.name


def _names(cases: Sequence[PreparedCase]) -> str:
    """The labels of all cases as `2 lung tumor, 3 heart`."""
    return ", ".join(
        f"{value} {name}" for value, name in sorted({(one.value, one.name) for case in cases for one in case.labels})
    )
