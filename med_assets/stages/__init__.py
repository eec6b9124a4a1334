"""The stages of the graph as plain functions: what each asset does, with or without Dagster."""

from med_assets.stages.analysis import analyse
from med_assets.stages.crossvalidation import crossval
from med_assets.stages.dataset import dataset, splits, up_to_date, withdraw
from med_assets.stages.evaluation import evaluate, leaderboard
from med_assets.stages.experiment_record import record as record_experiment
from med_assets.stages.index import index
from med_assets.stages.intake import intake
from med_assets.stages.learning_curves import learning_curve
from med_assets.stages.monitoring import monitor
from med_assets.stages.predict_folder import predict_folder
from med_assets.stages.prediction import debug, predict
from med_assets.stages.predictions import predictions
from med_assets.stages.prepare import prepare
from med_assets.stages.promotion import champion, rollback
from med_assets.stages.reads import decisions_of, record
from med_assets.stages.reporting import report
from med_assets.stages.result import StageResult
from med_assets.stages.screening import screening
from med_assets.stages.thresholds import thresholds
from med_assets.stages.training import train

__all__ = [
    "StageResult", "analyse", "champion", "crossval", "dataset", "debug", "decisions_of", "evaluate", "index", "intake", "leaderboard",
    "learning_curve", "monitor", "predict", "predict_folder", "predictions", "prepare", "record", "record_experiment", "report", "rollback", "screening", "splits", "thresholds", "train",
    "up_to_date", "withdraw",
]  # fmt: skip
