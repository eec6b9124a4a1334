"""Names of the stages of the graph; imports nothing, since configuration names them."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of the graph, as the command line calls it."""

    INTAKE = "intake"
    PREPARE = "prepare"
    DATASET = "dataset"
    SPLITS = "splits"
    TRAIN = "train"
    EVALUATE = "evaluate"
    LEARNING_CURVE = "learning_curve"
    LEADERBOARD = "leaderboard"
    CHAMPION = "champion"
    MONITORING = "monitoring"
    PREDICTIONS = "predictions"
    SCREENING = "screening"
    ANALYSE = "analyse"
    EXPERIMENTS = "experiments"
    REPORT = "report"
