"""Training: a job folder named by what goes in, the training process, and the published checkpoint."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from med_assets import program
from med_assets.capabilities import ExperimentOverrides, TrainingWarnings
from med_assets.catalog import Case, Catalog
from med_assets.errors import (
    ArtifactMissing,
    CheckpointMismatch,
    ConfigurationError,
    MedAssetsError,
    OutOfMemory,
)
from med_assets.experiments import weights
from med_assets.experiments.configuration import RELEASED, Experiment, from_json, load, load_all
from med_assets.launch import jobs
from med_assets.launch.endings import Ending
from med_assets.launch.ensembles import demand_weights, model_folder, published
from med_assets.launch.follow import finish
from med_assets.launch.keeper import kept
from med_assets.launch.mirror import mirrored, remove_state
from med_assets.launch.runs import record_run
from med_assets.records import Checkpoint, EpochMetric
from med_assets.settings import Settings
from med_assets.storage.files import digest, file_sha256, read_json, replacing, write_json, write_text
from med_assets.storage.locks import alone
from med_assets.storage.provenance import cases_used_by, provenance
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    import pandas as pd

LISTS = ("used", "events")
"""Of a result what is too long to show: it is in `result.json` of the checkpoint."""

LEARNING = ("train", "val")
PUBLISHED = ("weights.pt", "experiment.json", "history.csv", "result.json")
SOMETIMES = ("profile.txt", jobs.ADAPTERS)
"""What a checkpoint has of its training, and what some have: a profile, and the adapters alone."""

INITIAL = "initial.pt"
"""File of a job folder with the initial weights, as in `training.initial`, which needs torch."""

Launch = Callable[[Path], None]


class Model(Protocol):
    """A checkpoint of an experiment, such as a Checkpoint or a Champion."""

    @property
    def experiment(self) -> str:
        """The experiment."""

    @property
    def checkpoint(self) -> str:
        """Key of the checkpoint in the store."""


@dataclass(frozen=True)
class NamedModel:
    """A checkpoint of an experiment of which nothing else is known."""

    experiment: str
    checkpoint: str


def experiment(ws: Settings, program_name: str, name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment as this workspace runs it: its profile and the program's own overrides applied."""
    return load(program_name, name, [*of_workspace(ws, program_name), *overrides], profile=ws.profile)


def of_workspace(ws: Settings, program_name: str) -> tuple[str, ...]:
    """Overrides that every experiment of this workspace gets."""
    chosen = program.get(program_name)
    return chosen.experiment_overrides(ws) if isinstance(chosen, ExperimentOverrides) else ()


def usable(ws: Settings, program_name: str) -> dict[str, Experiment]:
    """The experiments of a program by name; one whose file has a mistake takes nothing else away (`sorted_out` has it)."""
    return sorted_out(ws, program_name)[0]


def sorted_out(ws: Settings, program_name: str) -> tuple[dict[str, Experiment], dict[str, str]]:
    """The experiments of a program by name, and why its others can't be used."""
    usable: dict[str, Experiment] = {}
    broken: dict[str, str] = {}
    for name, found in load_all(program_name, of_workspace(ws, program_name), ws.profile).items():
        if isinstance(found, Experiment):
            usable[name] = found
        else:
            broken[name] = str(found)
    return usable, broken


def in_order(ws: Settings, program_name: str, wanted: Sequence[str]) -> list[str]:
    """The experiments, each after those whose checkpoints it is made from, which are added where they are not named.

    Raises ConfigurationError for experiments that need each other.
    """
    ordered: list[str] = []

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ConfigurationError(f"{program_name}: experiments need each other: {' needs '.join([*above, name])}")
        for needed in experiment(ws, program_name, name).needs():
            add(needed, (*above, name))
        if name not in ordered:
            ordered.append(name)

    for name in wanted:
        add(name, ())
    return ordered


def learning_cases(ws: Settings, program_name: str) -> list[Case]:
    """Cases that training sees, sorted: those of the splits train and val."""
    return Catalog(ws, program_name).cases(*LEARNING)


