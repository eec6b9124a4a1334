"""Which assets are not current: what was recorded when they were made, compared with what is there now.

Nothing here waits for an event, so none can be lost: an asset is updated whenever its inputs or its code are others
than those it was made of.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

import dagster as dg

from assets import batch_content, keys
from med_assets.storage.files import digest

DATA, CODE, INPUT = "dagster/data_version", "dagster/code_version", "dagster/input_data_version/"
"""Tags in which Dagster records the versions of a materialization; those of inputs are of the moment when its step began."""


@dataclass(frozen=True)
class Follower:
    """An asset without partitions that follows its inputs."""

    key: dg.AssetKey
    inputs: tuple[dg.AssetKey, ...]
    code_version: str | None
    waits_for_all: bool
    """Whether it can't be made before all inputs are there."""


@dataclass(frozen=True)
class Materialization:
    """The newest one of an asset."""

    at: float
    """Seconds since the epoch."""
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Situation:
    """What a Dagster instance and a home record at one moment."""

    made: Mapping[dg.AssetKey, Materialization] = field(default_factory=dict)
    closed: frozenset[dg.AssetKey] = frozenset()
    """Assets whose newest materialization has a blocking check that failed, or was not evaluated yet."""
    busy: frozenset[dg.AssetKey] = frozenset()
    """Assets that an unfinished run has yet to make."""
    by_batch: Mapping[dg.AssetKey, str] = field(default_factory=dict)
    """Present versions of the assets that are kept by batch. What is held back is not in them, so no check closes them."""
    elsewhere: Mapping[dg.AssetKey, str] = field(default_factory=dict)
    """Versions of assets that were changed on the command line since they were made here."""

    def version(self, key: dg.AssetKey) -> str | None:
        """The present version of an asset that was made."""
        return self.by_batch[key] if key in self.by_batch else self.made[key].tags.get(DATA)

    def read(self, by: Materialization, key: dg.AssetKey) -> str | None:
        """The version of an input that a materialization was made of."""
        tag = batch_content.TAG + key.path[-1] if key in self.by_batch else INPUT + key.to_user_string()
        return by.tags.get(tag)


@dataclass(frozen=True)
class Plan:
    """One run: all of its assets, and of those with which it begins the state that it is updated to."""

    assets: tuple[dg.AssetKey, ...]
    states: Mapping[dg.AssetKey, str]


def followers(assets: Iterable[dg.AssetsDefinition], program: str) -> list[Follower]:
    """The assets of a program that follow their inputs, inputs first."""
    found = {
        spec.key: Follower(
            spec.key,
            tuple(dep.asset_key for dep in spec.deps),
            spec.code_version,
            spec.tags[keys.FOLLOWS_TAG] == "all",
        )
        for asset in assets
        for spec in asset.specs
        if spec.tags.get(keys.PROGRAM_TAG) == program
        and spec.tags.get(keys.FOLLOWS_TAG)
        and spec.partitions_def is None
    }
    order = TopologicalSorter({key: one.inputs for key, one in found.items()}).static_order()
    return [found[key] for key in order if key in found]


def state_to_reach(situation: Situation, one: Follower) -> str | None:
    """A key of the versions that an asset should be made of; None if it is made of them, or can't be made yet."""
    elsewhere = situation.elsewhere.get(one.key)
    if elsewhere is not None:
        return digest(one.key.to_user_string(), one.code_version, elsewhere)
    present = [key for key in one.inputs if key in situation.made]
    if not present or (one.waits_for_all and len(present) < len(one.inputs)):
        return None
    if any(key in situation.closed for key in present):
        return None
    own, wanted = situation.made.get(one.key), {key: situation.version(key) for key in present}
    if (
        own is not None
        and own.tags.get(CODE) == one.code_version
        and all(situation.read(own, key) == version for key, version in wanted.items())
    ):
        return None
    versions = sorted((key.to_user_string(), version) for key, version in wanted.items())
    return digest(one.key.to_user_string(), one.code_version, versions)


def plan(
    situation: Situation, ordered: Sequence[Follower], may_start: Callable[[dg.AssetKey, str], bool]
) -> Plan | None:
    """The one run that brings all that is behind, and all that is made of it, up to date; None when everything is current.

    `may_start` says whether the run of an asset for a state may start, such as after others for it failed. What a run that
    goes on makes, or is made of, waits for that run, and so does all that follows from what it makes: a report would else be made once for
    a new dataset and again for its splits. A training, which follows nothing, makes only its evaluation wait.
    """
    chosen: dict[dg.AssetKey, str | None] = {}
    waiting: set[dg.AssetKey] = set()
    for one in ordered:
        coming = frozenset(key for key in one.inputs if key in chosen)
        if one.key in situation.busy or any(key in waiting for key in one.inputs):
            waiting.add(one.key)
            continue
        if any(key in situation.busy for key in one.inputs if key not in coming):
            continue
        if coming:
            if _can_be_made(situation, one, coming):
                chosen[one.key] = None
        elif (state := state_to_reach(situation, one)) and may_start(one.key, state):
            chosen[one.key] = state
    states = {key: state for key, state in chosen.items() if state}
    return Plan(tuple(sorted(chosen)), states) if states else None


def _can_be_made(situation: Situation, one: Follower, coming: frozenset[dg.AssetKey]) -> bool:
    """Whether an asset can be made in a run that makes some of its inputs, whose checks that run obeys itself."""
    others = [key for key in one.inputs if key not in coming]
    if any(key in situation.closed for key in others):
        return False
    return not one.waits_for_all or all(key in situation.made for key in others)
