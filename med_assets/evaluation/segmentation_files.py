"""Cases as files for other segmentation frameworks, nnU-Net's above all, and their predictions as one more experiment.

nnU-Net v2, documentation/dataset_format.md: `imagesTr/CASE_0000.ENDING`, `labelsTr/CASE.ENDING`, `imagesTs`, dataset.json; splits_final.json is
what it reads from its preprocessed folder. Folders as TotalSegmentator has them: `CASE/ct.nii.gz`, `CASE/segmentations/LABEL.nii.gz`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from med_assets import program
from med_assets.capabilities import SegmentationTask
from med_assets.catalog import Case, Catalog
from med_assets.errors import CaseRejected, ConfigurationError, MedAssetsError
from med_assets.evaluation.aggregates import aggregate
from med_assets.evaluation.comparison import SPLIT
from med_assets.evaluation.predicting import PredictedCases, prediction_key
from med_assets.evaluation.scoring import case_scores, demand_scores, evaluated_splits, record_failures, score_predicted
from med_assets.launch.training import NamedModel
from med_assets.records import AggregateScore, CaseScore
from med_assets.settings import Settings
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import digest, file_sha256, write_json
from med_assets.storage.provenance import git_state

NNUNET, TOTALSEGMENTATOR = "nnunet", "totalsegmentator"
LAYOUTS = (NNUNET, TOTALSEGMENTATOR)

IMPORTED = "imported/"
"""What keys of imported predictions have in place of those of checkpoints: there is no model."""

HELD_BACK = ("test", "external")
"""Splits whose cases are written without labels."""

MAX_ID = 999


@dataclass(frozen=True)
class Written:
    """What was written: the folder, and cases by split."""

    folder: Path
    cases: Mapping[str, int]


@dataclass(frozen=True)
class Imported:
    """What came of an import: the key of the folder, cases with scores, and files that are no case to score, with the reason."""

    key: str
    scored: int
    left_out: Mapping[str, str]


def task_of(program_name: str) -> SegmentationTask:
    """The program's segmentation task. Raises ConfigurationError for a program without one."""
    chosen = program.get(program_name)
    if not isinstance(chosen, SegmentationTask):
        raise ConfigurationError(f"expected a program that segments, such as lung_ct or breast_us, got {program_name}")
    return chosen


def write_dataset(
    ws: Settings, program_name: str, dest: Path, number: int, layout: str = NNUNET, *, folds: bool = False
) -> Written:
    """Write the dataset with our splits; case names are pseudonyms. `number` is nnU-Net's id of the dataset, 1 to 999.

    With `folds` the training cases are divided by our folds of patients, for a cross-validation whose models are averaged, and validation
    cases are written as test cases are, without labels: no model is to have seen one. Raises ConfigurationError where there is no case, or
    something is at the folder already, and for `folds` where the training cases are of fewer than two.
    """
    task, cases = task_of(program_name), Catalog(ws, program_name).cases()
    if not 1 <= number <= MAX_ID:
        raise ConfigurationError(f"expected an id of 1 to {MAX_ID}, got {number}")
    if layout == TOTALSEGMENTATOR and task.file_ending != ".nii.gz":
        raise ConfigurationError(
            f"expected a program of volumes for folders as TotalSegmentator has them, got {program_name}"
        )
    if not cases:
        raise ConfigurationError(
            f"{program_name} has no cases with a split yet; run `med-assets ingest {program_name}`"
        )
    folder = dest / (f"Dataset{number:03d}_{program_name}" if layout == NNUNET else program_name)
    if folder.exists():
        raise ConfigurationError(f"expected a folder that is not there yet, got {folder.name} in the destination")
    by_split = {split: sorted(case.case_id for case in cases if case.split == split) for split in ("train", "val")}
    divisions = _folds([case for case in cases if case.split == "train"]) if folds else [by_split]
    held_back = (*HELD_BACK, SPLIT) if folds else HELD_BACK
    for case in cases:
        image, label = _places(task, folder, case, layout, held_back)
        image.parent.mkdir(parents=True, exist_ok=True)
        if label is not None:
            label.parent.mkdir(parents=True, exist_ok=True)
        task.write_image_and_label(ws.store.fetch(case.artifact), image, label)
    write_json(folder / "splits_final.json", divisions)
    if layout == NNUNET:
        described = {
            "channel_names": {"0": task.channel},
            "labels": {"background": 0, task.label_name: 1},
            "numTraining": sum(len(members) for members in divisions[0].values()),
            "file_ending": task.file_ending,
            "dataset_version": Catalog(ws, program_name).dataset().version,
        }
        write_json(folder / "dataset.json", described)
    counts = {
        split: sum(case.split == split for case in cases) for split in sorted({str(case.split) for case in cases})
    }
    return Written(folder, counts)


def _folds(training: Sequence[Case]) -> list[dict[str, list[str]]]:
    """Training and validation cases of each fold of a cross-validation within the training cases. Raises ConfigurationError."""
    numbers = sorted({case.fold for case in training if case.fold is not None})
    if len(numbers) < 2:
        raise ConfigurationError(f"expected training patients in two folds or more, got {len(numbers)}; take in more")
    return [
        {
            "train": sorted(case.case_id for case in training if case.fold != number),
            "val": sorted(case.case_id for case in training if case.fold == number),
        }
        for number in numbers
    ]


