"""The data card: Croissant (JSON-LD) of the present dataset, with CSV files beside it, read back by mlcroissant before it is published.

Format: MLCommons, Croissant Format Specification 1.0, and Croissant RAI 1.0 for use and limits.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets import program
from med_assets.catalog import Catalog, Dataset
from med_assets.dataset.stage import profiles_of_cases
from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.reporting.card_tables import CardTable, card_tables
from med_assets.reporting.card_words import ABSENT, FILE, CardWords, Contact, card_words
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.escaping import csv
from med_assets.storage.files import digest, file_sha256, replacing, write_text
from med_assets.storage.locks import alone
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    from types import ModuleType

CARD = "croissant.json"

CONFORMS_TO = ("http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0")

NO_RELEASE = "0.0.0"
"""Release of a dataset to which its site has given none; the version of the dataset follows it as semantic versioning's build."""

INSTALL = "pip install 'med-assets[cards]'"


@dataclass(frozen=True)
class CheckedCard:
    """What reading a data card back found: the number of records by record set."""

    records: dict[str, int]


def cards_folder(ws: Settings, program_name: str) -> Path:
    """Folder of all cards of a program."""
    return ws.reports / program_name / "cards"


def dataset_card_path(ws: Settings, program_name: str, dataset_version: str) -> Path:
    """Where the card of a version of the dataset is written."""
    return cards_folder(ws, program_name) / "dataset" / dataset_version / CARD


def written_versions(ws: Settings, program_name: str) -> list[str]:
    """Versions of the dataset that have a card, sorted."""
    return sorted(path.parent.name for path in cards_folder(ws, program_name).glob(f"dataset/*/{CARD}"))


def deidentification(ws: Settings, program_name: str) -> str:
    """What was done to the cases of the dataset at intake, in a sentence or two."""
    from med_assets.deidentification.profiles import RESEARCH, STRICT

    used = sorted(set(profiles_of_cases(ws, program_name).values())) or [STRICT.label]
    kept = (
        " Sex, age in whole years up to 90, rounded height and weight, and clinical words of descriptions stay."
        if any(each.startswith(RESEARCH.name) for each in used)
        else ""
    )
    return (
        f"De-identified at intake by an allow-list of DICOM elements (profile {', '.join(used)} of med_assets, stricter than the "
        f"Basic Application Level Confidentiality Profile of DICOM PS3.15).{kept} Patient ids and UIDs are replaced by keyed hashes, dates are "
        "shifted by a number of days that is fixed per patient, names, free text and private elements are removed. No case is in the "
        "dataset in whose stored files the residual scan found identity. Text burnt into pixels, and what images show of a body, stay."
    )


def dataset_card(ws: Settings, program_name: str, version: str | None = None) -> StageResult:
    """Write the card of the present dataset, or check again that of an earlier `version` or the first characters of one.

    The CSV files come first, each named by its content, and the card that refers to them last, so that a reader never finds one
    without the other. Raises ConfigurationError for a dataset without cases, a version without a card, words that mlcroissant refuses,
    or mlcroissant missing; ArtifactMissing for lost arrays; ArtifactCorrupt for an earlier card whose files changed.
    """
    _croissant()
    present = Catalog(ws, program_name).dataset()
    if version is not None and not present.version.startswith(version):
        path = _earlier(ws, program_name, version)
        return _result(ws, path, check_dataset_card(path), path.parent.name, ())
    if not len(present):
        raise ConfigurationError(
            f"{program_name}: expected a dataset with cases, got none; run `med-assets ingest {program_name}`"
        )
    with alone(ws, f"cards-{program_name}"):
        return _write(ws, program_name, present)


def _write(ws: Settings, program_name: str, present: Dataset) -> StageResult:
    words, path = card_words(program_name), dataset_card_path(ws, program_name, present.version)
    tables = card_tables(ws, program_name, words.dataset)
    if Catalog(ws, program_name).dataset().version != present.version:
        raise ConfigurationError(
            f"{program_name}: expected a dataset that stays while its card is written, got another; run the command again"
        )
    files = {table.name: _write_csv(path.parent, table) for table in tables}
    content = _metadata(ws, program_name, words, present, tables, files)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        checked = check_dataset_card(temporary)
    for left in set(path.parent.glob("*.csv")) - set(files.values()):
        left.unlink()
    return _result(ws, path, checked, present.version, words.absent_of_dataset)


def _earlier(ws: Settings, program_name: str, version: str) -> Path:
    known = written_versions(ws, program_name)
    found = [one for one in known if one.startswith(version)]
    if len(found) != 1:
        raise ConfigurationError(
            f"{program_name}: expected the present version of the dataset or one that has a card ({', '.join(known) or 'none'}), "
            f"got {names.escaped(version)}; a card is written while its version is the present one"
        )
    return dataset_card_path(ws, program_name, found[0])


def _result(ws: Settings, path: Path, checked: CheckedCard, version: str, absent: Sequence[str]) -> StageResult:
    return StageResult(
        data_version=digest(file_sha256(path)),
        counts={"record sets": len(checked.records), "records": sum(checked.records.values())},
        summary={
            "card": path.relative_to(ws.home).as_posix(),
            "dataset_version": version,
            ABSENT: ", ".join(absent) or "nothing",
        },
    )


def _write_csv(folder: Path, table: CardTable) -> Path:
    text = csv(table.frame)
    path = folder / f"{table.name}-{digest(text)[:8]}.csv"
    write_text(path, text)
    return path


