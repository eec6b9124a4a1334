"""What all asset factories share: names, groups, owners and tags of an asset, and what it reports when it was materialized."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from types import CodeType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import dagster as dg
from pydantic import Field

from assets import batch_content, checks, keys
from assets.metadata import metadata, value
from med_assets import program
from med_assets.landing import space
from med_assets.launch.stage_request import Request
from med_assets.launch.stages import Stage
from med_assets.review.address import review_url
from med_assets.storage import logs, names
from med_assets.storage.provenance import provenance
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource

if TYPE_CHECKING:
    from med_assets.storage.result import CheckOutcome, StageResult

F = TypeVar("F", bound=Callable[..., Any])

_signatures: dict[CodeType, inspect.Signature] = {}


def one_signature(function: F) -> F:
    """Give the functions that one `def` makes the same signature, worked out once: Dagster asks for it sixteen times for each asset."""
    code = function.__code__
    if code not in _signatures:
        _signatures[code] = inspect.signature(function)
    function.__signature__ = _signatures[code]  # type: ignore[attr-defined]  # functions may have it: PEP 362
    return function


class Overrides(dg.Config):
    """What the launchpad offers for a training: Hydra's `key=value`, such as `schedule.epochs=2`."""

    overrides: list[str] = Field(default_factory=list, description="overrides of the experiment, key=value")


class Attributes(TypedDict):
    """Arguments of `@dg.asset`."""

    key: dg.AssetKey
    description: str
    code_version: str
    kinds: set[str]
    group_name: str
    owners: list[str]
    tags: dict[str, str]


def attributes(
    key: dg.AssetKey, description: str, code_version: str, kinds: Set[str], stage: str | None = None
) -> Attributes:
    """Arguments of `@dg.asset` that every asset has. `stage` is the second part of its key unless given."""
    chosen = key.path[0]
    stage = stage or key.path[1]
    return {
        "key": key,
        "description": description,
        "code_version": code_version,
        "kinds": set(kinds),
        "group_name": keys.group(chosen, stage),
        "owners": list(program.get(chosen).owners),
        "tags": {
            keys.PROGRAM_TAG: chosen,
            keys.STAGE_TAG: stage,
            **({keys.FOLLOWS_TAG: keys.FOLLOWS[stage]} if stage in keys.FOLLOWS else {}),
        },
    }


@contextmanager
def several_batches_in_a_run() -> Iterator[None]:
    """Without Dagster's warning that a backfill policy is beta; for factories of assets whose run takes several batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def batches(context: dg.AssetExecutionContext) -> tuple[str, ...]:
    """All intake batches of a run, oldest first."""
    return tuple(map(names.BATCH.check, context.partition_keys))


def run_stage(
    context: dg.AssetExecutionContext,
    workspace: WorkspaceResource,
    launcher: LauncherResource,
    stage: Stage,
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
    read: Sequence[str] = (),
) -> dg.MaterializeResult:
    """Run a stage of the asset's program with the checks of the asset, where the settings say, and report it.

    `read` are the stages of `assets.batch_content` that an asset reads all batches of.
    """
    program, ws = context.assets_def.key.path[0], workspace.open()
    version = {tag: text for each in read for tag, text in batch_content.read(ws, program, each).items()}
    for warning in space.warnings(ws):
        context.log.warning(warning)
    with logs.about(run=context.run.run_id):
        outcome = launcher.stage(context, ws, Request(stage, program, tuple(names), tuple(overrides)), version)
    return materialized(context, outcome.result, version or None, **outcome.checks)


def materialized(
    context: dg.AssetExecutionContext,
    result: "StageResult",
    read: Mapping[str, str] | None = None,
    /,
    **outcomes: "CheckOutcome",
) -> dg.MaterializeResult:
    """Report the result of a stage and the outcomes of the asset's checks by name; the data version is the content's hash.

    `read` has the tags of `assets.batch_content` for an asset that reads all batches.
    """
    code_version = context.assets_def.get_asset_spec().code_version
    origin = {"code_version": code_version, "data_version": result.data_version, **provenance()}
    page = review_url(context.assets_def.key.path[0])
    return dg.MaterializeResult(
        metadata=metadata(result)
        | ({"review": dg.MetadataValue.url(page)} if page else {})
        | {f"provenance/{name}": value(content) for name, content in origin.items()},
        data_version=dg.DataVersion(result.data_version),
        tags=read,
        check_results=[checks.result(name, outcome) for name, outcome in outcomes.items()],
    )
