"""Checkpoints of experiments with members: nothing is trained, and what is published names the checkpoints of the members."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment, from_json
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json, write_text
from med_assets.storage.provenance import provenance
from med_assets.storage.versions import declared
from med_assets.training.members import Member, members_of, write_members


def published(ws: Settings, program_name: str, chosen: Experiment, checkpoints: Mapping[str, str]) -> tuple[str, bool]:
    """Key of an ensemble of checkpoints, by the names of the members' experiments, and whether it was made just now.

    Raises ConfigurationError for members that can't be averaged.
    """
    members, records = [], []
    for name in chosen.members:
        folder = ws.store.fetch(checkpoints[name])
        _demand_member(program_name, chosen, folder)
        record = read_json(folder / "provenance.json")
        members.append(Member(name, checkpoints[name], record["weights_sha256"]))
        records.append(record)
    keys = [member.checkpoint for member in members]
    key = ensemble_key(program_name, chosen, keys)
    if ws.store.has(key):
        return key, False
    cases = _united(records)
    with ws.store.create(key) as folder:
        write_members(folder, members)
        write_text(folder / "experiment.json", chosen.to_json())
        write_text(folder / "history.csv", "epoch,step\n")
        write_json(folder / "result.json", _result(cases))
        record = provenance() | {
            "program": program_name,
            "cases": cases,
            "initial": None,
            "members": keys,
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "weights_sha256": digest([member.weights_sha256 for member in members], _settings(chosen)),
        }
        write_json(folder / "provenance.json", record)
    return key, True


def ensemble_key(program_name: str, chosen: Experiment, members: Sequence[str]) -> str:
    """Key of an ensemble: the checkpoints of its members in their order, how it predicts, and the code that averages."""
    code = declared("med_assets.training.ensemble", "load_model")
    return "checkpoint/" + digest("ensemble", program_name, list(members), _settings(chosen), code)


def _settings(chosen: Experiment) -> dict[str, Any]:
    """What an ensemble depends on beside its members."""
    return chosen.prediction.model_dump(mode="json")


def model_folder(ws: Settings, checkpoint: str) -> Path:
    """Folder of a stored checkpoint; those of its members are fetched into the same store. Raises ArtifactMissing."""
    folder = ws.store.fetch(checkpoint)
    for member in members_of(folder):
        ws.store.fetch(member.checkpoint)
    return folder


def verify_model(ws: Settings, checkpoint: str) -> None:
    """Read a stored checkpoint and its members back. Raises ArtifactMissing and ArtifactCorrupt."""
    ws.store.verify(checkpoint)
    for member in members_of(ws.store.fetch(checkpoint)):
        ws.store.verify(member.checkpoint)


def demand_weights(ws: Settings, checkpoint: str, wanted: str) -> None:
    """Raise ConfigurationError for an ensemble; `wanted` says what for a checkpoint with weights of its own is wanted."""
    if members := members_of(ws.store.fetch(checkpoint)):
        raise ConfigurationError(
            f"expected a checkpoint with weights of its own for {wanted}, got an ensemble; name one of its members: "
            f"{', '.join(member.experiment for member in members)}"
        )


def _demand_member(program_name: str, chosen: Experiment, folder: Path) -> None:
    """Raise ConfigurationError for a checkpoint that can't be a member."""
    member = from_json(program_name, (folder / "experiment.json").read_text(encoding="utf-8"))
    objection = "it has members itself; name those" if members_of(folder) else chosen.objection_to_member(member)
    augmentations = chosen.prediction.augmentations
    objections = [
        f"prediction.augmentations {augmentation}: {text}"
        for augmentation in augmentations
        if (text := member.objection_to_augmentation(augmentation))
    ]
    if objection or objections:
        raise ConfigurationError(
            f"{program_name}/{chosen.name} can't have the member {member.name}: {'; '.join(filter(None, [objection, *objections]))}"
        )


def _united(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases of all members, each used where any of them used it; one that any of them learned from counts as a training case."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for case in record["cases"]:
            before = found.get(case["case_id"])
            used = case.get("used", True)
            if before is None:
                found[case["case_id"]] = case | {"used": used}
                continue
            learned = (used and case["split"] == "train", before["used"] and before["split"] == "train")
            split = "train" if any(learned) else before["split"]
            found[case["case_id"]] = before | {"used": used or before["used"], "split": split}
    return [found[case_id] for case_id in sorted(found)]


def _result(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """What a training says at its end, of none."""
    counts = {split: sum(case["used"] and case["split"] == split for case in cases) for split in ("train", "val")}
    return {
        "status": "completed", "n_train": counts["train"], "n_val": counts["val"], "best_epoch": None, "best_value": None,
        "best_metrics": {}, "epochs_run": 0, "stopped_early": False, "resumed": False, "seconds": 0.0, "events": [],
    }  # fmt: skip