def _places(
    task: SegmentationTask, folder: Path, case: Case, layout: str, splits: Collection[str]
) -> tuple[Path, Path | None]:
    """Where image and label go; a case of the splits that are held back has no label."""
    held_back, ending = case.split in splits, task.file_ending
    if layout == TOTALSEGMENTATOR:
        label = folder / case.case_id / "segmentations" / f"{task.label_name}{ending}"
        return folder / case.case_id / f"ct{ending}", None if held_back else label
    images, labels = folder / ("imagesTs" if held_back else "imagesTr"), folder / "labelsTr"
    return images / f"{case.case_id}_0000{ending}", None if held_back else labels / f"{case.case_id}{ending}"


def import_predictions(ws: Settings, program_name: str, name: str, folder: Path) -> Imported:
    """Score label files of another framework as an experiment `name`, on exactly the cases of the splits that experiments are evaluated on.

    All validation cases must be there; of another split all or none.

    A file is `CASE.ENDING`, or `CASE/segmentations/LABEL.ENDING`. The key is the hash of all files that are scored; there is no model, so it is
    never promoted. Raises ConfigurationError for a name that an experiment has, and where cases have no file, with their ids.
    """
    task, catalog = task_of(program_name), Catalog(ws, program_name)
    if (conf_folder(program_name) / f"{name}.yaml").is_file() or catalog.checkpoint(name) is not None:
        raise ConfigurationError(f"expected a name that no experiment of {program_name} has, got {name}")
    if not folder.is_dir():
        raise ConfigurationError("expected a folder of label files, got none")
    files = _files(task, folder)
    wanted = _wanted(ws, program_name, files)
    others = {case.case_id: str(case.split) for case in catalog.cases()}
    left_out = {
        case_id: f"of the split {others[case_id]}, not scored" if case_id in others else "no case of the dataset"
        for case_id in sorted(files.keys() - wanted.keys())
    }
    hashes = {case_id: file_sha256(files[case_id]) for case_id in sorted(wanted)}
    key = IMPORTED + digest(program_name, hashes)
    keys, failures = {}, {}
    for case_id, case in wanted.items():
        try:
            keys[case.artifact] = _keep(ws, program_name, task, key, case, files[case_id])
        except CaseRejected as rejected:
            failures[case.artifact] = rejected.message
    predicted = PredictedCases(keys, frozenset(keys), failures)
    found, _, failed = score_predicted(ws, program_name, key, list(wanted.values()), predicted)
    record_failures(ws, program_name, "evaluation", name, key, failed)
    demand_scores(found, failed, program_name)
    if not ws.store.has(key):
        with ws.store.create(key) as record:
            write_json(record / "imported.json", {"program": program_name, "files": hashes, "left_out": left_out})
    scores = case_scores(ws, program_name, NamedModel(name, key), list(wanted.values()), found)
    version, code = catalog.dataset().version, program.get(program_name).code_versions["evaluate"]
    aggregates = [
        AggregateScore(
            program=program_name, experiment=name, checkpoint=key, **asdict(one), dataset_version=version, code_version=code,
            git_commit=git_state(),
        )
        for one in aggregate(program_name, scores)
    ]  # fmt: skip
    catalog.replace(CaseScore, scores, name)
    catalog.replace(AggregateScore, aggregates, name)
    return Imported(key, len(found), left_out | dict(sorted(failed.items())))


def _wanted(ws: Settings, program_name: str, files: Collection[str]) -> dict[str, Case]:
    """The cases to score, by id. Raises ConfigurationError where a split lacks some."""
    wanted: dict[str, Case] = {}
    cases = Catalog(ws, program_name).cases()
    for split in evaluated_splits(program_name):
        members = {case.case_id: case for case in cases if case.split == split}
        missing = sorted(members.keys() - set(files))
        if split != SPLIT and len(missing) == len(members):
            continue
        if missing:
            raise ConfigurationError(
                f"expected a file for each of the {len(members)} cases of the split {split}, got none for {', '.join(missing)}; a mean "
                "over other cases could not be compared"
            )
        wanted |= members
    if not wanted:
        raise ConfigurationError(f"{program_name} has no cases to evaluate on yet")
    return wanted


def _files(task: SegmentationTask, folder: Path) -> dict[str, Path]:
    """Label files by case."""
    ending = task.file_ending
    found = {path.name.removesuffix(ending): path for path in folder.glob(f"*{ending}") if path.is_file()}
    nested = folder.glob(f"*/segmentations/{task.label_name}{ending}")
    return found | {path.parent.parent.name: path for path in nested if path.is_file()}


def _keep(ws: Settings, program_name: str, task: SegmentationTask, key: str, case: Case, mask: Path) -> str:
    """Put a label file into the store as a prediction; returns its key. Raises CaseRejected."""
    prediction = prediction_key(ws, program_name, key, case.artifact)
    if not ws.store.has(prediction):
        with ws.store.create(prediction) as out:
            try:
                task.keep_mask(ws.store.fetch(case.artifact), mask, out)
            except MedAssetsError:
                raise
            except Exception as error:  # each format's reader raises what it likes
                raise CaseRejected("unreadable_mask", f"expected a label file, got {type(error).__name__}") from None
    return prediction
