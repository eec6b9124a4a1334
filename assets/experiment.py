"""P/checkpoint/<experiment> and P/evaluation/<experiment>: one pair for each file in conf/P; and P/learning_curve."""

import dagster as dg

from assets import keys, versions
from assets.checks import informing
from assets.factory import Overrides, attributes, one_signature, run_stage
from med_assets import program as programs
from med_assets.capabilities import Screens
from med_assets.experiments.configuration import Experiment
from med_assets.launch.stages import Stage
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource


def checkpoint(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """Trained weights of one experiment. Nothing triggers it: the retraining sensor or a person decides."""
    experiment = configured.name
    needed = [keys.experiment_key(program, name, "checkpoint") for name in configured.needs()]

    @dg.asset(
        **attributes(
            keys.experiment_key(program, experiment, "checkpoint"),
            f"Checkpoints of {' and '.join(configured.members)}, whose predictions are averaged as those of {experiment}; nothing is trained."
            if configured.members
            else f"Weights of experiment {experiment}, trained in a process of its own that outlives this one and resumes.",
            versions.of_training(program, configured),
            {"pytorch", "lightning"},
        ),
        deps=[keys.key(program, "splits"), *needed],
        pool=keys.POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, config: Overrides, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.TRAIN, [experiment], config.overrides)

    return asset


def learning_curve(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """The score of one experiment against the number of training patients. A person starts it: it is many trainings."""

    @dg.asset(
        **attributes(
            keys.key(program, keys.LEARNING_CURVE),
            f"Score of {configured.name} against the number of training patients, and what twice as many may give.",
            versions.of_learning_curve(program, configured),
            {"pytorch", "parquet"},
        ),
        deps=[keys.key(program, "splits")],
        pool=keys.POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, config: Overrides, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.LEARNING_CURVE, [configured.name], config.overrides)

    return asset


def evaluation(program: str, configured: Experiment, code_version: str) -> dg.AssetsDefinition:
    """Formal evaluation of that very checkpoint; in a program that screens, its thresholds too.

    All experiments of a program have the same `code_version`: that of `versions.of_evaluation`.
    """
    experiment, fine_tunes = configured.name, configured.fine_tunes()
    screens = isinstance(programs.get(program), Screens)
    key = keys.experiment_key(program, experiment, "evaluation")
    fitted = "; thresholds of uncertainty are fitted on the normal validation cases" if screens else ""
    specs = [informing("doubts", key, "Nothing known makes its scores doubtful, such as a collapse.")]
    if fine_tunes:
        specs.append(informing("fine_tuning", key, "It is better than its initial weights, and reaches its reference."))

    @dg.asset(
        **attributes(
            key,
            f"The checkpoint of {experiment}, loaded by its hash, scored on held-out cases, singly and in aggregate{fitted}.",
            code_version,
            {"monai", "parquet"},
        ),
        deps=[keys.experiment_key(program, experiment, "checkpoint"), keys.key(program, "splits")],
        check_specs=specs,
        pool=keys.POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.EVALUATE, [experiment])

    return asset
