"""Which classes an experiment trains, and how the labels of a case become them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from med_assets.errors import ConfigurationError
from med_assets.programs.lung_ct import labels
from med_assets.programs.lung_ct.experiment import Labels
from med_assets.programs.lung_ct.labels import UNLABELLED
from med_assets.programs.lung_ct.prepared import PreparedCase


@dataclass(frozen=True)
class Relabelling:
    """A case's class ids as the experiment counts them: the classes asked for, and a table from old to new value."""

    classes: tuple[int, ...]
    table: np.ndarray

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """Return the labels uint8 as the experiment counts them."""
        changed: np.ndarray = self.table[np.asarray(label)]
        return changed


def relabelling(case: PreparedCase, settings: Labels) -> Relabelling:
    """Return the relabelling of one case. Raises ConfigurationError for a mapping of labels that were not kept."""
    table = np.zeros(256, dtype=np.uint8)
    table[UNLABELLED] = UNLABELLED
    if settings.mode == "target":
        table[case.target_id] = case.target_id
        return Relabelling((case.target_id,), table)
    if settings.mode == "auto":
        # The target is what every case is labelled for, so a case without it is asked for it too.
        known = sorted({*case.names, case.target_id} - {0, UNLABELLED})
        table[known] = known
        return Relabelling(tuple(known), table)
    for source, value in settings.mapping:
        old = case.source_values.get(source)
        if source in case.source_values and old is None:
            raise ConfigurationError(
                f"case {case.case_id}: labels.mapping takes source value {source}, whose name is of no class, so that its "
                "voxels were not kept; add the name to the synonyms of conf/lung_ct/_labels.yaml and prepare again"
            )
        if old is not None:
            table[old] = value
    return Relabelling(tuple(sorted({value for _, value in settings.mapping})), table)


def check_mapping(cases: Sequence[PreparedCase], settings: Labels) -> None:
    """Raise ConfigurationError when a mapping names a class that can't be trained, or a source value that no case has."""
    there = sorted({known for case in cases for known in case.source_values})
    for source, value in settings.mapping:
        labels.check_target(value)
        if source not in there:
            raise ConfigurationError(
                f"expected labels.mapping to name values of the source labels, got {source}, which no case has; "
                f"they have {there}"
            )
