"""Whatever lies under the name of a file of weights: its tensors, or a refusal that says what it is; none of its code runs."""

import argparse
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.network import released as breast_released
from med_assets.programs.lumbar_mr.network import released as lumbar_released
from med_assets.programs.retinal_oct.network import read_encoder
from med_assets.programs.rt_dose.perceptual import read_weights
from med_assets.training.initial import INITIAL, start_from, state_dict
from med_assets.training.reading import open_weights
from med_assets.training.task import Task
from med_assets.training.tensors import read_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Code:
    """Unpickling this would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/readme.txt", "text")


def arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.zeros(3))


def cut(write: Callable[[Path], Any], share: float) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return written


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>sign in</html>"), "web page"),
    "message of a bucket": (lambda path: path.write_text("<?xml version='1.0'?><Error/>"), "XML"),
    "json": (lambda path: path.write_text(json.dumps({"weight_map": {}})), "JSON"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "zeros"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs"),
    "zip": (plain_zip, "plain zip"),
    "arrays": (arrays, "NumPy"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(20)), "gzip"),
    "keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20)), "HDF5"),
    "text": (lambda path: path.write_text("404: Not Found"), "another kind"),
    "missing": (lambda path: None, "can't be read"),
    "torch cut": (cut(lambda path: torch.save(TENSORS, path), 0.7), "not whole"),
    "legacy cut": (cut(lambda path: legacy(TENSORS, path), 0.5), "not whole"),
    "safetensors cut": (cut(lambda path: save_file(TENSORS, path), 0.9), "not whole"),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "pickled module"),
    "legacy module": (lambda path: legacy(torch.nn.Linear(2, 2), path), "pickled module"),
    "namespace": (lambda path: torch.save({"model": TENSORS, "args": argparse.Namespace(a=1)}, path), "Namespace"),
    "simple namespace": (lambda path: torch.save(SimpleNamespace(a=1), path), "SimpleNamespace"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(SimpleNamespace(a=1))), "SimpleNamespace"),
    "code": (lambda path: torch.save({"model": TENSORS, "x": Code(path.with_name("ran"))}, path), "mkdir"),
    "legacy code": (lambda path: legacy({"model": TENSORS, "x": Code(path.with_name("ran"))}, path), "mkdir"),
    "pickled code": (lambda path: path.write_bytes(pickle.dumps(Code(path.with_name("ran")))), "mkdir"),
    "program": (script, "TorchScript"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_file_of_weights_is_named_and_none_of_its_code_runs(tmp_path: Path, kind: str) -> None:
    write, word = FOREIGN[kind]
    write(tmp_path / INITIAL)
    with pytest.raises(CheckpointMismatch, match=word):
        open_weights(tmp_path / INITIAL)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("program", ["lung_ct", "lumbar_mr", "retinal_oct", "breast_us", "rt_dose"])
def test_every_loader_of_initial_weights_and_checkpoints_refuses_them(tmp_path: Path, program: str) -> None:
    """Each loader with each of FOREIGN, and with a file of other tensors."""
    experiment, reads = LOADERS[program]
    cases: dict[str, Callable[[Path], Any]] = {kind: write for kind, (write, _) in FOREIGN.items() if kind != "missing"}
    cases["other tensors"] = lambda path: torch.save(TENSORS, path)
    cases["a list"] = lambda path: torch.save([torch.ones(2)], path)
    cases["a number"] = lambda path: torch.save(3, path)
    cases["numbered"] = lambda path: torch.save({1: torch.ones(2)}, path)
    cases["safetensors of others"] = lambda path: save_file(TENSORS, path)
    for number, write in enumerate(cases.values()):
        job = tmp_path / str(number)
        job.mkdir()
        write(job / INITIAL)
        with pytest.raises(CheckpointMismatch):
            reads(job)
        write(job / "weights.pt")
        (job / "experiment.json").write_text(load(program, experiment).to_json())
        if number < len(FOREIGN) - 1:
            with pytest.raises(CheckpointMismatch):
                read_checkpoint(program, job)
        assert not (job / "ran").exists()


def started(program: str, experiment: str, **more: Any) -> Callable[[Path], None]:
    """The loader of initial weights of an experiment of a program, for two tensors of its network."""
    weights = {"b": torch.zeros(2)}
    chosen = load(program, experiment)
    chosen = chosen.model_copy(update={"initial": "released/any"})
    return lambda job: start_from(job, chosen, Task(None, None, None, "", lambda: weights, **more))


def oct_reader(job: Path) -> None:
    chosen = load("retinal_oct", "finetune_multi_domain", ["profiles=demo"])
    started("retinal_oct", "finetune_multi_domain", reads=lambda content: read_encoder(content, chosen.network))(job)  # type: ignore[attr-defined]  # an experiment of this program


def breast_reader(job: Path) -> None:
    chosen = load("breast_us", "segformer", ["profiles=demo"])
    own = dict(Segmenter(chosen).state_dict())  # type: ignore[arg-type]  # an experiment of this program
    started("breast_us", "segformer", released=breast_released(chosen, own))(job)  # type: ignore[arg-type]  # an experiment of this program


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "lung_ct": ("foundation", started("lung_ct", "foundation")),
    "lumbar_mr": ("point_net", started("lumbar_mr", "point_net", released=lumbar_released)),
    "retinal_oct": ("finetune_multi_domain", oct_reader),
    "breast_us": ("segformer", breast_reader),
    "rt_dose": ("grad_vgg", lambda job: read_weights(job / INITIAL)),
}


@pytest.mark.parametrize("write", [torch.save, legacy, save_file])
def test_tensors_of_every_format_are_the_same(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    write(TENSORS, tmp_path / "file")
    found = open_weights(tmp_path / "file")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_numbers_of_numpy_and_configurations_of_omegaconf_open(tmp_path: Path, write: Callable[..., None]) -> None:
    content = {
        "best": np.float64(0.5),
        "step": np.int64(3),
        "means": np.arange(3.0),
        "config": OmegaConf.create({"a": [1, 2]}),
    }
    write({"model": TENSORS, **content}, tmp_path / "file")
    found = open_weights(tmp_path / "file")
    assert found["best"] == 0.5
    assert found["step"] == 3
    assert found["means"].tolist() == [0, 1, 2]
    assert found["config"] == {"a": [1, 2]}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "network"])
def test_prefixes_and_wrappers_are_taken_off(prefix: str, wrapper: str | None) -> None:
    tensors = {prefix + name: tensor for name, tensor in TENSORS.items()}
    assert set(state_dict({wrapper: tensors, "epoch": 3} if wrapper else tensors)) == set(TENSORS)
    assert set(state_dict({"encoder._orig_mod.a": torch.ones(1), "b": torch.ones(1)})) == {"encoder.a", "b"}


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.tensor([1.0, torch.nan]), "1 of 2 numbers"),
        (torch.tensor([torch.inf, torch.nan]), "2 of 2 numbers"),
        (torch.tensor([1, 2], dtype=torch.int8), "int8"),
        (torch.tensor([1, 2], dtype=torch.complex64), "complex64"),
        (torch.tensor([1.0, 2.0]).to_sparse(), "sparse"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path, tensor: torch.Tensor, word: str) -> None:
    torch.save({"b": tensor}, tmp_path / INITIAL)
    with pytest.raises(CheckpointMismatch, match=word):
        started("lung_ct", "foundation")(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"b": torch.tensor([0.5, 2.0], dtype=dtype)}, tmp_path / INITIAL)
    weights = {"b": torch.zeros(2)}
    chosen = load("lung_ct", "foundation").model_copy(update={"initial": "released/any"})
    start_from(tmp_path, chosen, Task(None, None, None, "", lambda: weights))
    assert weights["b"].tolist() == [0.5, 2.0]
    assert weights["b"].dtype == torch.float32
