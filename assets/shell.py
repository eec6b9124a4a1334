"""The one shell around every stage: names, versions, gates and metadata; the work is done in med_assets."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from assets import keys
from assets.gates import Gate
from assets.show import metadata, value
from med_assets import program
from med_assets.storage import names
from med_assets.storage.provenance import provenance
from resources.discretion import discreetly
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource

if TYPE_CHECKING:
    from med_assets.settings import Workspace
    from med_assets.storage.result import StageResult


class Overrides(dg.Config):
    """What the launchpad offers for a training: Hydra's `key=value`, such as `schedule.epochs=2`."""

    overrides: list[str] = Field(default_factory=list, description="overrides of the experiment, key=value")


@dataclass(frozen=True)
class Call:
    """One execution of a stage: the workspace, the partitions if there are any, and the means to launch a training."""

    ws: "Workspace"
    batch: str | None
    """The partition; None for an asset without partitions, and for one whose run takes several."""
    batches: tuple[str, ...]
    """All partitions of the run, oldest first."""
    overrides: tuple[str, ...]
    launcher: LauncherResource
    context: dg.AssetExecutionContext


@dataclass(frozen=True)
class Stage:
    """What distinguishes one asset from another."""

    program: str
    name: str
    description: str
    code_version: str
    run: Callable[[Call], "StageResult"]
    deps: Sequence[dg.AssetKey] = ()
    kinds: frozenset[str] = frozenset()
    gates: Sequence[Gate] = ()
    by_batch: bool = False
    single_run: bool = False
    """Whether one run takes all batches asked for; they then share one data version."""
    experiment: str | None = None
    pool: str | None = None
    touches_raw_files: bool = False
    takes_overrides: bool = False
    kind: str = ""
    """Its stage, where several assets of a program have the same; the name otherwise."""

    @property
    def key(self) -> dg.AssetKey:
        """Key of the asset."""
        if self.experiment:
            return keys.experiment_key(self.program, self.experiment, self.name)
        return keys.key(self.program, self.name)

    @property
    def group(self) -> str:
        """Group of the asset, a box of the graph: the program's data, one experiment, or what came of all of them."""
        part = self.experiment or ("data" if self.name in keys.DATA else "outcome")
        return f"{self.program}__{part}"


def materialized(stage: Stage, call: Call) -> dg.MaterializeResult:
    """Run a stage, then its gates, and say what came of it."""
    result = stage.run(call)
    checks = [gate.result(stage.key, call.ws, call.batch) for gate in stage.gates]
    origin = {"code_version": stage.code_version, "data_version": result.data_version, **provenance()}
    shown = metadata(result) | {f"provenance/{name}": value(content) for name, content in origin.items()}
    return dg.MaterializeResult(
        asset_key=stage.key, metadata=shown, data_version=dg.DataVersion(result.data_version), check_results=checks
    )


def build(stage: Stage) -> dg.AssetsDefinition:
    """The Dagster asset of a stage. Its data version is always the hash of its content."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # the backfill policy: to be dropped when Dagster settles it
        decorate = dg.asset(
            key=stage.key,
            deps=list(stage.deps),
            description=stage.description,
            group_name=stage.group,
            owners=list(program.get(stage.program).owners),
            kinds=set(stage.kinds),
            tags={keys.PROGRAM_TAG: stage.program, keys.STAGE_TAG: stage.kind or stage.name},
            code_version=stage.code_version,
            partitions_def=keys.batches_of(stage.program) if stage.by_batch else None,
            backfill_policy=dg.BackfillPolicy.single_run() if stage.single_run else None,
            check_specs=[gate.spec(stage.key) for gate in stage.gates],
            pool=stage.pool,
        )

    def work(
        context: dg.AssetExecutionContext,
        workspace: WorkspaceResource,
        launcher: LauncherResource,
        overrides: Sequence[str] = (),
    ) -> dg.MaterializeResult:
        batches = tuple(map(names.BATCH.check, context.partition_keys)) if stage.by_batch else ()
        batch = batches[0] if len(batches) == 1 else None

        def now() -> dg.MaterializeResult:
            return materialized(stage, Call(workspace.open(), batch, batches, tuple(overrides), launcher, context))

        return discreetly(now) if stage.touches_raw_files else now()

    def plain(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return work(context, workspace, launcher)

    def with_overrides(
        context: dg.AssetExecutionContext, config: Overrides, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return work(context, workspace, launcher, config.overrides)

    return decorate(with_overrides if stage.takes_overrides else plain)
