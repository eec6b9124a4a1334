"""The model card: README.md in the format of the Hugging Face Hub, and the same as JSON, for a champion or any trained experiment.

Headings: Mitchell et al., Model Cards for Model Reporting (2019). Metadata: the Hub's model card specification, written and read back by
huggingface_hub. Nothing is sent anywhere: `huggingface_hub.ModelCard.validate` asks the Hub's server, and is not called.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError
from yaml import YAMLError

from med_assets import __version__, program
from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.evaluation.aggregates import Aggregate, aggregate, side_by_side
from med_assets.evaluation.costs import checkpoint_facts
from med_assets.evaluation.scoring import recorded_scores
from med_assets.experiments import policies
from med_assets.experiments.configuration import RELEASED, Experiment, from_json
from med_assets.launch.runs import command_of
from med_assets.launch.training import checkpoint_of, stored_checkpoint
from med_assets.program import OTHER_TASK
from med_assets.promotion.champions import current
from med_assets.records import AggregateScore, Champion, Checkpoint, TrainingRun
from med_assets.reporting.card_words import ABSENT, CardWords, card_words
from med_assets.reporting.dataset_card import cards_folder, deidentification
from med_assets.reporting.run_status import run_status, verdict_of
from med_assets.settings import Settings
from med_assets.storage.escaping import code, fenced, inline, markdown
from med_assets.storage.files import digest, file_sha256, replacing, write_text
from med_assets.storage.result import StageResult

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

README, AS_JSON = "README.md", "card.json"

Value = str | int | float | bool | None

NO_OTHERS = ConfigDict(extra="forbid")
"""A card as JSON with a field that no card has is refused."""


@dataclass(frozen=True)
class CardScore(Aggregate):
    """A metric over the cases of a split, of one version of the dataset."""

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHERS
    dataset_version: str
    deciding: bool
    """Whether promotion and the leaderboard go by it."""


@dataclass(frozen=True)
class ModelCard:
    """All that a model card says."""

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHERS
    program: str
    title: str
    description: str
    task: str
    """Task in the words of the Hugging Face Hub."""
    modalities: tuple[str, ...]
    experiment: str
    experiment_title: str
    checkpoint: str
    files: Mapping[str, str]
    """SHA-256 of the checkpoint's files by name."""
    status: str
    notes: tuple[str, ...]
    verdict: str | None
    """Reason of the gate's newest verdict on the checkpoint, None before it was asked."""
    purpose: str
    synthetic: bool
    """Whether a synthetic case took part in training or evaluation."""
    intended_use: tuple[str, ...]
    out_of_scope: tuple[str, ...]
    limitations: tuple[str, ...]
    owners: tuple[str, ...]
    deidentification: str
    dataset_version_now: str
    initial_weights: str
    training: Mapping[str, Value]
    """The columns of the table `runs`."""
    command: str
    """Command that trains it again."""
    scores: tuple[CardScore, ...]
    not_evaluated: int
    """Held-out cases without scores."""
    costs: Mapping[str, float]
    license: str | None
    license_name: str | None
    license_link: str | None
    contacts: tuple[str, ...]
    citation: str | None
    absent: tuple[str, ...]
    """What the site does not declare."""
    med_assets: str
    """Version of med_assets that wrote the card."""


def model_card_folder(ws: Settings, program_name: str, experiment: str, checkpoint: str) -> Path:
    """Folder of the card of a checkpoint."""
    return cards_folder(ws, program_name) / "model" / experiment / checkpoint.rpartition("/")[2]


def model_card(ws: Settings, program_name: str, name: str | None = None) -> StageResult:
    """Write the card of an experiment's present checkpoint, of the champion where `name` is None.

    Raises ConfigurationError for an experiment that was not trained, a program without a champion, and a card that huggingface_hub
    refuses; ArtifactMissing for a lost checkpoint.
    """
    card = gather_card(ws, program_name, name)
    folder = model_card_folder(ws, program_name, card.experiment, card.checkpoint)
    text = TypeAdapter(ModelCard).dump_json(card, indent=1).decode() + "\n"
    if from_card_json(text) != card:
        raise ConfigurationError(f"{AS_JSON}: expected a card that reads back as it was, got another")
    with replacing(folder / README) as temporary:
        temporary.write_text(readme(card), encoding="utf-8")
        check_readme(temporary, card)
    write_text(folder / AS_JSON, text)
    return StageResult(
        data_version=digest(file_sha256(folder / README), file_sha256(folder / AS_JSON)),
        counts={"scores": len(card.scores), "not evaluated cases": card.not_evaluated},
        summary={
            "card": (folder / README).relative_to(ws.home).as_posix(),
            "as JSON": (folder / AS_JSON).relative_to(ws.home).as_posix(),
            "status": card.status,
            ABSENT: ", ".join(card.absent) or "nothing",
        },
    )