def unseen_cases(ws: Settings, program_name: str) -> int:
    """Training cases, corrected ones included, that no present checkpoint of the program has been trained on.

    Of several checkpoints the one counts that has seen most. Without a checkpoint, all training cases are unseen.
    """
    catalog = Catalog(ws, program_name)
    now = {case.artifact for case in learning_cases(ws, program_name) if case.split == "train"}
    keys = {row.checkpoint for row in catalog.rows(Checkpoint)}
    if (champion := catalog.champion()) is not None:
        keys.add(champion.checkpoint)
    unseen = [now]
    for key in sorted(keys):
        if ws.store.has(key):
            cases = read_json(ws.store.fetch(key) / "provenance.json")["cases"]
            unseen.append(now - {case.get("version") for case in cases if case["split"] == "train"})
    return min(map(len, unseen))


def last_trained_at(ws: Settings, program_name: str) -> datetime | None:
    """When the newest of the present checkpoints was trained, UTC; the baseline, which needs no training, does not count."""
    baseline, times = program.get(program_name).baseline, []
    for row in Catalog(ws, program_name).rows(Checkpoint):
        if row.experiment != baseline and ws.store.has(row.checkpoint):
            trained_at = read_json(ws.store.fetch(row.checkpoint) / "provenance.json").get("trained_at")
            times += [datetime.fromisoformat(trained_at)] if trained_at else []
    return max(times, default=None)


def initial_checkpoint(
    ws: Settings, program_name: str, chosen: Experiment, sources: Mapping[str, str] | None = None
) -> str | None:
    """Key of the initial weights of an experiment; None for random ones, which are also those of no champion yet.

    `sources` are checkpoints by experiment, in place of the recorded ones. Raises ConfigurationError where they are of an experiment that was not trained, or a file that is not there.
    """
    if chosen.initial == "random":
        return None
    if chosen.initial.startswith(RELEASED):
        return weights.released(ws, program_name, chosen.initial.removeprefix(RELEASED)).key
    if chosen.initial == "champion":
        champion = Catalog(ws, program_name).champion()
        return champion.checkpoint if champion else None
    return _source(ws, program_name, chosen.initial, sources)


def teacher_checkpoint(
    ws: Settings, program_name: str, chosen: Experiment, sources: Mapping[str, str] | None = None
) -> str | None:
    """Key of the checkpoint that an experiment is distilled from, None where from none; `sources` as above. Raises ConfigurationError."""
    return _source(ws, program_name, chosen.teacher, sources) if chosen.teacher else None


def _source(ws: Settings, program_name: str, name: str, sources: Mapping[str, str] | None) -> str:
    return (sources or {}).get(name) or checkpoint_of(ws, program_name, name).checkpoint


def files_of(ws: Settings, program_name: str, chosen: Experiment) -> dict[str, weights.Released]:
    """The released files that training reads beside its initial weights, by name. Raises ConfigurationError for one that is missing."""
    return {name: weights.released(ws, program_name, name) for name in chosen.released_files()}


def checkpoint_key(
    program_name: str,
    chosen: Experiment,
    cases: Sequence[Case],
    initial: str | None = None,
    teacher: str | None = None,
    files: Sequence[str] = (),
) -> str:
    """Key of a checkpoint: its cases and their splits, the experiment, the code that trains, its initial weights, its teacher,
    and the released `files` that it reads, by their keys.

    Test cases are not in it, and no cases at all where nothing is learned.
    """
    learned = cases if chosen.learns() else ()
    rows = [[case.case_id, case.version, case.artifact, case.split] for case in learned]
    warm = [
        *([initial] if initial else []),
        *([f"teacher {teacher}"] if teacher else []),
        *(f"reads {key}" for key in files),
    ]
    return "checkpoint/" + digest(rows, chosen.hash(), program.get(program_name).code_versions["train"], *warm)