def _metadata(
    ws: Settings,
    program_name: str,
    words: CardWords,
    present: Dataset,
    tables: Sequence[CardTable],
    files: dict[str, Path],
) -> dict[str, Any]:
    """The card as JSON-LD. Raises ConfigurationError where mlcroissant refuses it."""
    mlc, chosen, given = _croissant(), program.get(program_name), words.dataset
    types = {str: mlc.DataType.TEXT, float: mlc.DataType.FLOAT, int: mlc.DataType.INTEGER, bool: mlc.DataType.BOOL}
    context = mlc.Context(conforms_to=CONFORMS_TO[0])
    distribution = [
        mlc.FileObject(
            ctx=context,
            id=f"{table.name}.csv",
            name=f"{table.name}.csv",
            description=table.description,
            content_url=files[table.name].name,
            content_size=f"{files[table.name].stat().st_size} B",
            encoding_formats=["text/csv"],
            sha256=file_sha256(files[table.name]),
        )
        for table in tables
    ]
    record_sets = [
        mlc.RecordSet(
            ctx=context,
            id=table.name,
            name=table.name,
            description=table.description,
            fields=[
                mlc.Field(
                    ctx=context,
                    id=f"{table.name}/{field.name}",
                    name=field.name,
                    description=field.description,
                    data_types=[types[field.type]],
                    source=mlc.Source(
                        ctx=context,
                        file_object=f"{table.name}.csv",
                        extract=mlc.Extract(ctx=context, column=field.name),
                    ),
                )
                for field in table.fields
            ],
        )
        for table in tables
    ]
    with _refusals(mlc, f"conf/{program_name}/{FILE}"):
        content: dict[str, Any] = mlc.Metadata(
            ctx=context,
            name=given.title or program_name,
            description=_description(program_name, words, present),
            license=[given.license] if given.license else None,
            url=given.url,
            cite_as=given.citation,
            creators=[_creator(mlc, context, one) for one in given.creators],
            date_published=given.published.isoformat() if given.published else None,
            version=f"{given.release or NO_RELEASE}+{present.version}",
            keywords=[program_name, *chosen.modalities, *given.keywords],
            distribution=distribution,
            record_sets=record_sets,
            data_use_cases=[f"Intended: {chosen.intended_use}", f"Not for: {chosen.not_for}"],
            data_limitations=[*chosen.limitations],
            data_preprocessing_protocol=[
                f"Prepared from DICOM by med_assets, version {chosen.code_versions['prepare']} of the code that prepares {program_name}, "
                f"settings {digest(chosen.settings(ws))}"
            ],
            personal_sensitive_information=[deidentification(ws, program_name)],
        ).to_json()
    return content | {"conformsTo": list(CONFORMS_TO)}


def _description(program_name: str, words: CardWords, present: Dataset) -> str:
    chosen, cases, version = program.get(program_name), present.cases, present.version
    n_synthetic, patients = len(present.synthetic), len({case.patient_id for case in cases})
    synthetic = (
        f" {n_synthetic} of the cases are synthetic: no number here says anything about patients."
        if n_synthetic
        else ""
    )
    absent = f" Not declared by the site: {', '.join(words.absent_of_dataset)}." if words.absent_of_dataset else ""
    own = f" {words.dataset.description}" if words.dataset.description else ""
    return (
        f"{chosen.title}: {chosen.description}{own} {len(cases)} cases of {patients} patients, dataset version {version}.{synthetic} "
        f"The arrays themselves are not part of this card.{absent}"
    )


def _creator(mlc: "ModuleType", context: Any, contact: Contact) -> Any:
    kind = mlc.Person if contact.kind == "person" else mlc.Organization
    return kind(ctx=context, name=contact.name, email=contact.email, url=contact.url)


def check_dataset_card(path: Path) -> CheckedCard:
    """Load a card with mlcroissant, read all its records, and hold its files against their SHA-256.

    Nothing is fetched: a card that refers to an address is refused. Raises ConfigurationError for what mlcroissant refuses,
    ArtifactCorrupt for a file that is missing or has other bytes.
    """
    mlc = _croissant()
    content = _as_json(path)
    for one in content.get("distribution", ()):
        name, file = str(one.get("contentUrl", "")), path.parent / str(one.get("contentUrl", ""))
        if not names_a_neighbour(name):
            raise ConfigurationError(f"{path.name}: expected files beside the card, got {names.escaped(name)}")
        if not file.is_file() or file_sha256(file) != one.get("sha256"):
            raise ArtifactCorrupt(
                f"{path.name}: expected {names.escaped(name)} with its SHA-256, got none or other bytes; write the card again"
            )
    with _refusals(mlc, path.name):
        loaded = mlc.Dataset(jsonld=str(path))
        return CheckedCard({one.id: sum(1 for _ in loaded.records(one.id)) for one in loaded.metadata.record_sets})


def names_a_neighbour(name: str) -> bool:
    """Whether an address is the plain name of a file in the same folder."""
    return bool(name) and Path(name).name == name and name not in (".", "..")


def _as_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path.name}: expected JSON, got text that is none") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path.name}: expected an object, got {type(content).__name__}")
    return content


def _croissant() -> "ModuleType":
    """The library mlcroissant, which is imported when a card is asked for. Raises ConfigurationError where it is not installed."""
    try:
        import mlcroissant
    except ImportError as error:
        raise ConfigurationError(f"expected mlcroissant for a data card, got none; run {INSTALL}") from error
    return mlcroissant


@contextmanager
def _refusals(mlc: "ModuleType", where: str) -> Iterator[None]:
    """Raise ConfigurationError for what mlcroissant refuses; what it merely recommends is in the card's own list of what is absent."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (mlc.ValidationError, mlc.GenerationError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{where}: expected a card that mlcroissant accepts, got: {error}") from error
    finally:
        logger.setLevel(level)