def gather_card(ws: Settings, program_name: str, name: str | None) -> ModelCard:
    """What the card of an experiment says, of the champion where `name` is None. Nothing is predicted or scored."""
    chosen, catalog, words = program.get(program_name), Catalog(ws, program_name), card_words(program_name)
    model = checkpoint_of(ws, program_name, name) if name else _champion(ws, program_name)
    stored = stored_checkpoint(ws, program_name, model)
    configured = from_json(program_name, (stored / "experiment.json").read_text(encoding="utf-8"))
    runs = catalog.rows(TrainingRun, model.experiment, model.checkpoint)
    if not runs:
        named = f"{program_name}/{model.experiment}"
        raise ConfigurationError(
            f"{named}: expected the record of its training, got none; run `med-assets train {named}`"
        )
    run, status = runs[0], run_status(ws, program_name, runs[0])
    verdict = verdict_of(catalog, model.experiment, model.checkpoint)
    scores, missing = _scores(ws, program_name, model)
    return ModelCard(
        program=program_name,
        title=chosen.title,
        description=chosen.description,
        task=chosen.hub_task,
        modalities=tuple(chosen.modalities),
        experiment=model.experiment,
        experiment_title=configured.title,
        checkpoint=model.checkpoint,
        files=ws.store.file_hashes(model.checkpoint),
        status=status.message,
        notes=tuple(note for note in (*status.notes, *status.stale) if verdict is None or note != verdict.reason),
        verdict=verdict.reason if verdict else None,
        purpose=ws.purpose,
        synthetic=run.synthetic or _synthetic_held_out(catalog, scores),
        intended_use=_both(chosen.intended_use, words.model.intended_use),
        out_of_scope=_both(chosen.not_for, words.model.out_of_scope),
        limitations=(*chosen.limitations, *words.model.limitations),
        owners=tuple(chosen.owners),
        deidentification=deidentification(ws, program_name),
        dataset_version_now=catalog.dataset().version,
        initial_weights=_initial(program_name, configured, run),
        training={
            key: value
            for key, value in run.row().items()
            if key not in ("program", "experiment", "checkpoint", "initial")
        },
        command=command_of(run),
        scores=scores,
        not_evaluated=missing,
        costs=checkpoint_facts(ws, program_name, model.checkpoint),
        absent=words.absent_of_model,
        med_assets=__version__,
        **_declared(words),
    )


def _champion(ws: Settings, program_name: str) -> Champion:
    if (champion := current(ws, program_name)) is None:
        raise ConfigurationError(
            f"{program_name}: expected a champion, got none; name an experiment as {program_name}/EXPERIMENT"
        )
    return champion


def _both(ours: str, sites: str | None) -> tuple[str, ...]:
    return (ours, sites) if sites else (ours,)


def _declared(words: CardWords) -> dict[str, Any]:
    given = words.model
    return {
        "license": given.license,
        "license_name": given.license_name,
        "license_link": given.license_link,
        "contacts": tuple(one.line for one in given.contacts),
        "citation": given.citation,
    }


def _initial(program_name: str, configured: Experiment, run: TrainingRun) -> str:
    """What training started from, with the source of released weights."""
    name = configured.initial.removeprefix(RELEASED)
    known = policies.of(program_name).released
    source = f": {known[name].source}" if configured.initial.startswith(RELEASED) and name in known else ""
    return f"{configured.initial}{f' ({run.initial})' if run.initial else ''}{source}"