def _prepare_job(
    ws: Settings,
    program_name: str,
    key: str,
    chosen: Experiment,
    learning: Sequence[Case],
    initial: str | None,
    teacher: str | None,
    files: Mapping[str, weights.Released],
) -> Path:
    job = ws.jobs / key.split("/")[1]
    job.mkdir(parents=True, exist_ok=True)
    cases = [
        {
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "split": case.split,
            "version": case.artifact,
            "folder": str(ws.store.fetch(case.artifact)),
        }
        for case in learning
    ]
    counts = {split: sum(case.split == split for case in learning) for split in LEARNING}
    if not all(counts.values()) and not (initial and chosen.untrained):
        raise ConfigurationError(
            f"{program_name}: expected at least one training and one validation case, got {counts}; take in more patients, or set "
            f"fractions in conf/{program_name}/_program.yaml before the first split"
        )
    write_text(job / "program", program_name + "\n")
    write_text(job / "experiment.json", chosen.to_json())
    write_json(job / "cases.json", cases)
    if initial:
        if chosen.initial.startswith(RELEASED):
            source = weights.released(ws, program_name, chosen.initial.removeprefix(RELEASED)).path
        else:
            ws.store.verify(initial)
            demand_weights(ws, initial, f"{program_name}/{chosen.name} to start from")
            source = ws.store.fetch(initial) / "weights.pt"
            before = from_json(program_name, source.with_name("experiment.json").read_text(encoding="utf-8"))
            if objection := chosen.objection_to(before):
                raise CheckpointMismatch(
                    f"{program_name}/{chosen.name} can't start from the weights of {chosen.initial}: {objection}; train that again"
                )
        with replacing(job / INITIAL) as temporary:
            shutil.copyfile(source, temporary)
    for name, file in files.items():
        (job / jobs.RELEASED).mkdir(exist_ok=True)
        with replacing(job / jobs.RELEASED / name) as temporary:
            shutil.copyfile(file.path, temporary)
    if teacher:
        ws.store.verify(teacher)
        demand_weights(ws, teacher, f"{program_name}/{chosen.name} to be distilled from")
        kept = {"key": teacher, "folder": str(ws.store.fetch(teacher)), "store": str(ws.home / "store")}
        write_json(job / jobs.TEACHER, kept)
    return job


def trained(
    ws: Settings,
    program_name: str,
    chosen: Experiment,
    cases: Sequence[Case],
    launch: Launch | None = None,
    resume: str = "auto",
    sources: Mapping[str, str] | None = None,
) -> tuple[str, bool]:
    """Key of an experiment's checkpoint made of these cases, each of split train or val, and whether it was made just now.

    `sources` are checkpoints that it is made from, by experiment, in place of the recorded ones. `launch`, `resume` and what is raised are those of `train`.
    """
    if chosen.members:
        return published(
            ws, program_name, chosen, {name: _source(ws, program_name, name, sources) for name in chosen.members}
        )
    initial = initial_checkpoint(ws, program_name, chosen, sources)
    teacher = teacher_checkpoint(ws, program_name, chosen, sources)
    files = files_of(ws, program_name, chosen)
    read = [file.key for file in files.values()]
    key = checkpoint_key(program_name, chosen, cases, initial, teacher, read)
    if ws.store.has(key):
        return key, False
    job = _prepare_job(ws, program_name, key, chosen, cases, initial, teacher, files)
    lock = f"training-{job.name}"
    with alone(ws, lock, file=job / jobs.FOLLOWED):
        if ws.store.has(key):
            remove_state(ws, job)  # of a machine that died after it published
            return key, False
        with kept(ws, job, lock), mirrored(ws, job, resume):
            (launch or partial(finish, default=ws.launcher, resume=resume))(job)
        _publish(ws, program_name, key, job, initial, teacher, read)
        remove_state(ws, job)
    return key, True


