"""P/<experiment>/checkpoint and P/<experiment>/evaluation: one pair for each file in conf/P."""

from typing import TYPE_CHECKING

import dagster as dg

from assets import keys, versions
from assets.gates import Gate
from assets.shell import Call, Stage, build
from med_assets.experiments.configuration import Experiment
from med_assets.settings import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from med_assets.dataset.checks import CheckOutcome
    from med_assets.storage.result import StageResult


def checkpoint(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """Trained weights of one experiment. Nothing triggers it: the retraining sensor or a person decides."""
    experiment = configured.name
    needed = (keys.experiment_key(program, name, "checkpoint") for name in configured.needs())

    def run(call: Call) -> "StageResult":
        from med_assets.launch.training import train

        def launch(job: "Path") -> None:
            call.launcher.run(call.context, job)

        return train(call.ws, program, experiment, call.overrides, launch)

    return build(
        Stage(
            program,
            "checkpoint",
            f"Weights of experiment {experiment}, trained in a process of its own that outlives this one and resumes.",
            versions.of_training(program, configured),
            run,
            deps=(keys.key(program, "splits"), *needed),
            kinds=frozenset({"pytorch", "lightning"}),
            experiment=experiment,
            pool=keys.POOL,
            takes_overrides=True,
        )
    )


def thresholds(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """What calls a case unusual, of a program that looks for unusual cases."""
    experiment = configured.name

    def run(call: Call) -> "StageResult":
        from med_assets.screening.thresholds import thresholds

        return thresholds(call.ws, program, experiment)

    return build(
        Stage(
            program,
            keys.THRESHOLDS,
            f"Fitted on the normal validation cases of {experiment} to a stated false-alarm rate, and tried on the normal test cases.",
            versions.of_screening(program),
            run,
            deps=(keys.experiment_key(program, experiment, "evaluation"),),
            kinds=frozenset({"parquet"}),
            experiment=experiment,
        )
    )


def learning_curve(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """The score of one experiment against the number of training patients. A person starts it: it is many trainings."""

    def run(call: Call) -> "StageResult":
        from med_assets.evaluation.learning_curves import learning_curve

        def launch(job: "Path") -> None:
            call.launcher.run(call.context, job)

        return learning_curve(call.ws, program, configured.name, overrides=call.overrides, launch=launch)

    return build(
        Stage(
            program,
            keys.LEARNING_CURVE,
            f"Score of {configured.name} against the number of training patients, and what twice as many may give.",
            versions.of_learning_curve(program, configured),
            run,
            deps=(keys.key(program, "splits"),),
            kinds=frozenset({"pytorch", "parquet"}),
            pool=keys.POOL,
            takes_overrides=True,
        )
    )


def evaluation(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """Formal evaluation of that very checkpoint."""
    experiment = configured.name

    def fine_tuning(ws: Workspace, batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.fine_tuning(ws, program, experiment)

    def doubts(ws: Workspace, batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.doubts(ws, program, experiment)

    sound = Gate("doubts", "Nothing known makes its scores doubtful, such as a collapse.", doubts, blocking=False)
    better = Gate(
        "fine_tuning", "It is better than what it began with, and reaches its reference.", fine_tuning, blocking=False
    )

    def run(call: Call) -> "StageResult":
        from med_assets.evaluation.stage import evaluate

        return evaluate(call.ws, program, experiment)

    return build(
        Stage(
            program,
            "evaluation",
            f"The checkpoint of {experiment}, loaded by its hash, scored on held-out cases, singly and in aggregate.",
            versions.of_stage(program, "evaluate"),
            run,
            deps=(keys.experiment_key(program, experiment, "checkpoint"), keys.key(program, "splits")),
            kinds=frozenset({"monai", "parquet"}),
            experiment=experiment,
            gates=(sound, better) if configured.fine_tunes() else (sound,),
        )
    )


def record(program: str, configured: Experiment) -> dg.AssetsDefinition:
    """Figures and notebook of one experiment."""
    experiment = configured.name

    def run(call: Call) -> "StageResult":
        from med_assets.reporting.experiment_record import record

        return record(call.ws, program, experiment)

    return build(
        Stage(
            program,
            keys.RECORD,
            f"What {experiment} came to: figures for print, and an executed notebook with everything needed to do it again.",
            versions.of_record(program),
            run,
            # The leaderboard too: it changes with every evaluation, and the gate's verdict follows it.
            deps=(
                keys.experiment_key(program, experiment, "evaluation"),
                keys.key(program, "leaderboard"),
                keys.key(program, "champion"),
            ),
            kinds=frozenset({"notebook"}),
            experiment=experiment,
        )
    )
