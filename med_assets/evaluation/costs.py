"""What a checkpoint costs: parameters, memory and time, measured once."""

from collections.abc import Mapping

from med_assets import program
from med_assets.capabilities import ModelCosts
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json
from med_assets.training.members import members_of


def checkpoint_facts(ws: Settings, program_name: str, checkpoint: str, *, measure: bool = False) -> dict[str, float]:
    """What a checkpoint costs, by name with unit, as it was measured once; empty where it was not, or a program measures nothing, and of an
    ensemble, whose members cost what they do.

    It holds a latency of one machine, so that it is no part of any version. `measure` measures where that was not done yet.
    """
    key = f"cost/{digest(checkpoint, program.get(program_name).code_versions['evaluate'])}"
    if measure and not ws.store.has(key) and not members_of(ws.store.fetch(checkpoint)):
        chosen = program.get(program_name)
        found = chosen.checkpoint_facts(ws, ws.store.fetch(checkpoint)) if isinstance(chosen, ModelCosts) else {}
        if found:
            with ws.store.create(key) as folder:
                write_json(folder / "facts.json", dict(found))
    return dict(read_json(ws.store.fetch(key) / "facts.json")) if ws.store.has(key) else {}


PEAKS = "peak_memory.json"


def record_prediction_peak(ws: Settings, program_name: str, checkpoint: str, peak: Mapping[str, float]) -> None:
    """Keep the peak memory, MiB, of a job that predicted with a checkpoint, unless that of an earlier job is kept.

    The first is the evaluation that follows a training, over all held-out cases; like a latency it is of one machine, and no part of
    any version.
    """
    key = _peak_key(program_name, checkpoint)
    if peak and not ws.store.has(key):
        with ws.store.create(key) as folder:
            write_json(folder / PEAKS, dict(peak))


def prediction_peak(ws: Settings, program_name: str, checkpoint: str) -> dict[str, float]:
    """Peak memory, MiB, of the job that first predicted with a checkpoint: `peak_host_mb`, and `peak_accelerator_mb` where there was one.

    Empty where nothing was predicted since it is measured.
    """
    key = _peak_key(program_name, checkpoint)
    return dict(read_json(ws.store.fetch(key) / PEAKS)) if ws.store.has(key) else {}


def _peak_key(program_name: str, checkpoint: str) -> str:
    return f"peak/{digest(checkpoint, program.get(program_name).code_versions['predict'])}"
