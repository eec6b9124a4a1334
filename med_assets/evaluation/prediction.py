"""One case predicted by one model, written as files for viewers and planning systems."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from med_assets import program
from med_assets.capabilities import (
    EDITED,
    CorrectsByPoints,
    DebugImages,
    EditsConstraints,
    Measurements,
    PredictsLoops,
    Prompted,
)
from med_assets.catalog import Catalog, usable
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.evaluation.points import Points, Uncorrected
from med_assets.evaluation.predicting import predict_cases
from med_assets.evaluation.prompts import Prompts
from med_assets.launch.ensembles import verify_model
from med_assets.launch.training import Launch, NamedModel, checkpoint_of, stored_checkpoint
from med_assets.records import PreparedCase
from med_assets.settings import Settings
from med_assets.storage.scratch import scratch


@dataclass(frozen=True)
class Predicted:
    """One case under one model: the key of the checkpoint, and the folders of its DICOM, its arrays and what was predicted."""

    checkpoint: str
    raw: Path
    prepared: Path
    kept: Path


def predict(
    ws: Settings,
    program_name: str,
    case: str,
    experiment: str | None,
    out: Path,
    launch: Launch | None = None,
    *,
    report: bool = False,
) -> list[Path]:
    """Predict an accepted case (its id or the first characters of it) with the champion, or the model of an experiment.

    A prediction that was made before is taken from the store. `report` adds measurements as DICOM SR, where the program has
    some. Raises ConfigurationError when no or several cases
    match, when there is no champion, MedAssetsError when the case can't be predicted, and what the launch does.
    """
    found = _predicted(ws, program_name, case, experiment, launch)
    chosen, given = program.get(program_name), (found.raw, found.prepared, found.kept, out, found.checkpoint)
    written = chosen.write_prediction(*given)
    return [*written, *(chosen.write_measurements(*given) if report and isinstance(chosen, Measurements) else ())]


def predict_edited(
    ws: Settings, program_name: str, case: str, experiment: str | None, out: Path, edits: Sequence[str]
) -> list[Path]:
    """Predict a case as `predict` does, under constraints that texts NAME=VALUE edit, in this process; nothing of it is kept in the store.

    Raises what `predict` does, and ConfigurationError for constraints that the program doesn't have.
    """
    from med_assets.training.ensemble import load_model

    chosen = program.get(program_name)
    if not isinstance(chosen, EditsConstraints):
        raise ConfigurationError(f"expected a program with planning constraints, such as rt_dose, got {program_name}")
    found, model = _accepted(ws, program_name, case), model_of(ws, program_name, experiment)
    checkpoint = stored_checkpoint(ws, program_name, model)
    verify_model(ws, model.checkpoint)
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as folder:
        edited, kept = Path(folder) / "edited", Path(folder) / "kept"
        edited.mkdir()
        kept.mkdir()
        chosen.edit_constraints(ws, ws.store.fetch(found.row.artifact), edited, edits)
        load_model(program_name, checkpoint, Path(folder)).predict(edited, kept)
        written = chosen.write_prediction(ws.store.fetch(found.raw), edited, kept, out, model.checkpoint)
        return [*written, Path(shutil.copyfile(edited / EDITED, out / EDITED))]


def debug(ws: Settings, program_name: str, case: str, experiment: str | None, out: Path) -> list[Path]:
    """Plot every step of one case, from arrays to scores; what is raised is that of `predict`."""
    found = _predicted(ws, program_name, case, experiment)
    chosen = program.get(program_name)
    if not isinstance(chosen, DebugImages):
        return chosen.report_images(ws, found.prepared, found.kept, out)
    return chosen.debug_images(ws, ws.store.fetch(found.checkpoint), found.prepared, found.kept, out)


def correct(
    ws: Settings, program_name: str, case: str, points: Points, experiment: str | None, out: Path
) -> list[Path]:
    """Write the files of an accepted case, predicted by the champion or the model of an experiment and corrected by points.

    It is computed by this process, and nothing of it is kept in the home. Raises ConfigurationError as `predict`, and for points, a class or
    a model that can't be used.
    """
    chosen = program.get(program_name)
    if not isinstance(chosen, CorrectsByPoints):
        raise ConfigurationError(
            f"expected a program whose predictions points correct, got {program_name}, which has none"
        )
    found, model = _accepted(ws, program_name, case), model_of(ws, program_name, experiment)
    stored_checkpoint(ws, program_name, model)
    ws.store.verify(model.checkpoint)
    uncorrected = Uncorrected(model.checkpoint, ws.store.fetch(found.raw), ws.store.fetch(found.row.artifact))
    return chosen.correct(ws, uncorrected, points, out)


def model_of(ws: Settings, program_name: str, experiment: str | None) -> NamedModel:
    """The model of an experiment, or the champion. Raises ConfigurationError where there is none."""
    if experiment:
        found = checkpoint_of(ws, program_name, experiment)
        return NamedModel(experiment, found.checkpoint)
    champion = Catalog(ws, program_name).champion()
    if champion is None:
        raise ConfigurationError(f"{program_name} has no champion yet; name an experiment with --model")
    return NamedModel(champion.experiment, champion.checkpoint)


@dataclass(frozen=True)
class _Accepted:
    """An accepted case: its row, and the key of its DICOM."""

    row: PreparedCase
    raw: str


def _accepted(ws: Settings, program_name: str, case: str) -> _Accepted:
    """The accepted case whose id starts with these characters, as it was sent last. Raises ConfigurationError."""
    catalog = Catalog(ws, program_name)
    prepared = {
        row.case_id: row
        for row in sorted(usable(catalog.prepared()), key=lambda row: row.batch)
        if row.case_id.startswith(case)
    }
    if len(prepared) != 1:
        raise ConfigurationError(
            f"expected one accepted case whose id starts with {case!r}, got {len(prepared)}; see `med-assets cases {program_name}`"
        )
    ((case_id, row),) = prepared.items()
    raw = next(each.artifact for each in usable(catalog.case_versions(row.batch)) if each.case_id == case_id)
    return _Accepted(row, raw)


def _predicted(
    ws: Settings, program_name: str, case: str, experiment: str | None, launch: Launch | None = None
) -> Predicted:
    found, model = _accepted(ws, program_name, case), model_of(ws, program_name, experiment)
    row = found.row
    stored_checkpoint(ws, program_name, model)
    ws.store.verify(model.checkpoint)
    predicted = predict_cases(ws, program_name, model.checkpoint, [row], launch)
    if predicted.failures:
        raise MedAssetsError(f"case {row.case_id} could not be predicted: {predicted.failures[row.artifact]}")
    folders = (ws.store.fetch(key) for key in (found.raw, row.artifact, predicted.keys[row.artifact]))
    return Predicted(model.checkpoint, *folders)


def outline(
    ws: Settings, program_name: str, case: str, prompts: Prompts, experiment: str | None, out: Path
) -> list[Path]:
    """Write the files of an accepted case, predicted from a person's points and box; nothing of it is kept in the home.

    Raises ConfigurationError as `predict`, and for a program, a model or a point that can't be used.
    """
    chosen = program.get(program_name)
    if not isinstance(chosen, Prompted):
        raise ConfigurationError(f"expected a program whose models take points and boxes, got {program_name}")
    found, model = _accepted(ws, program_name, case), model_of(ws, program_name, experiment)
    checkpoint = stored_checkpoint(ws, program_name, model)
    ws.store.verify(model.checkpoint)
    raw, prepared = ws.store.fetch(found.raw), ws.store.fetch(found.row.artifact)
    return chosen.outline(ws, checkpoint, raw, prepared, prompts, out, model.checkpoint)


def predict_loop(
    ws: Settings, program_name: str, loop: Path, experiment: str | None, out: Path, masks: bool = False
) -> list[Path]:
    """Write what a model predicts of each frame of a cine loop; nothing of it is kept in the home.

    Raises ConfigurationError as `predict`, and for a program that predicts no loops, CaseRejected for a file that is none.
    """
    chosen = program.get(program_name)
    if not isinstance(chosen, PredictsLoops):
        raise ConfigurationError(f"expected a program that predicts cine loops, got {program_name}")
    model = model_of(ws, program_name, experiment)
    checkpoint = stored_checkpoint(ws, program_name, model)
    ws.store.verify(model.checkpoint)
    return chosen.predict_loop(ws, checkpoint, loop, out, masks)
