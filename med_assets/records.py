"""The nouns of med_assets as frozen dataclasses, each the row of one table. `med_assets.catalog` reads and writes them."""

from enum import StrEnum

from med_assets.requested_records import CurvePoint, CurveScore, Fold, SweepScore
from med_assets.storage.record import Record, column, record


class Status(StrEnum):
    """An event of a case, or of the files beside it, in intake or preparation."""

    OK = "ok"
    """Accepted, with a label: models learn from it and are scored on it."""
    TO_PREDICT = "to predict"
    """Accepted, without a label: models predict it."""
    QUARANTINED = "quarantined"
    """Refused, with a reason."""
    NOTE = "note"
    """Files that a case does not need, such as a localizer, or that it has already."""


USABLE = (Status.OK, Status.TO_PREDICT)


@record
class CaseVersion(Record):
    """A case as it was sent once, or files that came with it: what intake accepted or refused."""

    TABLE = "raw_cases"
    PARTITION = ("batch",)
    batch: str = column("intake batch, the Dagster partition")
    case_id: str = column("keyed hash of patient and identity UID; of refused files a token of their place")
    patient_id: str = column("pseudonym of the patient")
    version: str = column("hash of the de-identified files")
    content_hash: str = column("hash of pixels, positions and contours; empty unless accepted")
    images_hash: str | None = column("hash of pixels and positions alone")
    artifact: str = column("key of the de-identified files in the store; empty unless accepted")
    given_split: str | None = column("split that the sender gave")
    parent: str | None = column(
        "version of the case that a label which came alone corrects; empty unless it is a correction"
    )
    n_instances: int = column("DICOM objects or files", "count")
    synthetic: bool = column("whether it is marked as synthetic")
    status: str = column("ok, to predict, quarantined or note")
    reason_code: str | None = column("code of the reason")
    reason: str | None = column("why it was refused, and what to do")
    deidentified_by: str | None = column(
        "profile of de-identification and its version; empty unless accepted, and of rows of an earlier version, which had the strict one alone"
    )


@record
class IdentityScan(Record):
    """What the scan of the stored files of a case found that may identify a patient."""

    TABLE = "identity_scans"
    PARTITION = ("batch",)
    batch: str = column("intake batch")
    artifact: str = column("key of the de-identified files in the store")
    scanner: str = column("hash of the version of the scan and of the names of ROIs that identify nobody")
    findings: str | None = column("a line each, `tag: reason` without the value; empty where nothing was found")

    @property
    def finding_lines(self) -> list[str]:
        """What was found."""
        return (self.findings or "").splitlines()


@record
class PreparedCase(Record):
    """The arrays and measured facts of a case version under the present preparation settings, audited."""

    TABLE = "prepared_cases"
    PARTITION = ("batch",)
    batch: str = column("intake batch")
    case_id: str = column("case")
    patient_id: str = column("pseudonym of the patient")
    version: str = column("version of the case")
    content_hash: str = column("hash of pixels, positions and contours")
    artifact: str = column("key of the arrays in the store; empty where preparing failed")
    given_split: str | None = column("split that the sender gave")
    synthetic: bool = column("whether it is marked as synthetic")
    status: str = column("ok, to predict or quarantined")
    reason_code: str | None = column("code of the reason")
    reason: str | None = column("why it was refused, and what to do")
    warnings: str | None = column("the audit's warnings, a line each")

    @property
    def warning_lines(self) -> list[str]:
        """The audit's warnings."""
        return (self.warnings or "").splitlines()


@record
class BatchAudit(Record):
    """How much of an intake batch was quarantined, and whether the batch is kept out of the dataset for that."""

    TABLE = "audits"
    PARTITION = ("batch",)
    batch: str = column("intake batch")
    n_cases: int = column("cases, and files that make none; notes aside", "count")
    n_quarantined: int = column("of these refused by intake, preparation or the audit", "count")
    max_quarantined_share: float = column("greatest share that the policy allows", "fraction")
    min_cases: int = column("smaller batches are never kept out", "count")
    held_back: bool = column("whether the share is too great, and nobody accepted it")
    accepted_because: str | None = column("why a person lets the batch pass nevertheless")

    @property
    def quarantined_share(self) -> float:
        """Share of the cases that were refused, 0 to 1."""
        return self.n_quarantined / max(self.n_cases, 1)


