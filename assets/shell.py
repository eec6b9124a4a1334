"""The one shell around every stage: names, versions, gates and metadata are given here, the work is done in med_assets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from assets import keys
from assets.gates import Gate
from assets.provenance import provenance
from assets.show import metadata
from med_assets import program
from resources.discretion import discreet
from resources.launcher import LocalLauncher
from resources.workspace import WorkspaceResource

if TYPE_CHECKING:
    from med_assets.settings import Workspace
    from med_assets.stages.result import StageResult


class StageConfig(dg.Config):
    """What the launchpad offers."""

    overrides: list[str] = []


@dataclass(frozen=True)
class Call:
    """One execution of a stage: the workspace, the partition if there is one, and the means to launch a training."""

    ws: "Workspace"
    batch: str | None
    config: StageConfig
    launcher: LocalLauncher
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
    experiment: str | None = None
    pool: str | None = None
    touches_raw_files: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> dg.AssetKey:
        """Key of the asset."""
        if self.experiment:
            return keys.experiment_key(self.program, self.experiment, self.name)
        return keys.key(self.program, self.name)


def materialized(stage: Stage, call: Call) -> dg.MaterializeResult:
    """Run a stage, then its gates, and say what came of it."""
    result = stage.run(call)
    checks = [gate.result(stage.key, call.ws, call.batch) for gate in stage.gates]
    shown = metadata(result) | {
        name: dg.MetadataValue.text(text) for name, text in provenance(stage.code_version, result.data_version).items()
    }
    return dg.MaterializeResult(
        asset_key=stage.key, metadata=shown, data_version=dg.DataVersion(result.data_version), check_results=checks
    )


def build(stage: Stage) -> dg.AssetsDefinition:
    """The Dagster asset of a stage. Its data version is always the hash of its content."""

    @dg.asset(
        key=stage.key,
        deps=list(stage.deps),
        description=stage.description,
        group_name=stage.program,
        owners=list(program.get(stage.program).owners),
        kinds=set(stage.kinds),
        tags={keys.PROGRAM_TAG: stage.program, keys.STAGE_TAG: stage.name, **stage.tags},
        code_version=stage.code_version,
        partitions_def=keys.batches_of(stage.program) if stage.by_batch else None,
        check_specs=[gate.spec(stage.key) for gate in stage.gates],
        pool=stage.pool,
        output_required=True,
    )
    def shell(
        context: dg.AssetExecutionContext, config: StageConfig, workspace: WorkspaceResource, launcher: LocalLauncher
    ) -> dg.MaterializeResult:
        batch = context.partition_key if stage.by_batch else None
        call = Call(workspace.open(), batch, config, launcher, context)
        if stage.touches_raw_files:
            with discreet():
                return materialized(stage, call)
        return materialized(stage, call)

    return shell
