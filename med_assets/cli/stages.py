"""The stages of the graph as plain functions: what each asset does, with or without Dagster.

A stage is imported when it is first asked for: a process needs the libraries of those alone that it runs. In a shared home it finds the
reports that other machines made, and they find its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from med_assets.dataset.stage import dataset, splits, up_to_date, withdraw
    from med_assets.evaluation.analyse import analyse
    from med_assets.evaluation.crossvalidation import crossval
    from med_assets.evaluation.leaderboard import leaderboard
    from med_assets.evaluation.learning_curves import learning_curve
    from med_assets.evaluation.plan_qa import plan_qa
    from med_assets.evaluation.predict_folder import predict_folder
    from med_assets.evaluation.prediction import correct, debug, predict, predict_edited
    from med_assets.evaluation.predictions import predictions
    from med_assets.evaluation.stage import evaluate
    from med_assets.evaluation.sweeps import sweep
    from med_assets.intake.stage import intake
    from med_assets.launch.training import train
    from med_assets.monitoring.stage import monitor
    from med_assets.preparation.audit import accept_batch
    from med_assets.preparation.stage import prepare
    from med_assets.promotion.champions import rollback
    from med_assets.promotion.regression import accept_scores
    from med_assets.promotion.stage import champion
    from med_assets.reporting.dataset_card import dataset_card
    from med_assets.reporting.experiment_record import record as record_experiment
    from med_assets.reporting.experiments import experiments
    from med_assets.reporting.index import index
    from med_assets.reporting.model_card import model_card
    from med_assets.reporting.stage import report
    from med_assets.review.decisions import decisions_of, record
    from med_assets.screening.stage import screening
    from med_assets.screening.thresholds import thresholds
    from med_assets.storage.result import StageResult

__all__ = [
    "StageResult", "accept_batch", "accept_scores", "analyse", "champion", "correct", "crossval", "dataset", "dataset_card", "debug", "decisions_of", "evaluate", "experiments", "index", "intake", "leaderboard",
    "learning_curve", "model_card", "monitor", "plan_qa", "predict", "predict_edited", "predict_folder", "predictions", "prepare", "record", "record_experiment", "report", "rollback", "screening", "splits", "sweep", "thresholds", "train",
    "up_to_date", "withdraw",
]  # fmt: skip

MODULES = {
    "StageResult": "med_assets.storage.result",
    "accept_batch": "med_assets.preparation.audit",
    "accept_scores": "med_assets.promotion.regression",
    "analyse": "med_assets.evaluation.analyse",
    "champion": "med_assets.promotion.stage",
    "correct": "med_assets.evaluation.prediction",
    "crossval": "med_assets.evaluation.crossvalidation",
    "dataset": "med_assets.dataset.stage",
    "dataset_card": "med_assets.reporting.dataset_card",
    "debug": "med_assets.evaluation.prediction",
    "decisions_of": "med_assets.review.decisions",
    "evaluate": "med_assets.evaluation.stage",
    "experiments": "med_assets.reporting.experiments",
    "index": "med_assets.reporting.index",
    "intake": "med_assets.intake.stage",
    "leaderboard": "med_assets.evaluation.leaderboard",
    "learning_curve": "med_assets.evaluation.learning_curves",
    "model_card": "med_assets.reporting.model_card",
    "monitor": "med_assets.monitoring.stage",
    "plan_qa": "med_assets.evaluation.plan_qa",
    "predict": "med_assets.evaluation.prediction",
    "predict_edited": "med_assets.evaluation.prediction",
    "predict_folder": "med_assets.evaluation.predict_folder",
    "predictions": "med_assets.evaluation.predictions",
    "prepare": "med_assets.preparation.stage",
    "record": "med_assets.review.decisions",
    "record_experiment": "med_assets.reporting.experiment_record:record",
    "report": "med_assets.reporting.stage",
    "rollback": "med_assets.promotion.champions",
    "screening": "med_assets.screening.stage",
    "splits": "med_assets.dataset.stage",
    "sweep": "med_assets.evaluation.sweeps",
    "thresholds": "med_assets.screening.thresholds",
    "train": "med_assets.launch.training",
    "up_to_date": "med_assets.dataset.stage",
    "withdraw": "med_assets.dataset.stage",
}
"""Module of each stage, and its name there where it has another."""


SHARING = "med_assets.cli.sharing"
"""Module of what is done around each stage; `med-assets --help` needs none of it."""


QUESTIONS = ("decisions_of", "up_to_date")
"""What only reads tables or configuration."""


def __getattr__(name: str) -> Any:
    """A stage by its name."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = MODULES[name].partition(":")
    found = getattr(import_module(module), there or name)
    return found if isinstance(found, type) or name in QUESTIONS else import_module(SHARING).sharing(name, found)
