"""One folder of files predicted by one model, with files for viewers and clinics: nothing is taken in, and nothing is kept."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import PredictionFacts
from med_assets.catalog import Catalog
from med_assets.errors import CaseRejected, ConfigurationError, DiskFull
from med_assets.intake.reader import Readers
from med_assets.intake.reading import FACTS_FILE, Preparation, StoredCase, Task
from med_assets.launch.training import checkpoint_of
from med_assets.preparation.audit import Audited, audited
from med_assets.settings import Workspace
from med_assets.storage.files import read_json, replacing, walk
from med_assets.storage.scratch import remove_abandoned, scratch

TABLE = "predictions.csv"


@dataclass(frozen=True)
class Outcome:
    """What came of one case, or of files that make none: the reason, or the files that were written and what they hold."""

    case_id: str
    reason: str = ""
    paths: tuple[Path, ...] = ()
    measured: Mapping[str, float | str | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def predict_folder(
    ws: Workspace, program_name: str, folder: Path, experiment: str | None, out: Path, *, relink: bool = False
) -> list[Outcome]:
    """Predict every case in a folder with the champion, or the model of an experiment; results lie below `out` by case.

    Labels beside the images are not looked at. `relink` gives the written DICOM the patient, study and UIDs of the files
    instead of pseudonyms, so that a clinic's own systems take them. Raises ConfigurationError for a folder that is not there,
    for one of the landing zone or the home, and where there is no model.
    """
    folder, out = folder.resolve(), out.resolve()
    if not folder.is_dir():
        raise ConfigurationError("expected a folder with DICOM files, got one that is not there, or no folder")
    for inside in (ws.home.resolve(), ws.landing.resolve()):
        if out == inside or out.is_relative_to(inside):
            raise ConfigurationError(
                "expected an output folder outside of the home and the landing zone; choose another"
            )
    model = checkpoint_of(ws, program_name, experiment) if experiment else Catalog(ws, program_name).champion()
    if model is None:
        raise ConfigurationError(f"{program_name} has no champion yet; name an experiment with --model")
    ws.store.verify(model.checkpoint)
    remove_abandoned(ws.home)
    predictor = None
    outcomes = []
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as work_folder:
        for number, found in enumerate(_cases(ws, program_name, folder, Path(work_folder))):
            if isinstance(found, Outcome):
                outcomes.append(found)
                continue
            if predictor is None:
                # What a model keeps of cases goes with them.
                predictor = program.get(program_name).predictor(ws.store.fetch(model.checkpoint), Path(work_folder))
            work = Path(work_folder) / f"work-{number}"
            outcomes.append(_predicted(ws, program_name, found, predictor, model.checkpoint, work, out))
        if relink:
            outcomes = _relinked(ws, folder, out, outcomes)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / TABLE) as temporary:
        table(outcomes, out).to_csv(temporary, index=False)
    return outcomes


def table(outcomes: list[Outcome], out: Path) -> pd.DataFrame:
    """What came of each case, a row each, with what was measured in columns of its own."""
    return pd.DataFrame(
        [
            {"case": one.case_id, "status": "predicted" if one.paths else "refused"}
            | dict(one.measured)
            | {"files": ", ".join(path.relative_to(out).as_posix() for path in one.paths)}
            | {"reason": one.reason, "warnings": "; ".join(one.warnings)}
            for one in outcomes
        ]
    )


def _cases(ws: Workspace, program_name: str, folder: Path, work_folder: Path) -> list[StoredCase | Outcome]:
    """The de-identified cases of a folder, each in a folder of its own below `work_folder`, and what makes no case."""
    found: list[StoredCase | Outcome] = []

    def keep(case: StoredCase) -> None:
        kept = work_folder / f"raw-{len(found)}"
        case.folder.rename(kept)
        found.append(replace(case, folder=kept))

    task = Task(ws, program_name, "", "files", folder, tuple(sorted(walk(folder))), Path())
    try:
        with Readers(ws) as readers:
            cases = readers.read(task, keep).cases
    except CaseRejected as rejected:
        return [Outcome("files", str(rejected))]
    kept = {one.case.case_id for one in found if isinstance(one, StoredCase)}
    found += [Outcome(case.case_id, case.reason or "") for case in cases if case.case_id not in kept]
    return found


def _predicted(
    ws: Workspace,
    program_name: str,
    case: StoredCase,
    predictor: program.CasePredictor,
    checkpoint: str,
    work: Path,
    out: Path,
) -> Outcome:
    chosen, case_id = program.get(program_name), case.case.case_id
    prepared, predicted = work / "prepared", work / "predicted"
    try:
        for made in (prepared, predicted):
            made.mkdir(parents=True)
        with Readers(ws) as readers:
            readers.prepare(Preparation(ws, program_name, case_id, case.folder, prepared))
        facts = {"case_id": case_id} | read_json(prepared / FACTS_FILE)
        audit = audited(ws, program_name, [facts], unlabelled={case_id}).get(case_id, Audited())
        if audit.errors:
            return Outcome(case_id, "; ".join(audit.errors))
        predictor.predict(prepared, predicted)
        paths = chosen.write_prediction(case.folder, prepared, predicted, out / case_id, checkpoint)
        pictures = chosen.report_images(ws, prepared, predicted, out / case_id)
        measured = chosen.prediction_facts(ws, prepared, predicted) if isinstance(chosen, PredictionFacts) else {}
    except DiskFull:  # no fault of the case
        raise
    except CaseRejected as rejected:
        return Outcome(case_id, str(rejected))
    except Exception as error:  # one bad case never stops the others
        return Outcome(case_id, f"predicting failed with {type(error).__name__}: {error}")
    return Outcome(case_id, "", (*paths, *pictures), measured, audit.warnings)


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
