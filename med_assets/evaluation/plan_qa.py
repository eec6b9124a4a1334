"""Plans compared with what a model predicts for their patients: a page for each case, and a table of all."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from med_assets import program
from med_assets.capabilities import ModelOfPage, PlanPages, UsualError
from med_assets.catalog import Case, Catalog
from med_assets.errors import CaseRejected, ConfigurationError, DiskFull, NoTruth, RemoteFailed
from med_assets.evaluation.predict_folder import Outcome, Written, predict_all, write_table
from med_assets.evaluation.predicting import predict_cases
from med_assets.evaluation.prediction import Predicted, model_of
from med_assets.evaluation.scoring import score_predicted
from med_assets.launch.training import Launch, NamedModel, stored_checkpoint
from med_assets.metrics.score import Score
from med_assets.records import CaseScore
from med_assets.settings import Workspace
from med_assets.storage import names
from med_assets.storage.provenance import cases_used_by

TABLE, PAGE = "plan_qa.csv", "plan_qa.pdf"


@dataclass(frozen=True)
class Comparison:
    """The model that plans are compared with: what a page says of it, and the cases that it was trained on."""

    model: NamedModel
    pages: PlanPages
    trained_on: frozenset[str]
    usual: dict[tuple[str, str], UsualError]

    @classmethod
    def of(cls, ws: Workspace, program_name: str, experiment: str | None) -> "Comparison":
        """Raises ConfigurationError where there is no model or the program compares no plans, and ArtifactMissing."""
        pages = program.get(program_name)
        if not isinstance(pages, PlanPages):
            raise ConfigurationError(f"expected a program that compares plans, such as rt_dose, got {program_name}")
        model = model_of(ws, program_name, experiment)
        stored_checkpoint(ws, program_name, model)
        ws.store.verify(model.checkpoint)
        used = cases_used_by(ws.store, model.checkpoint)
        trained_on = frozenset(case.case_id for case in used if case.split == "train")
        return cls(model, pages, trained_on, _usual(Catalog(ws, program_name), model))

    def write(
        self, ws: Workspace, case_id: str, prepared: Path, predicted: Path, scores: Sequence[Score], out: Path
    ) -> Written:
        """Write the page of a case into a folder."""
        trained = case_id in self.trained_on
        model = ModelOfPage(self.model.experiment, self.model.checkpoint, trained, self.usual)
        out.mkdir(parents=True, exist_ok=True)
        measured = self.pages.plan_page(ws, prepared, predicted, scores, model, out / PAGE)
        return Written((out / PAGE,), {"model trained on it": "yes" if trained else "no", **measured})


def plan_qa(
    ws: Workspace,
    program_name: str,
    case: str | None,
    experiment: str | None,
    out: Path,
    launch: Launch | None = None,
) -> list[Outcome]:
    """Compare the plans of all cases of the dataset, of one (its id or the first characters), or of those in a folder, with the predictions
    of the champion or the model of an experiment.

    Pages lie below `out` by case, with TABLE beside them. Of a folder nothing is taken in or kept. A case that can't be compared
    is a row with the reason. Raises ConfigurationError for a case, folder or model that is not there, and what the launch does.
    """
    compared = Comparison.of(ws, program_name, experiment)
    if case is not None and os.path.isdir(case):
        outcomes = _of_folder(ws, program_name, compared, Path(case), out)
    else:
        outcomes = _of_dataset(ws, program_name, compared, case, out, launch)
    write_table(outcomes, out, TABLE, "compared")
    return outcomes


def _of_folder(ws: Workspace, program_name: str, compared: Comparison, folder: Path, out: Path) -> list[Outcome]:
    def write(case_id: str, predicted: Predicted, into: Path) -> Written:
        try:
            scores = program.get(program_name).score(ws, predicted.prepared, predicted.kept)
        except NoTruth as error:
            raise CaseRejected("no_rtdose", f"{error}; send the planned dose with the plan") from error
        return compared.write(ws, case_id, predicted.prepared, predicted.kept, scores, into)

    return predict_all(ws, program_name, folder, compared.model, out, write)


def _of_dataset(
    ws: Workspace, program_name: str, compared: Comparison, case: str | None, out: Path, launch: Launch | None
) -> list[Outcome]:
    cases = _chosen(Catalog(ws, program_name), case)
    checkpoint = compared.model.checkpoint
    predicted = predict_cases(ws, program_name, checkpoint, cases, launch)
    scores, _, failures = score_predicted(ws, program_name, checkpoint, cases, predicted)
    outcomes = []
    for one in cases:
        reason = failures.get(one.case_id) or predicted.failures.get(one.artifact)
        if reason:
            outcomes.append(Outcome(one.case_id, reason))
            continue
        try:
            prepared, kept = ws.store.fetch(one.artifact), ws.store.fetch(predicted.keys[one.artifact])
            written = compared.write(ws, one.case_id, prepared, kept, scores[one.case_id], out / one.case_id)
        except (DiskFull, RemoteFailed):  # no fault of the case
            raise
        except Exception as error:  # one bad case never stops the others
            outcomes.append(Outcome(one.case_id, f"comparing failed with {type(error).__name__}: {error}"))
        else:
            outcomes.append(Outcome(one.case_id, "", written.paths, written.measured))
    return outcomes


def _chosen(catalog: Catalog, case: str | None) -> list[Case]:
    """The cases of the dataset, or the one whose id starts so. Raises ConfigurationError where there is none, or not one."""
    cases = catalog.described()
    if case is None:
        if not cases:
            raise ConfigurationError(f"expected cases in the dataset of {catalog.program}, got none; ingest some first")
        return cases
    found = [one for one in cases if one.case_id.startswith(case)]
    if len(found) != 1:
        raise ConfigurationError(
            f"expected one case with a planned dose whose id starts with {names.escaped(case)}, or a folder, got {len(found)} cases; "
            f"see `med-assets cases {catalog.program}`"
        )
    return found


def _usual(catalog: Catalog, model: NamedModel) -> dict[tuple[str, str], UsualError]:
    """The mean absolute value of each metric and subject over the validation cases that the model was evaluated on."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in catalog.rows(CaseScore, model.experiment):
        if row.checkpoint == model.checkpoint and row.split == "val" and row.value is not None:
            values[row.metric, row.subject].append(abs(row.value))
    return {key: UsualError(sum(found) / len(found), len(found)) for key, found in values.items()}
