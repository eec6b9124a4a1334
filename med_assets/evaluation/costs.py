"""What a checkpoint costs: parameters, memory and time, measured once."""

from med_assets import program
from med_assets.capabilities import ModelCosts
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json


def checkpoint_facts(ws: Settings, program_name: str, checkpoint: str, *, measure: bool = False) -> dict[str, float]:
    """What a checkpoint costs, by name with unit, as it was measured once; empty where it was not, or a program measures nothing.

    It holds a latency of one machine, so that it is no part of any version. `measure` measures where that was not done yet.
    """
    key = f"cost/{digest(checkpoint, program.get(program_name).code_versions['evaluate'])}"
    if measure and not ws.store.has(key):
        chosen = program.get(program_name)
        found = chosen.checkpoint_facts(ws, ws.store.fetch(checkpoint)) if isinstance(chosen, ModelCosts) else {}
        if found:
            with ws.store.create(key) as folder:
                write_json(folder / "facts.json", dict(found))
    return dict(read_json(ws.store.fetch(key) / "facts.json")) if ws.store.has(key) else {}