@record
class DatasetCase(Record):
    """A case of the dataset: the accepted, current version."""

    TABLE = "dataset"
    case_id: str = column("case")
    patient_id: str = column("pseudonym of the patient")
    version: str = column("version of the case")
    content_hash: str = column("hash of pixels, positions and contours")
    artifact: str = column("key of the prepared arrays in the store")
    given_split: str | None = column("split that the sender gave")
    synthetic: bool = column("whether it is marked as synthetic")


@record
class Withdrawal(Record):
    """A case that was taken out of the dataset for good."""

    TABLE = "withdrawals"
    PARTITION = ("case_id",)
    case_id: str = column("case")
    reason: str = column("why")


@record
class SplitAssignment(Record):
    """The split and cross-validation fold of a patient, once for all."""

    TABLE = "splits"
    patient_id: str = column("pseudonym of the patient")
    split: str = column("train, val, test or external")
    fold: int | None = column("cross-validation fold")
    assigned_by: str = column("hashed, given or fixed")


ACCEPT, EXCLUDE, COMMENT, CORRECT = "accept", "exclude", "comment", "correct"
"""Decisions that readers have in every program: of accept and exclude the newest of a case counts; a comment decides nothing, and a correction is
a new version of the case that intake makes."""

COMMON_DECISIONS = (ACCEPT, EXCLUDE, COMMENT, CORRECT)
"""Decisions that are no answer to the question of a program."""


@record
class ReaderDecision(Record):
    """What a person decided about a case; all decisions are kept, in their order."""

    TABLE = "reads"
    PARTITION = ("case_id",)
    case_id: str = column("case")
    version: str = column("version of the case that was read")
    decision: str = column("accept, exclude, comment, correct, or one of the program's answers")
    note: str = column("what the reader wrote; of an exclusion the reason")
    read_at: str = column("time, UTC")
    reader: str | None = column("who decided; empty where an earlier version recorded it")


@record
class Checkpoint(Record):
    """The present checkpoint of an experiment."""

    TABLE = "checkpoints"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint in the store")
    experiment_hash: str = column("hash of the configuration")
    dataset_version: str = column("version of the dataset at its training")
    n_train: int = column("cases it was trained on", "count")
    n_val: int = column("cases that picked the epoch", "count")
    synthetic: bool = column("whether a synthetic case took part")
    weights_sha256: str = column("SHA-256 of the weights")
    git_commit: str | None = column("commit of the code, with + where the working tree differed")


@record
class TrainingRun(Record):
    """One training that ended, as it was then: data, configuration, code, machine and time."""

    TABLE = "runs"
    PARTITION = ("experiment", "checkpoint")
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint in the store")
    experiment_hash: str = column("hash of the configuration")
    dataset_version: str = column("version of the dataset")
    n_train: int = column("cases it was trained on", "count")
    n_val: int = column("cases that picked the epoch", "count")
    synthetic: bool = column("whether a synthetic case took part")
    weights_sha256: str = column("SHA-256 of the weights")
    git_commit: str = column("commit of the code")
    dirty: bool = column("whether the working tree differed from the commit")
    trained_at: str | None = column("time of its end, UTC")
    seconds: float | None = column("time of all pieces", "s")
    device: str | None = column("cpu or cuda")
    processor: str | None = column("processor")
    cores: int | None = column("cores of the machine", "count")
    memory_gb: int | None = column("memory of the machine", "GB")
    accelerator: str | None = column("accelerator")
    precision: str | None = column("precision of the training")
    profile: str = column("profile of the configuration, such as small or full")
    overrides: str = column("overrides of the configuration, as a command line")
    environment: str = column("settings that matter, as a command line")
    initial: str | None = column("checkpoint of the initial weights")
    teacher: str | None = column("checkpoint of the teacher")
    best_epoch: int | None = column("epoch that was kept")
    epochs: int | None = column("epochs that ran", "count")
    stopped_early: bool | None = column("whether early stopping ended it")
    parameters: int | None = column("parameters of the network", "count")
    python: str | None = column("version of Python")
    torch: str | None = column("version of torch")


@record
class EpochMetric(Record):
    """A metric of the training history at one epoch."""

    TABLE = "training_history"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    epoch: int = column("epoch")
    metric: str = column("metric")
    value: float = column("value")


