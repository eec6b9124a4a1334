"""One folder of files predicted by one model, with files for viewers and clinics: nothing is taken in, and nothing is kept."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import Measurements, PlainImages, PredictionFacts
from med_assets.errors import CaseRejected, ConfigurationError, DiskFull
from med_assets.evaluation.confidence import Trusting
from med_assets.evaluation.prediction import Predicted, model_of
from med_assets.intake.plain_images import PlainImage, write_plain_image
from med_assets.intake.reader import PREPARATION_LIMITS, Readers
from med_assets.intake.reading import FACTS_FILE, Preparation, StoredCase, Task
from med_assets.intake.workers import Workers, side_by_side
from med_assets.launch.ensembles import model_folder, verify_model
from med_assets.launch.training import NamedModel
from med_assets.preparation.audit import Audited, audited
from med_assets.preparation.expectations import INDEX, import_ahead
from med_assets.records import CaseVersion, Champion, Checkpoint
from med_assets.settings import Workspace
from med_assets.storage.files import read_json, replacing, walk
from med_assets.storage.scratch import remove_abandoned, scratch
from med_assets.training import ensemble

TABLE = "predictions.csv"

ARRAYS, PREDICTED = ".prepared", ".predicted"
"""What the folders of a case's arrays and prediction are named after its files'."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case, or of files that make none: the reason, or the files that were written and what they hold."""

    case_id: str
    reason: str = ""
    paths: tuple[Path, ...] = ()
    measured: Mapping[str, float | str | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What was written of a predicted case, and what it holds."""

    paths: tuple[Path, ...]
    measured: Mapping[str, float | str | None]


Write = Callable[[str, Predicted, Path], Written]
"""Writes files of a predicted case, by its id, into a folder. Raises CaseRejected for one that it can't write."""


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that is ready to predict: the experiment that it was trained in, its key, what predicts, and what says how far to trust it."""

    experiment: str
    checkpoint: str
    predictor: program.CasePredictor | ensemble.EnsemblePredictor
    trusting: Trusting


def load_model(
    ws: Workspace, program_name: str, recorded: Champion | Checkpoint | NamedModel, cache: Path
) -> LoadedModel:
    """Load a recorded checkpoint whose bytes are checked; `cache` is a folder for what a model keeps of cases.

    Raises ArtifactCorrupt, ArtifactMissing, CheckpointMismatch.
    """
    verify_model(ws, recorded.checkpoint)
    predictor = ensemble.load_model(program_name, model_folder(ws, recorded.checkpoint), cache)
    trusting = Trusting.of(ws, program_name, recorded.experiment, recorded.checkpoint)
    return LoadedModel(recorded.experiment, recorded.checkpoint, predictor, trusting)


@dataclass(frozen=True)
class Ready:
    """A prepared case: its files, facts, and what they fail of the audit."""

    case: StoredCase
    facts: Mapping[str, Any]
    audit: Audited = field(default_factory=Audited)


def predict_folder(
    ws: Workspace,
    program_name: str,
    folder: Path,
    experiment: str | None,
    out: Path,
    *,
    relink: bool = False,
    report: bool = False,
) -> list[Outcome]:
    """Predict every case in a folder with the champion, or the model of an experiment; results lie below `out` by case.

    Labels beside the images are not looked at. `report` adds measurements as DICOM SR, where the program has some. `relink`
    gives the written DICOM the patient, study and UIDs of the files instead of pseudonyms, so that a clinic's own systems take
    them. Raises ConfigurationError for a folder that is not there, for one of the landing zone or the home, and where there is
    no model.
    """
    model = model_of(ws, program_name, experiment)
    outcomes = predict_all(
        ws, program_name, folder, model, out, partial(write_files, ws, program_name, report=report), relink=relink
    )
    write_table(outcomes, out, TABLE, "predicted")
    return outcomes


def predict_all(
    ws: Workspace,
    program_name: str,
    folder: Path,
    model: NamedModel,
    out: Path,
    write: Write,
    *,
    relink: bool = False,
) -> list[Outcome]:
    """Predict every case in a folder, and `write` it into a folder of its own below `out`; what is raised is that of `predict_folder`."""
    folder, out = folder.resolve(), out.resolve()
    if not folder.is_dir():
        raise ConfigurationError("expected a folder with DICOM files, got one that is not there, or no folder")
    for inside in (ws.home.resolve(), ws.landing.resolve()):
        if out == inside or out.is_relative_to(inside):
            raise ConfigurationError(
                "expected an output folder outside of the home and the landing zone; choose another"
            )
    verify_model(ws, model.checkpoint)
    remove_abandoned(ws.home)

    def load(work_folder: Path) -> LoadedModel:
        return load_model(ws, program_name, model, work_folder)

    return predict_cases(ws, program_name, folder, out, load, write, relink=relink)


def predict_cases(
    ws: Workspace,
    program_name: str,
    folder: Path,
    out: Path,
    load: Callable[[Path], LoadedModel],
    write: Write,
    *,
    relink: bool = False,
) -> list[Outcome]:
    """Read, de-identify, prepare, audit and predict every case in a folder, and `write` it into a folder of its own below `out`.

    `load` gives the model, once a case is ready for it; its folder is gone afterwards, with all else that was made of the files.
    """
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as work_folder:
        found = _prepared(ws, program_name, _cases(ws, program_name, folder, Path(work_folder)))
        model = load(Path(work_folder)) if any(isinstance(one, Ready) for one in found) else None
        outcomes = []
        for one in found:
            if isinstance(one, Ready):
                assert model is not None
                one = _predicted(one, model, out, write)
            outcomes.append(one)
        return _relinked(ws, folder, out, outcomes) if relink else outcomes


def write_table(outcomes: list[Outcome], out: Path, name: str, done: str) -> Path:
    """Write `table` as CSV into a folder; returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / name) as temporary:
        table(outcomes, out.resolve(), done).to_csv(temporary, index=False)
    return out / name