def train(
    ws: Settings,
    program_name: str,
    name: str,
    overrides: Sequence[str] = (),
    launch: Launch | None = None,
    resume: str = "auto",
) -> StageResult:
    """Train an experiment on the present dataset and splits, or reuse the checkpoint that the same inputs gave before.

    `resume` is about a job that was begun and not finished: `auto` goes on with it if there is one, `must` refuses to
    begin, `never` begins anew. `launch` replaces the launcher that the experiment or the workspace names, and `resume` then has no effect.
    A job that another process is training is waited for, in a shared home also one of another machine; what a machine that died left of it is
    gone on with. Raises TrainingStopped, OutOfMemory, ConfigurationError or MedAssetsError.
    """
    chosen = experiment(ws, program_name, name, overrides)
    cases = learning_cases(ws, program_name)
    folders = [ws.store.fetch(case.artifact) for case in cases]
    about = program.get(program_name)
    warnings = about.training_warnings(chosen, folders) if isinstance(about, TrainingWarnings) else []
    key, fresh = trained(ws, program_name, chosen, cases, launch, resume)
    folder = ws.store.fetch(key)
    result = read_json(folder / "result.json")
    record = read_json(folder / "provenance.json")
    history = _record(ws, program_name, name, key, chosen, folder, record, overrides)
    return StageResult(
        data_version=checkpoint_version(ws, key),
        counts={"new": int(fresh), "reused": int(not fresh)},
        summary={
            "checkpoint": key,
            "experiment_hash": chosen.hash(),
            "weights_sha256": record["weights_sha256"],
            "initial": record.get("initial") or "random",
            **({"teacher": record["teacher"]} if record.get("teacher") else {}),
            **({"members": ", ".join(record["members"])} if record.get("members") else {}),
            "cases": {split: sum(case["split"] == split for case in record["cases"]) for split in LEARNING},
            "result": {name: value for name, value in result.items() if name not in LISTS},
            "git_commit": record["git_commit"],
            **({"warnings": "; ".join(warnings)} if warnings else {}),
        },
        tables={"history": history},
        images=_curves(ws, program_name, name, history),
    )


def checkpoint_version(ws: Settings, key: str) -> str:
    """Version of a stored checkpoint: its key and the hash of its weights."""
    return digest(key, read_json(ws.store.fetch(key) / "provenance.json")["weights_sha256"])


def _curves(ws: Settings, program_name: str, name: str, history: "pd.DataFrame") -> dict[str, Path]:
    from med_assets.reporting.plots import plot_training

    panels = curve_panels(program_name, history)
    if len(history) < 2 or not panels:
        return {}
    path = ws.reports / program_name / "plots" / f"training_{name}.png"
    return {"training": plot_training(path, history, panels, title=name)}


def curve_panels(program_name: str, history: "pd.DataFrame") -> dict[str, list[str]]:
    """The panels of a training's curves: its losses, and what is measured on the validation cases."""
    import pandas as pd

    unit = program.get(program_name).training_metric.shown_unit
    columns = [
        column
        for column in history.columns
        if column not in ("epoch", "step") and pd.api.types.is_numeric_dtype(history[column])
    ]
    losses = [column for column in columns if "loss" in column]
    metrics = [column for column in columns if column.startswith("val_") and column not in losses]
    panels = {"loss": losses, f"validation ({unit})" if unit else "validation": metrics}
    return {label: names for label, names in panels.items() if names}