@record
class CaseScore(Record):
    """A metric of one case by one checkpoint."""

    TABLE = "evaluation_cases"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    case_id: str = column("case")
    patient_id: str = column("pseudonym of the patient")
    split: str = column("split of the patient")
    metric: str = column("metric")
    subject: str = column("what was measured, such as a structure")
    value: float | None = column("value in `unit`; empty where it is undefined")
    unit: str = column("unit of the value")
    convention: str = column("definition")
    truth: float | None = column("the reference side, where the metric compares two", "`unit`")
    prediction: float | None = column("the predicted side", "`unit`")
    limit: float | None = column("clinical limit", "`unit`")
    passed: bool | None = column("whether the prediction keeps the limit")
    passed_truth: bool | None = column("whether the reference keeps the limit")
    n: int | None = column("voxels or points that the value rests on", "count")


@record
class AggregateScore(Record):
    """A metric of one checkpoint over the cases of a split, with its interval."""

    TABLE = "evaluation"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    split: str = column("split")
    metric: str = column("metric")
    subject: str = column("what was measured")
    mean: float | None = column("mean over cases", "`unit`")
    low: float | None = column("lower end of the interval", "`unit`")
    high: float | None = column("upper end of the interval", "`unit`")
    n: int = column("cases with a value", "count")
    unit: str = column("unit")
    convention: str = column("definition")
    interval: str = column("how the interval was made")
    dataset_version: str = column("version of the dataset")
    code_version: str = column("version of the scoring code")
    git_commit: str = column("commit of the code")


@record
class SubgroupScore(AggregateScore):
    """A metric of one checkpoint over the cases of a split that belong to a declared subgroup; without a value for few patients."""

    TABLE = "evaluation_subgroups"
    fact: str = column("fact that declares the subgroup")
    subgroup: str = column("value or band of it; `unknown` for cases without the fact")
    n_cases: int = column("cases of the subgroup in the split", "count")
    n_patients: int = column("patients of these with a value", "count")
    note: str | None = column("why there is no score; empty where there is one")


@record
class RunScore(Record):
    """A deciding metric of a training run as it was last evaluated."""

    TABLE = "run_scores"
    PARTITION = ("experiment", "checkpoint")
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    split: str = column("split")
    metric: str = column("metric")
    subject: str = column("what was measured")
    mean: float | None = column("mean over cases", "`unit`")
    low: float | None = column("lower end of the interval", "`unit`")
    high: float | None = column("upper end of the interval", "`unit`")
    n: int = column("cases with a value", "count")
    unit: str = column("unit")
    interval: str = column("how the interval was made")
    dataset_version: str = column("version of the dataset")
    code_version: str = column("version of the scoring code")


@record
class FoldScore(CaseScore):
    """A metric of one case by the model of the fold that held it out."""

    TABLE = "crossval_cases"
    fold: int = column("fold")


@record
class Threshold(Record):
    """A threshold of screening, fitted on the validation cases."""

    TABLE = "thresholds"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    artifact: str = column("key of the record in the store")
    dataset_version: str = column("version of the dataset")
    synthetic: bool = column("whether a synthetic case took part")
    measure: str = column("measure of uncertainty")
    subject: str = column("what it is of")
    unit: str = column("unit")
    rate: float | None = column("false alarm rate it was fitted for", "1")
    value: float | None = column("threshold in `unit`")
    promised_rate: float | None = column("rate that holds with confidence", "1")
    n: int | None = column("normal cases it was fitted on", "count")
    undefined: int | None = column("cases without a value", "count")
    tested: int | None = column("cases it was tested on", "count")
    flagged: int | None = column("of these above the threshold", "count")


@record
class Calibration(Record):
    """How the confidence of one checkpoint was calibrated on validation cases, and from where on a case is far from training."""

    TABLE = "confidence"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    definition: str = column("definition of the measure of confidence; higher is surer")
    metric: str = column("metric that says whether a prediction is acceptable")
    acceptable: float | None = column("value from which it is", "unit of the metric")
    n: int = column("validation cases with a measure and a value of the metric", "count")
    n_acceptable: int = column("of these acceptable", "count")
    slope: float | None = column("slope of the logistic curve; empty where uncalibrated", "1 / measure")
    intercept: float | None = column("its intercept; empty where uncalibrated", "1")
    note: str = column("how it was calibrated, or why it was not")
    agreement_definition: str | None = column(
        "definition of the agreement of several predictions of a case; empty for a model that makes one"
    )
    agreement_slope: float | None = column("slope of its logistic curve; empty where uncalibrated", "1 / measure")
    agreement_intercept: float | None = column("intercept of that; empty where uncalibrated", "1")
    agreement_note: str | None = column("how agreement was calibrated, or why it was not")
    n_train: int = column("training cases with facts", "count")
    distance_limit: float | None = column("distance from which a case is far from them; empty where undefined", "SD")
    dataset_version: str = column("version of the dataset")
    code_version: str = column("version of the code")