def table(outcomes: list[Outcome], out: Path, done: str) -> pd.DataFrame:
    """What came of each case, a row each with the status `done` or refused, and what was measured in columns of its own."""
    return pd.DataFrame(
        [
            {"case": one.case_id, "status": done if one.paths else "refused"}
            | dict(one.measured)
            | {"files": ", ".join(path.relative_to(out).as_posix() for path in one.paths)}
            | {"reason": one.reason, "warnings": "; ".join(one.warnings)}
            for one in outcomes
        ]
    )


def _cases(ws: Workspace, program_name: str, folder: Path, work_folder: Path) -> list[StoredCase | Outcome]:
    """The de-identified cases of a folder, each in a folder of its own below `work_folder`, and what makes no case.

    An image file that the program takes in, such as NIfTI, becomes DICOM first, and then passes what DICOM passes.
    """
    kept: dict[CaseVersion, StoredCase] = {}
    results: dict[str, CaseVersion] = {}
    files = sorted(walk(folder))
    plain, refused = _plain_images(ws, program_name, files, work_folder)
    others = [path for path in files if path not in plain]

    def keep(case: StoredCase) -> None:
        kept[case.case] = replace(case, folder=case.folder.rename(work_folder / f"raw-{len(kept)}"))

    def read(workers: Workers, entry: tuple[Path | None, Sequence[Path]]) -> list[CaseVersion]:
        task = Task(ws, program_name, "", "files", entry[0], tuple(entry[1]), Path())
        return workers.read(task, keep, results).cases

    entries: list[tuple[Path | None, Sequence[Path]]] = [
        (written, sorted(walk(written))) for written in plain.values() if written is not None
    ]
    if others or not plain:
        entries.insert(0, (None if plain else folder, others))
    try:
        found = side_by_side(ws, entries, read, "reading", "folders", shared=True)
    except CaseRejected as rejected:
        return [Outcome("files", str(rejected)), *refused]
    cases = [case for of_entry in found for case in of_entry]
    ids = {case.case_id for case in kept}
    refused += [Outcome(case.case_id, case.reason or "") for case in cases if case.case_id not in ids]
    return [*(kept[case] for case in cases if case in kept), *refused]


def _plain_images(
    ws: Workspace, program_name: str, files: Sequence[Path], work_folder: Path
) -> tuple[dict[Path, Path | None], list[Outcome]]:
    """By image file that the program takes in the folder with its DICOM, None for one that is refused, and these refusals."""
    chosen = program.get(program_name)
    if not isinstance(chosen, PlainImages):
        return {}, []
    images = [path for path in files if path.name.lower().endswith(chosen.plain_suffixes) and path.is_file()]

    def write(workers: Workers, numbered: tuple[int, Path]) -> Path | Outcome:
        number, image = numbered
        written = work_folder / f"plain-{number}"
        shutil.rmtree(written, ignore_errors=True)  # of a process that ended
        written.mkdir()
        try:
            with workers.borrow() as readers:
                task = PlainImage(program_name, image, written)
                readers.call(partial(write_plain_image, task), f"image {number}", PREPARATION_LIMITS * ws.intake_file_s)
            return written
        except CaseRejected as rejected:
            return Outcome(f"image-{number}", str(rejected))

    made = side_by_side(ws, list(enumerate(images)), write, "converting", "images")
    written = {image: one if isinstance(one, Path) else None for image, one in zip(images, made, strict=True)}
    return written, [one for one in made if isinstance(one, Outcome)]


