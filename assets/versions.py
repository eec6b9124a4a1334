"""Code versions of assets: the version of the code that computes them together with the hash of what configures it.

Dagster keeps configuration out of every version, so a changed limit or experiment would otherwise change nothing.
"""

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.dataset.splits import split_policy
from med_assets.evaluation.analysis import Analysis
from med_assets.experiments import policies
from med_assets.experiments.configuration import Experiment
from med_assets.preparation import audit
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.versions import declared


def of_stage(program_name: str, stage: str) -> str:
    """Code version of one of a program's stages (intake, prepare, train, predict, evaluate) and of its configuration."""
    chosen, ws = program.get(program_name), Settings.from_env()
    configured = {"prepare": chosen.settings, "evaluate": chosen.evaluation_settings}.get(stage)
    version = chosen.code_versions[stage]
    if stage == "intake" and (profile := ws.deidentification_of(program_name)) != "strict":
        version = f"{version}-{profile} {declared('med_assets.deidentification.research', 'research')}"
    if stage == "evaluate":
        version = f"{chosen.code_versions['predict']}.{version}"
    return f"{version}-{digest(configured(ws))}" if configured else version


def of_prepared_cases(program_name: str) -> str:
    """Code version of prepared cases: that of preparing, of the origin of images, and of the audit with its expectations and policy."""
    origin = declared("med_assets.dicom.origin", "origin_of")
    return f"{of_stage(program_name, 'prepare')}.{origin}-{audit.version(Settings.from_env(), program_name)}"


def of_evaluation(program_name: str) -> str:
    """Code version of an evaluation: that of the scores, of the thresholds where it fits some, of the declared subgroups, and of confidence."""
    screens = isinstance(program.get(program_name), Screens)
    scores = of_screening(program_name) if screens else of_stage(program_name, "evaluate")
    found = policies.of(program_name)
    policy = [each.model_dump(mode="json") for each in (found.subgroups, found.confidence)]
    code = [
        declared("med_assets.evaluation.subgroups", "subgroup_scores"),
        declared("med_assets.evaluation.confidence", "evaluate_confidence"),
    ]
    return f"{scores}-{digest(code, policy)}"


def of_screening(program_name: str) -> str:
    """Code version of an evaluation with thresholds and of the list of cases by risk: that of the scores, and what risks depend on."""
    chosen = program.get(program_name)
    settings = chosen.screening().settings(Settings.from_env()) if isinstance(chosen, Screens) else None
    return f"{of_stage(program_name, 'evaluate')}-{digest(settings)}"


def of_experiments(program_name: str) -> str:
    """Code version of the records of experiments and of the index: their text and figures, and what pictures depend on."""
    code = f"{declared('med_assets.reporting.experiment_record', 'record')}.{declared('med_assets.reporting.figures', 'plot_figures')}"
    return f"{code}-{of_stage(program_name, 'evaluate')}"


def of_splits(program_name: str) -> str:
    """Code version of the split: its policy."""
    chosen = Settings.from_env().option(program_name, "split_policy", "")
    return digest(split_policy(program_name).model_dump(mode="json"), chosen)


def of_analysis(chosen: Analysis) -> str:
    """Code version of an analysis: that of its code, and its settings."""
    return f"{chosen.version}-{digest(chosen.settings(Settings.from_env()))}"


def of_learning_curve(program_name: str, experiment: Experiment) -> str:
    """Code version of a learning curve: that of its trainings and scores, and the sizes."""
    written = policies.of(program_name).learning_curve
    sizes = written.model_dump(mode="json") if written else None
    return f"{of_training(program_name, experiment)}-{digest(of_stage(program_name, 'evaluate'), sizes)}"


def of_dataset() -> str:
    """Code version of a dataset: the rule that picks its cases."""
    return declared("med_assets.dataset.stage", "dataset")


def of_report() -> str:
    """Code version of the report."""
    return declared("med_assets.reporting.stage", "report")


def of_gate(program_name: str) -> str:
    """Code version of the champion: the rule that promotes, and its policy in configuration."""
    found = policies.of(program_name)
    groups = [found.subgroups.facts] if found.promotion.worst_subgroup else []
    by_mean = bool(found.demo and found.demo.promote_by_mean)
    policy = digest(found.promotion.model_dump(mode="json"), by_mean, *groups)
    return f"{declared('med_assets.promotion.stage', 'champion')}-{policy}"


def of_predictions(program_name: str) -> str:
    """Code version of predictions for cases without a label: that of predicting, and what flags them."""
    policy = policies.of(program_name).confidence.model_dump(mode="json")
    flagged = digest(declared("med_assets.evaluation.confidence", "evaluate_confidence"), policy)
    return f"{program.get(program_name).code_versions['predict']}-{flagged}"


def of_monitoring(program_name: str) -> str:
    """Code version of monitoring: that of the scores, and the policies for limits, drift and subgroups."""
    found = policies.of(program_name)
    policy = [each.model_dump(mode="json") for each in (found.monitoring, found.subgroups)]
    return f"{of_stage(program_name, 'evaluate')}-{digest(policy)}"


def of_training(program_name: str, experiment: Experiment) -> str:
    """Code version of a checkpoint: the code that trains, the hash of the experiment, and its initial weights."""
    code = program.get(program_name).code_versions["train"]
    if experiment.members:
        code = declared("med_assets.training.ensemble", "load_model")
    version = f"{code}-{experiment.hash()[:16]}"
    version = version if experiment.initial == "random" else f"{version}-{experiment.initial}"
    return f"{version}-{experiment.teacher}" if experiment.teacher else version