def _scores(ws: Settings, program_name: str, model: Champion | Checkpoint) -> tuple[tuple[CardScore, ...], int]:
    """All scores of a checkpoint, and how many held-out cases have none: what the leaderboard shows of it."""
    catalog = Catalog(ws, program_name)
    recorded = recorded_scores(
        ws, program_name, model.experiment, model.checkpoint, champion=isinstance(model, Champion)
    )
    evaluated = [row for row in catalog.rows(AggregateScore, model.experiment) if row.checkpoint == model.checkpoint]
    version = evaluated[0].dataset_version if evaluated else catalog.dataset().version
    deciding = {(one.name, one.subject) for one in program.get(program_name).deciding_metrics}
    pooled: Sequence[AggregateScore | Aggregate] = evaluated or aggregate(program_name, recorded.rows)
    found = [
        CardScore(
            **{each.name: getattr(row, each.name) for each in fields(Aggregate)},
            dataset_version=version,
            deciding=(row.metric, row.subject) in deciding,
        )
        for row in pooled
    ]
    return tuple(sorted(found, key=lambda one: not one.deciding)), recorded.missing


def _synthetic_held_out(catalog: Catalog, scores: Sequence[CardScore]) -> bool:
    splits = {one.split for one in scores}
    return any(case.synthetic for case in catalog.cases() if case.split in splits)


def from_card_json(text: str) -> ModelCard:
    """A card from its JSON. Raises ConfigurationError that names the field which is missing, unknown or of another type."""
    try:
        return TypeAdapter(ModelCard).validate_json(text)
    except ValidationError as error:
        raise ConfigurationError(f"{AS_JSON}: expected a model card, got: {error}") from error


def readme(card: ModelCard) -> str:
    """The card as README.md: a block of YAML metadata, then Markdown."""
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    results = _results(card)
    data = ModelCardData(
        license=card.license,
        license_name=card.license_name,
        license_link=card.license_link,
        library_name="med-assets",
        pipeline_tag=None if card.task == OTHER_TASK else card.task,
        tags=["medical", card.program, *card.modalities, *(["synthetic-data"] if card.synthetic else [])],
        metrics=list(dict.fromkeys(one.metric_type for one in results)) or None,
        model_name=f"{card.program}/{card.experiment}",
        eval_results=results or None,
    )
    environment = Environment(
        loader=PackageLoader("med_assets.reporting", "templates"), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"inline": inline, "code": code, "fenced": fenced}
    body = environment.get_template("model_card.md.j2").render(
        card=card,
        absent=ABSENT,
        deciding=_table(one for one in card.scores if one.deciding),
        others=_table(one for one in card.scores if not one.deciding),
        conventions=markdown(_conventions(card)),
        intervals=sorted({one.interval for one in card.scores}),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _table(scores: Iterable[CardScore]) -> str:
    """Scores side by side by split, as the leaderboard writes them: mean [low, high] (n = ...)."""
    return markdown(side_by_side(list(scores)))


def _conventions(card: ModelCard) -> pd.DataFrame:
    rows = {(one.metric, one.convention): None for one in card.scores}
    return pd.DataFrame(list(rows), columns=["metric", "definition"])


def _results(card: ModelCard) -> "list[EvalResult]":
    """The deciding scores in the form of the Hub's model index."""
    from huggingface_hub import EvalResult

    found = [
        EvalResult(
            task_type=card.task,
            task_name=card.title,
            dataset_type=card.program,
            dataset_name=f"{card.title}{', synthetic cases' if card.synthetic else ''}",
            dataset_split=one.split,
            dataset_revision=one.dataset_version,
            metric_type=one.metric,
            metric_name=f"{one.metric} of {one.subject}" + (f", {one.unit}" if one.unit != "1" else ""),
            metric_value=one.mean,
            metric_args={"subject": one.subject, "unit": one.unit, "n": one.n}
            | (
                {}
                if one.low is None or one.high is None
                else {"low": one.low, "high": one.high, "interval": one.interval}
            ),
        )
        for one in card.scores
        if one.deciding and one.mean is not None
    ]
    # The Hub's index has one entry for a split, so that this is the order in which it is read back.
    return sorted(found, key=lambda one: one.dataset_split or "")


def check_readme(path: Path, card: ModelCard) -> None:
    """Read a card back with huggingface_hub, without the network, and hold its results against those of `card`.

    Raises ConfigurationError for metadata that it refuses, that are absent, or that say another number.
    """
    from huggingface_hub import ModelCard as HubCard

    try:
        found = HubCard.load(path).data
    except (ValueError, YAMLError) as error:
        raise ConfigurationError(f"{README}: expected a card that huggingface_hub accepts, got: {error}") from error
    if (found.eval_results or []) != _results(card) or found.license != card.license:
        raise ConfigurationError(f"{README}: expected the results and licence of the model, got others")