def _prepared(ws: Workspace, program_name: str, found: Sequence[StoredCase | Outcome]) -> list[Ready | Outcome]:
    """Prepare cases side by side and audit them together, in their order; what is no case stays as it is."""
    cases = [one for one in found if isinstance(one, StoredCase)]
    if cases:
        import_ahead()
    made = iter(side_by_side(ws, cases, partial(_prepare, ws, program_name), "preparing"))
    out = [next(made) if isinstance(one, StoredCase) else one for one in found]
    rows = [{**one.facts, INDEX: str(number)} for number, one in enumerate(out) if isinstance(one, Ready)]
    audits = audited(ws, program_name, rows, unlabelled={row[INDEX] for row in rows}) if rows else {}
    return [
        replace(one, audit=audits.get(str(number), Audited())) if isinstance(one, Ready) else one
        for number, one in enumerate(out)
    ]


def _prepare(ws: Workspace, program_name: str, workers: Workers, case: StoredCase) -> Ready | Outcome:
    arrays, case_id = case.folder.with_suffix(ARRAYS), case.case.case_id
    shutil.rmtree(arrays, ignore_errors=True)  # of a process that ended
    arrays.mkdir()
    try:
        with workers.borrow() as readers:
            readers.prepare(Preparation(ws, program_name, case_id, case.folder, arrays))
        return Ready(case, read_json(arrays / FACTS_FILE))
    except CaseRejected as rejected:
        return Outcome(case_id, str(rejected))


def write_files(
    ws: Workspace,
    program_name: str,
    case_id: str,
    predicted: Predicted,
    out: Path,
    *,
    pictures: bool = True,
    report: bool = False,
) -> Written:
    """Write the files for viewers and planning systems, with `report` the measurements as DICOM SR, and the pictures unless they
    are not wanted."""
    chosen, given = program.get(program_name), (predicted.raw, predicted.prepared, predicted.kept, out)
    paths = chosen.write_prediction(*given, predicted.checkpoint)
    if report and isinstance(chosen, Measurements):
        paths = [*paths, *chosen.write_measurements(*given, predicted.checkpoint)]
    if pictures:
        paths = [*paths, *chosen.report_images(ws, predicted.prepared, predicted.kept, out)]
    if not isinstance(chosen, PredictionFacts):
        return Written(tuple(paths), {})
    return Written(tuple(paths), chosen.prediction_facts(ws, predicted.prepared, predicted.kept))


def _predicted(ready: Ready, model: LoadedModel, out: Path, write: Write) -> Outcome:
    case_id, stored = ready.case.case.case_id, ready.case.folder
    predicted = Predicted(model.checkpoint, stored, stored.with_suffix(ARRAYS), stored.with_suffix(PREDICTED))
    if ready.audit.errors:
        return Outcome(case_id, "; ".join(ready.audit.errors))
    try:
        predicted.kept.mkdir()
        model.predictor.predict(predicted.prepared, predicted.kept)
        written = write(case_id, predicted, out / case_id)
        sure = model.trusting.of_case(predicted.prepared, predicted.kept, ready.facts)
    except DiskFull:  # no fault of the case
        raise
    except CaseRejected as rejected:
        return Outcome(case_id, str(rejected))
    except Exception as error:  # one bad case never stops the others
        return Outcome(case_id, f"predicting failed with {type(error).__name__}: {error}")
    return Outcome(case_id, "", written.paths, {**written.measured, **sure.measured}, ready.audit.warnings)


def _relinked(ws: Workspace, folder: Path, out: Path, outcomes: list[Outcome]) -> list[Outcome]:
    """Relink what was written; a case that can't be is refused, and nothing of it is left in `out`."""
    from med_assets.deidentification.relink import Header, Origin

    try:
        with Readers(ws) as readers:
            found = readers.originals(sorted(walk(folder)))
    except CaseRejected as rejected:
        return [_unlinked(out, one, rejected) for one in outcomes]
    origin = Origin.of((Header(**row) for row in found), ws.key)
    relinked = []
    for one in outcomes:
        try:
            for path in one.paths:
                if path.suffix == ".dcm":
                    origin.relink(path)
        except CaseRejected as rejected:
            one = _unlinked(out, one, rejected)
        relinked.append(one)
    return relinked


def _unlinked(out: Path, one: Outcome, rejected: CaseRejected) -> Outcome:
    if not one.paths:
        return one
    shutil.rmtree(out / one.case_id)
    return Outcome(one.case_id, str(rejected), warnings=one.warnings)
