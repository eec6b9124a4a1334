"""Networks as one ONNX file from pixels to result: equal to torch, smaller in 8 bits, and measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from med_assets.errors import ConfigurationError
from med_assets.programs.breast_us import pipeline
from med_assets.programs.breast_us.export import ONNX_TOLERANCE, export_network, export_onnx
from med_assets.programs.breast_us.images import as_image
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.pipeline import FILE, QUANTISED, TOLERANCE, export_pipeline, write_equal
from med_assets.programs.breast_us.predict import load_predictor, on_pixels
from tests.med_assets.programs.breast_us.builders import TINY, write_prepared
from tests.med_assets.programs.breast_us.test_networks import demo


@pytest.fixture(scope="module", autouse=True)
def operators_read_once() -> Iterator[None]:
    """Each export of torch parses the source of 500 operators anew, which is the same for all exports of a process."""
    with pytest.MonkeyPatch.context() as there:
        there.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def checkpoint(folder: Path, name: str, *overrides: str, seed: int = 3) -> Path:
    experiment = demo(name, *overrides)
    torch.manual_seed(seed)
    folder.mkdir()
    (folder / "experiment.json").write_text(experiment.to_json())
    torch.save(Segmenter(experiment).state_dict(), folder / "weights.pt")
    return folder


def session_of(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(96, 131), (20, 57), (32, 32), (500, 33)])
def test_the_resize_of_the_file_is_that_of_predictions(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows, columns = (pipeline._shrinking(size, 32) for size in shape)
    found = rows @ (torch.from_numpy(grey).float() / 255) @ columns.T
    assert (found - as_image(grey, 32)[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sam_lora", ("network.depth=2", "network.global_blocks=[1]")),
        ("segformer", ()),
        ("sam3", ("network.depth=1", "network.global_blocks=[0]")),
    ],
)
def test_every_large_network_is_one_file_that_answers_as_torch(
    name: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "checkpoint", name, *overrides)
    ((path,), rows) = export_pipeline(folder, tmp_path / "out", [], quantise=False)
    assert [row["model"] for row in rows] == ["torch", FILE]
    image = np.random.default_rng(1).integers(0, 256, (70, 45), np.uint8)
    session = session_of(path)
    probability, mask = session.run(None, {"image": image})
    logits = on_pixels(load_predictor(folder).both(image)[0], image.shape)
    assert np.abs(probability - 1 / (1 + np.exp(-logits))).max() <= TOLERANCE
    assert np.array_equal(mask, probability > 0.5)
    assert session.get_modelmeta().custom_metadata_map["network"] == load_predictor(folder).experiment.network.kind


@dataclass(frozen=True)
class Exported:
    """A checkpoint, its network alone as ONNX, then its whole pipeline as ONNX files, and what was measured of these."""

    checkpoint: Path
    alone: Path
    paths: list[Path]
    rows: list[dict[str, str]]


SMALL = ("input_px=32", "network.depth=2", "network.taps=[0,0,1,1]", "network.dim=48")
"""Overrides for few nodes to export, with as many weights in products of matrices as make 8 bits worth while."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Files of a small network of two classes, also in 8 bits, after the network alone was exported in this process."""
    folder = tmp_path_factory.mktemp("student")
    model = checkpoint(folder / "checkpoint", "tinyusfm_classes", *SMALL)
    cases = [("a", write_prepared(folder / "a", 1)), ("b", write_prepared(folder / "b", 2)),
             ("c", write_prepared(folder / "c", 3, kind="normal"))]  # fmt: skip
    (alone,) = export_network(model, folder / "alone")
    return Exported(model, alone, *export_pipeline(model, folder / "out", cases, quantise=True))


def demand_equal_logits(alone: Path, model: Path, outputs: int) -> None:
    image = np.random.default_rng(5).random((1, 1, 32, 32), np.float32)
    (found,) = session_of(alone).run(None, {"image": image})
    with torch.inference_mode():
        expected = load_predictor(model).network.eval()(torch.from_numpy(image)).numpy()
    assert found.shape == (1, outputs, 32, 32)
    assert np.abs(found - expected).max() <= ONNX_TOLERANCE


def test_the_exported_network_gives_the_same_logits(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", "tinyusfm", *TINY, "network.depth=1", "network.taps=[0,0,0,0]")
    (alone,) = export_onnx(model, tmp_path / "alone")
    demand_equal_logits(alone, model, outputs=1)


def test_the_exported_network_gives_the_same_logits_of_each_class(student: Exported) -> None:
    demand_equal_logits(student.alone, student.checkpoint, outputs=3)


def test_the_student_in_8_bits_is_smaller_and_its_difference_is_measured(student: Exported) -> None:
    paths, rows = student.paths, student.rows
    assert paths[1].stat().st_size < 0.9 * paths[0].stat().st_size
    by_model = {row["model"]: row for row in rows}
    assert {row["n"] for row in rows} == {"2"}
    assert by_model["torch"]["minus torch"] == "-"
    assert abs(float(by_model[FILE]["minus torch"])) < 0.01
    assert float(by_model[FILE]["largest difference of a probability"]) <= TOLERANCE
    assert 0 < float(by_model[QUANTISED]["largest difference of a probability"]) < 0.2
    assert all(0 < float(row["p50 (ms)"]) <= float(row["p95 (ms)"]) for row in rows)
    assert {row["timed"] for row in rows} == {"30 runs, 1 thread, 64 x 80 pixels"}


def test_an_earlier_export_of_the_network_alone_in_this_process_changes_nothing(student: Exported) -> None:
    assert [path.name for path in student.paths] == [FILE, QUANTISED]
    assert all(path.is_file() for path in student.paths)


def test_a_file_that_does_not_answer_as_torch_is_not_kept(student: Exported, tmp_path: Path) -> None:
    other = load_predictor(checkpoint(tmp_path / "other", "tinyusfm_classes", *SMALL, seed=4))
    with pytest.raises(ConfigurationError, match="nothing was written"):
        write_equal(tmp_path / "out" / FILE, other, lambda path: path.write_bytes(student.paths[0].read_bytes()))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_network_beyond_the_limit_of_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LARGEST_BYTES", 10)
    folder = checkpoint(tmp_path / "checkpoint", "tinyusfm", *TINY)
    with pytest.raises(ConfigurationError, match="one ONNX file"):
        export_pipeline(folder, tmp_path / "out", [], quantise=False)


def test_exported_files_have_the_probability_of_each_class_and_its_name(student: Exported) -> None:
    import onnx

    whole = student.paths[0]
    for file in (student.alone, whole):
        named = {one.key: one.value for one in onnx.load(file).metadata_props}
        assert named["classes"] == "background, benign, malignant"
    image = np.random.default_rng(0).integers(0, 256, (40, 52), np.uint8)
    probability, mask, chances = session_of(whole).run(None, {"image": image})
    assert chances.shape == (3, 40, 52)
    assert chances.sum(0) == pytest.approx(1, abs=1e-5)
    assert probability == pytest.approx(chances[1:].sum(0), abs=1e-5)
    assert mask.tolist() == (probability > 0.5).astype(int).tolist()