@record
class CaseConfidence(Record):
    """How far the prediction of one case by one checkpoint is to be trusted."""

    TABLE = "confidence_cases"
    PARTITION = ("experiment",)
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    case_id: str = column("case")
    patient_id: str = column("pseudonym of the patient")
    split: str = column("split of the patient")
    confidence: float | None = column("measure of confidence; empty where it is undefined")
    probability: float | None = column(
        "calibrated probability that the prediction is acceptable; empty where uncalibrated", "1"
    )
    agreement: float | None = column(
        "agreement of several predictions of the case; empty for a model that makes one", "as the definition says"
    )
    agreement_probability: float | None = column(
        "calibrated probability, by the agreement, that the prediction is acceptable; empty where uncalibrated", "1"
    )
    distance: float | None = column("distance from the training cases; empty where undefined", "SD")
    flags: str = column("why not to trust it; empty for no reason")


@record
class Failure(Record):
    """A case that a stage could not predict or score."""

    TABLE = "failures"
    PARTITION = ("stage", "experiment")
    stage: str = column("stage, such as evaluation")
    experiment: str = column("experiment or analysis")
    checkpoint: str = column("key of the checkpoint; empty where there is none")
    case_id: str = column("case")
    error: str = column("exception")


@record
class AnalysisResult(Record):
    """The present result of an analysis."""

    TABLE = "analyses"
    PARTITION = ("analysis",)
    analysis: str = column("analysis")
    artifact: str = column("key of the result in the store")
    dataset_version: str = column("version of the dataset")
    code_version: str = column("version of the analysis")
    synthetic: bool = column("whether a synthetic case took part")
    failed: int = column("cases that failed", "count")
    git_commit: str = column("commit of the code")


@record
class Champion(Record):
    """A change of the champion; the last is the champion."""

    TABLE = "champions"
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    dataset_version: str = column("version of the dataset at its training")
    n_train: int = column("cases it was trained on", "count")
    promoted_at: str = column("time, UTC")
    action: str = column("promoted, promoted by name or rolled back")
    reason: str = column("why")


@record
class PromotedScore(Record):
    """A deciding score of a champion when it was promoted, or when a person accepted its scores: what it is held to."""

    TABLE = "champion_scores"
    PARTITION = ("experiment", "checkpoint")
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    case_id: str = column("validation case")
    version: str = column("version of the case")
    patient_id: str = column("pseudonym of the patient")
    metric: str = column("name of the metric")
    subject: str = column("what it is of, such as a structure")
    value: float | None = column("value; empty where undefined", "unit of the metric")
    truth: float | None = column("true side, where the metric has one", "unit of the metric")


@record
class Verdict(Record):
    """The gate's decision on a challenger."""

    TABLE = "promotions"
    challenger: str = column("experiment")
    checkpoint: str = column("key of its checkpoint")
    reference: str | None = column("experiment that it was compared with")
    reference_checkpoint: str | None = column("key of that checkpoint")
    dataset_version: str = column("version of the dataset")
    promoted: bool = column("became the champion")
    refused: bool = column("the best challenger, and not promoted")
    recommended: bool = column("the best model after the decision")
    improved: bool = column("mean better by more than the tolerance")
    regressed: bool = column("mean worse by more than the tolerance")
    matches_reference: bool = column("has the weights of the reference")
    reason: str | None = column("why")
    mean: float | None = column("mean paired difference, below 0 is better", "unit of the metric")
    low: float | None = column("lower end of its interval", "unit of the metric")
    high: float | None = column("upper end of its interval", "unit of the metric")
    n: int = column("cases that both scored", "count")
    n_patients: int | None = column("patients of these", "count")
    p: float | None = column("p of the test", "1")
    p_adjusted: float | None = column("p over all challengers, by Holm", "1")
    challengers: int | None = column("challengers of the decision", "count")
    detectable: float | None = column("difference that so many cases could show", "unit of the metric")
    guards: str | None = column("comparisons in the guarded metrics")
    decided_at: str | None = column("time, UTC")