def _publish(
    ws: Settings,
    program_name: str,
    key: str,
    job: Path,
    initial: str | None,
    teacher: str | None,
    files: Sequence[str],
) -> None:
    """Move a finished job's result into the store; a job without one raises with what it says."""
    if not (job / "result.json").is_file():
        raise MedAssetsError(
            "training ended without a result; see log.txt in its job folder, and start it again to resume"
        )
    result = read_json(job / "result.json")
    if result["status"] == "out_of_memory":
        (job / "result.json").unlink()
        raise OutOfMemory(result["message"])
    if result["status"] != "completed":
        raise MedAssetsError(
            f"expected a completed training, got status {result['status']!r}; see log.txt in its job folder"
        )
    cases = [
        {name: case[name] for name in ("case_id", "patient_id", "split", "version")}
        for case in read_json(job / "cases.json")
    ]
    if (learned := result.get("used")) is not None:
        cases = [case | {"used": case["case_id"] in learned} for case in cases]
    with ws.store.create(key) as folder:
        for name in (*PUBLISHED, *(name for name in SOMETIMES if (job / name).is_file())):
            shutil.copyfile(job / name, folder / name)
        Ending.of(job, ws.home).write(folder)
        record = provenance() | {
            **({"git_commit": ", ".join(result["git_commits"])} if result.get("git_commits") else {}),
            # Of the process that trained, which may have run on another machine.
            **({"environment": result["environment"]} if "environment" in result else {}),
            "program": program_name,
            "cases": cases,
            "initial": initial,
            **({"teacher": teacher} if teacher else {}),
            **({"files": list(files)} if files else {}),
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "weights_sha256": file_sha256(folder / "weights.pt"),
        }
        write_json(folder / "provenance.json", record)


def _record(
    ws: Settings,
    program_name: str,
    name: str,
    key: str,
    chosen: Experiment,
    folder: Path,
    record: dict[str, Any],
    overrides: Sequence[str],
) -> "pd.DataFrame":
    """Record a checkpoint, its run and its training history, which is returned with one row per epoch."""
    import pandas as pd

    catalog = Catalog(ws, program_name)
    dataset = catalog.dataset()
    splits = {case["case_id"]: case["split"] for case in record["cases"]}
    checkpoint = Checkpoint(
        program=program_name,
        experiment=name,
        checkpoint=key,
        experiment_hash=chosen.hash(),
        dataset_version=dataset.version,
        n_train=sum(case.split == "train" for case in cases_used_by(ws.store, key)),
        n_val=read_json(folder / "result.json").get("n_val", sum(split == "val" for split in splits.values())),
        synthetic=not dataset.synthetic.isdisjoint(splits),
        weights_sha256=record["weights_sha256"],
        git_commit=record["git_commit"],
    )
    catalog.replace(Checkpoint, [checkpoint], name)
    record_run(ws, checkpoint, chosen, overrides)
    with (folder / "history.csv").open(newline="") as stream:
        epochs = list(csv.DictReader(stream))
    history = [
        EpochMetric(
            program=program_name,
            experiment=name,
            checkpoint=key,
            epoch=int(epoch["epoch"]),
            metric=metric,
            value=float(value),
        )
        for epoch in epochs
        for metric, value in epoch.items()
        if metric not in ("epoch", "step") and value not in ("", None)
    ]
    catalog.replace(EpochMetric, history, name)
    return pd.DataFrame(epochs).apply(pd.to_numeric, errors="coerce") if epochs else pd.DataFrame({"epoch": []})


def checkpoint_of(ws: Settings, program_name: str, name: str) -> Checkpoint:
    """The recorded checkpoint of an experiment; raises ConfigurationError when it was never trained."""
    found = Catalog(ws, program_name).checkpoint(name)
    if found is None:
        raise ConfigurationError(
            f"{program_name}/{name} has no checkpoint yet; run `med-assets train {program_name}/{name}` first"
        )
    return found


def stored_checkpoint(ws: Settings, program_name: str, model: Model) -> Path:
    """Folder of a recorded checkpoint. Raises ArtifactMissing that names the experiment and says what to do."""
    key, named = model.checkpoint, f"{program_name}/{model.experiment}"
    if not ws.store.has(key):
        champion = Catalog(ws, program_name).champion()
        what, other = "the checkpoint", ""
        if champion is not None and champion.checkpoint == key:
            what = "the champion's checkpoint"
            other = f", or `med-assets rollback {program_name} --reason ...` makes the champion before it the champion again"
        raise ArtifactMissing(
            f"expected {what} of {named}, {key}, in the store, found nothing; restore it from a backup of the home, or "
            f"`med-assets train {named}` makes it again where its cases and code are the same{other}"
        )
    return model_folder(ws, key)
