"""A home with a case that can be displayed: prepared arrays and predictions in the store, as preparation and prediction keep them."""

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn

from med_assets.catalog import Catalog
from med_assets.dicom.geometry import Geometry
from med_assets.evaluation.predicting import prediction_key
from med_assets.records import Checkpoint
from med_assets.review.access import Access
from med_assets.review.app import application
from med_assets.settings import Settings
from tests.med_assets.programs.rt_dose.builders import write_case as write_dose
from tests.med_assets.review.builders import CaseRow, add_cases


def add_case(ws: Settings, program_name: str, write: Callable[[Path], object]) -> str:
    """The case a1, whose prepared files `write` puts into a folder of its name; the key of the artifact."""
    (key,) = add_several(ws, program_name, {"a1": write})
    return key


def add_several(ws: Settings, program_name: str, cases: Mapping[str, Callable[[Path], object]]) -> list[str]:
    """Cases by their ids, each with what writes its prepared files; the keys of the artifacts."""
    for case_id, write in cases.items():
        folder = ws.home / "written" / program_name / case_id
        write(folder)
        with ws.store.create(f"prepared/{case_id}") as artifact:
            shutil.copytree(folder, artifact, dirs_exist_ok=True)
    add_cases(ws, program_name, [CaseRow(case_id) for case_id in cases])
    return [f"prepared/{case_id}" for case_id in cases]


def add_prediction(
    ws: Settings, program_name: str, prepared: str, experiment: str, write: Callable[[Path], object]
) -> None:
    """A checkpoint of an experiment with its prediction of a case, whose files `write` puts into a folder."""
    checkpoint = Checkpoint(
        program=program_name, experiment=experiment, checkpoint=f"checkpoint/{experiment}", experiment_hash="h",
        dataset_version="d", n_train=1, n_val=1, synthetic=True, weights_sha256="w", git_commit=None,
    )  # fmt: skip
    Catalog(ws, program_name).replace(Checkpoint, [checkpoint], experiment)
    with ws.store.create(prediction_key(ws, program_name, checkpoint.checkpoint, prepared)) as folder:
        write(folder)


def write_placed_dose(folder: Path) -> None:
    """A case of rt_dose whose voxels lie in the patient."""
    write_dose(folder)
    path = folder / "case.json"
    content = json.loads(path.read_text())
    shape, spacing_mm = np.load(folder / "ct.npy", mmap_mode="r").shape, content["spacing_mm"]
    content["geometry"] = Geometry(shape, tuple(spacing_mm), (0.0, 0.0, 0.0)).to_dict()
    path.write_text(json.dumps(content))


@contextmanager
def served(ws: Settings) -> Iterator[str]:
    """The review page of a home on a free port; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = application(ws, Access(reader="reader one"))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
