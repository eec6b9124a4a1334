"""An untrained model and prepared cases in a store, small enough to be predicted in a second."""

import shutil

import torch

from med_assets.experiments.configuration import load
from med_assets.programs.rt_dose.predict import build_network
from med_assets.records import PreparedCase
from med_assets.settings import Workspace
from med_assets.storage.files import digest, write_text
from med_assets.training.callbacks import save_tensors
from tests.med_assets.programs.rt_dose.builders import TINY, write_case

P = "rt_dose"


def checkpoint(ws: Workspace, *overrides: str) -> str:
    """Key of an untrained model in the store."""
    experiment = load(P, "baseline", (*TINY, *overrides), profile="demo")
    key = "checkpoint/" + digest("untrained")
    torch.manual_seed(0)
    with ws.store.create(key) as folder:
        save_tensors(folder / "weights.pt", dict(build_network(experiment).state_dict()))  # type: ignore[arg-type]  # an experiment of this program
        write_text(folder / "experiment.json", experiment.to_json())
    return key


def case(ws: Workspace, number: int, shape: tuple[int, int, int] = (32, 32, 32)) -> PreparedCase:
    """A prepared case in the store."""
    name = f"c{number}"
    artifact = "prepared/" + digest(name)
    if not ws.store.has(artifact):
        with ws.store.create(artifact) as folder:
            shutil.copytree(write_case(ws.home / "arrays" / name, number, shape=shape), folder, dirs_exist_ok=True)
    return PreparedCase(
        program=P, batch="b", case_id=name, patient_id=f"p{number}", version=digest(name), content_hash=digest(name), artifact=artifact,
        given_split=None, synthetic=True, status="ok", reason_code=None, reason=None, warnings=None,
    )  # fmt: skip
