"""Networks as one ONNX file from pixels to result: equal to torch, smaller in 8 bits, and measured."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.programs.breast_us import pipeline
from med_assets.programs.breast_us.export import export_onnx
from med_assets.programs.breast_us.images import as_image
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.pipeline import FILE, QUANTISED, TOLERANCE, export_pipeline
from med_assets.programs.breast_us.predict import load_predictor, on_pixels
from tests.med_assets.programs.breast_us.builders import TINY, write_prepared
from tests.med_assets.programs.breast_us.test_networks import demo


def checkpoint(folder: Path, name: str, *overrides: str) -> Path:
    experiment = demo(name, *overrides)
    torch.manual_seed(3)
    folder.mkdir()
    (folder / "experiment.json").write_text(experiment.to_json())
    torch.save(Segmenter(experiment).state_dict(), folder / "weights.pt")
    return folder


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
    import onnxruntime

    image = np.random.default_rng(1).integers(0, 256, (70, 45), np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probability, mask = session.run(None, {"image": image})
    logits = on_pixels(load_predictor(folder).both(image)[0], image.shape)
    assert np.abs(probability - 1 / (1 + np.exp(-logits))).max() <= TOLERANCE
    assert np.array_equal(mask, probability > 0.5)
    assert session.get_modelmeta().custom_metadata_map["network"] == load_predictor(folder).experiment.network.kind


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[dict[str, str]]]:
    """Files of a small network, also in 8 bits, and what was measured of them, after the network alone was exported in this process."""
    folder = tmp_path_factory.mktemp("student")
    model = checkpoint(folder / "checkpoint", "tinyusfm", "input_px=32", "network.depth=4", "network.taps=[0,1,2,3]")
    cases = [("a", write_prepared(folder / "a", 1)), ("b", write_prepared(folder / "b", 2)),
             ("c", write_prepared(folder / "c", 3, kind="normal"))]  # fmt: skip
    export_onnx(model, folder / "alone")
    return export_pipeline(model, folder / "out", cases, quantise=True)


def test_the_student_in_8_bits_is_smaller_and_its_difference_is_measured(
    student: tuple[list[Path], list[dict[str, str]]],
) -> None:
    paths, rows = student
    assert paths[1].stat().st_size < 0.9 * paths[0].stat().st_size
    by_model = {row["model"]: row for row in rows}
    assert {row["n"] for row in rows} == {"2"}
    assert by_model["torch"]["minus torch"] == "-"
    assert abs(float(by_model[FILE]["minus torch"])) < 0.01
    assert float(by_model[FILE]["largest difference of a probability"]) <= TOLERANCE
    assert 0 < float(by_model[QUANTISED]["largest difference of a probability"]) < 0.2
    assert all(0 < float(row["p50 (ms)"]) <= float(row["p95 (ms)"]) for row in rows)
    assert {row["timed"] for row in rows} == {"30 runs, 1 thread, 64 x 80 pixels"}


def test_an_earlier_export_of_the_network_alone_in_this_process_changes_nothing(
    student: tuple[list[Path], list[dict[str, str]]],
) -> None:
    assert [path.name for path in student[0]] == [FILE, QUANTISED]
    assert all(path.is_file() for path in student[0])


def test_a_file_that_does_not_answer_as_torch_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TOLERANCE", -1.0)
    folder = checkpoint(tmp_path / "checkpoint", "tinyusfm", *TINY)
    with pytest.raises(ConfigurationError, match="nothing was written"):
        export_pipeline(folder, tmp_path / "out", [], quantise=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_network_beyond_the_limit_of_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LARGEST_BYTES", 10)
    folder = checkpoint(tmp_path / "checkpoint", "tinyusfm", *TINY)
    with pytest.raises(ConfigurationError, match="one ONNX file"):
        export_pipeline(folder, tmp_path / "out", [], quantise=False)