@record
class MonitoredScore(Record):
    """A deciding metric of the champion on a case of a batch."""

    TABLE = "monitoring"
    PARTITION = ("batch",)
    batch: str = column("intake batch")
    checkpoint: str = column("key of the checkpoint")
    case_id: str = column("case")
    score: str = column("key of the scores in the store")
    seen_in_training: bool = column("whether the model was trained on the case, or chosen by it")
    metric: str = column("metric")
    subject: str = column("what was measured")
    value: float | None = column("value in `unit`; empty where it is undefined")
    unit: str = column("unit")
    truth: float | None = column("the reference side", "`unit`")


@record
class Drift(Record):
    """How a measured fact of new cases differs from that of the training cases."""

    TABLE = "drift"
    PARTITION = ("batch",)
    batch: str = column("intake batch, or all cases since training")
    checkpoint: str = column("key of the champion's checkpoint")
    subgroup: str | None = column("declared subgroup of both sides, such as `device = A`; empty for all cases")
    fact: str = column("fact")
    unit: str = column("unit of the fact")
    convention: str = column("definition of the distance")
    reference: str = column("summary of the training cases")
    found: str = column("summary of the new cases")
    n_reference: int = column("training cases", "count")
    n: int = column("new cases", "count")
    distance: float | None = column("distance of both, 0 to 1", "1")
    p: float | None = column("p of the test", "1")
    p_adjusted: float | None = column("p over all facts", "1")
    drifted: bool | None = column("whether it drifted")


@record
class Prediction(Record):
    """What the champion gives for a case without a label."""

    TABLE = "predictions"
    PARTITION = ("batch",)
    batch: str = column("intake batch")
    case_id: str = column("case")
    patient_id: str = column("pseudonym of the patient")
    version: str = column("version of the case")
    synthetic: bool = column("whether it is marked as synthetic")
    experiment: str = column("experiment")
    checkpoint: str = column("key of the checkpoint")
    prediction: str = column("key of the prediction in the store")
    status: str = column("predicted or failed")
    error: str = column("exception; empty for none")
    measured: str = column("facts of the prediction, as JSON; empty where it failed")
    confidence: float | None = column("measure of confidence; empty where it is undefined")
    probability: float | None = column(
        "calibrated probability that the prediction is acceptable; empty where uncalibrated", "1"
    )
    flags: str | None = column("why not to trust it; empty for no reason")
    folder: str = column("folder of its files, relative to the home; empty where it failed")


@record
class ExperimentEntry(Record):
    """A row of the index of experiments, for people."""

    TABLE = "experiments"
    experiment: str = column("experiment")
    title: str = column("title")
    status: str = column("run status")
    note: str = column("why it has this status")
    trained: str | None = column("time of training, UTC")
    checkpoint: str | None = column("key of the checkpoint")
    git_commit: str | None = column("commit of the code")
    dirty: bool | None = column("whether the working tree differed from the commit")
    dataset_version: str | None = column("version of the dataset")
    experiment_hash: str | None = column("hash of the configuration")
    hardware: str | None = column("machine")
    seconds: float | None = column("time of the training", "s")
    metrics: str | None = column("deciding metrics, as JSON")
    notebook: str | None = column("notebook, relative to the home")
    artifacts: str | None = column("folder of the checkpoint, relative to the home")
    command: str = column("command that trains it")


RECORDS: tuple[type[Record], ...] = (
    CaseVersion, IdentityScan, PreparedCase, BatchAudit, DatasetCase, Withdrawal, SplitAssignment, EpochMetric, CaseScore, AggregateScore,
    FoldScore, Fold, CurvePoint, CurveScore, SweepScore, Threshold, ReaderDecision, Failure, Prediction, Champion, PromotedScore, Verdict,
    Checkpoint, AnalysisResult, SubgroupScore, Calibration, CaseConfidence,
    TrainingRun, RunScore, ExperimentEntry, Drift, MonitoredScore,
)  # fmt: skip
"""All records that have a table; the facts of cases have tables with the columns that each program states."""


def tables() -> dict[str, dict[str, type]]:
    """Types by column, by table."""
    return {each.TABLE: each.schema() for each in RECORDS}
