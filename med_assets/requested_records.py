"""Records of what people request beside the graph: cross-validations, learning curves and sweeps."""

from med_assets.storage.record import Record, column, record


@record
class Fold(Record):
    """One fold of a cross-validation."""

    TABLE = "crossval"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    fold: int = column("fold that is held out")
    checkpoint: str = column("key of the checkpoint")
    experiment_hash: str = column("hash of the configuration")
    dataset_version: str = column("version of the dataset")
    n_train: int = column("cases it was trained on", "count")
    n_inner: int = column("cases that picked the epoch", "count")
    n_held_out: int = column("cases of the fold", "count")
    n_failed: int = column("cases of the fold that failed", "count")
    stratified: bool | None = column(
        "whether the folds are balanced by class; empty in what was recorded before there were such"
    )
    synthetic: bool = column("whether a synthetic case took part")
    epoch: int | None = column("epoch that was kept")
    epochs: int | None = column("epochs that ran", "count")
    monitor: str | None = column("metric that picked the epoch")
    inner_value: float | None = column("its value")


@record
class CurvePoint(Record):
    """One training of a learning curve."""

    TABLE = "learning_curve"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    repeat: int = column("repeat")
    n_patients: int = column("patients it was trained on", "count")
    n_train: int = column("cases it was trained on", "count")
    n_val: int = column("validation cases", "count")
    n_failed: int = column("validation cases that failed", "count")
    checkpoint: str = column("key of the checkpoint")
    experiment_hash: str = column("hash of the configuration")
    dataset_version: str = column("version of the dataset")
    synthetic: bool = column("whether a synthetic case took part")
    steps: int | None = column("optimiser steps", "count")
    epochs: int | None = column("epochs that ran", "count")
    best_epoch: int | None = column("epoch that was kept")


@record
class CurveScore(Record):
    """A metric of one validation case by one training of a learning curve."""

    TABLE = "learning_curve_cases"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    repeat: int = column("repeat")
    n_patients: int = column("patients it was trained on", "count")
    checkpoint: str = column("key of the checkpoint")
    case_id: str = column("case")
    patient_id: str = column("pseudonym of the patient")
    metric: str = column("metric")
    subject: str = column("what was measured")
    value: float | None = column("value in `unit`; empty where it is undefined")
    unit: str = column("unit")
    truth: float | None = column("the reference side", "`unit`")


@record
class SweepScore(Record):
    """A deciding metric of one combination of a sweep, over the validation cases."""

    TABLE = "sweeps"
    PARTITION = ("experiment", "sweep")
    experiment: str = column("experiment")
    sweep: str = column("hash of the fields and values that are tried")
    number: int = column("number of the combination, from 1")
    overrides: str = column("its fields and values, as words of a command line")
    checkpoint: str = column("key of the checkpoint; empty where its training failed")
    job: str = column("folder of its training below the folder of jobs; empty where it failed")
    experiment_hash: str = column("hash of the configuration")
    dataset_version: str = column("version of the dataset")
    synthetic: bool = column("whether a synthetic case took part")
    metric: str = column("metric")
    subject: str = column("what was measured")
    unit: str = column("unit")
    mean: float | None = column("mean over validation cases", "`unit`")
    low: float | None = column("lower end of the interval", "`unit`")
    high: float | None = column("upper end of the interval", "`unit`")
    n: int = column("cases with a value", "count")
    n_val: int = column("validation cases", "count")
    n_failed: int = column("validation cases that failed", "count")
    difference: float | None = column(
        "paired difference to the best combination; empty there, and for metrics that do not order them", "`unit`"
    )
    difference_low: float | None = column("lower end of its interval", "`unit`")
    difference_high: float | None = column("upper end of its interval", "`unit`")
    best_epoch: int | None = column("epoch that was kept")
    epochs: int | None = column("epochs that ran", "count")
    hours: float | None = column("time of the training", "h")
    reason: str | None = column("why there is no score")
