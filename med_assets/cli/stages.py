"""The stages of the graph as plain functions: what each asset does, with or without Dagster."""

from med_assets.dataset.stage import dataset, splits, up_to_date, withdraw
from med_assets.evaluation.analyse import analyse
from med_assets.evaluation.crossvalidation import crossval
from med_assets.evaluation.leaderboard import leaderboard
from med_assets.evaluation.learning_curves import learning_curve
from med_assets.evaluation.predict_folder import predict_folder
from med_assets.evaluation.prediction import debug, predict
from med_assets.evaluation.predictions import predictions
from med_assets.evaluation.stage import evaluate
from med_assets.intake.stage import intake
from med_assets.launch.training import train
from med_assets.monitoring.stage import monitor
from med_assets.preparation.audit import accept_batch
from med_assets.preparation.stage import prepare
from med_assets.promotion.champions import rollback
from med_assets.promotion.regression import accept_scores
from med_assets.promotion.stage import champion
from med_assets.reporting.experiment_record import record as record_experiment
from med_assets.reporting.experiments import experiments
from med_assets.reporting.index import index
from med_assets.reporting.stage import report
from med_assets.review.decisions import decisions_of, record
from med_assets.screening.stage import screening
from med_assets.screening.thresholds import thresholds
from med_assets.storage.result import StageResult

__all__ = [
    "StageResult", "accept_batch", "accept_scores", "analyse", "champion", "crossval", "dataset", "debug", "decisions_of", "evaluate", "experiments", "index", "intake", "leaderboard",
    "learning_curve", "monitor", "predict", "predict_folder", "predictions", "prepare", "record", "record_experiment", "report", "rollback", "screening", "splits", "thresholds", "train",
    "up_to_date", "withdraw",
]  # fmt: skip
