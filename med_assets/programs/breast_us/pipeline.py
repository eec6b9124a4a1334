"""A network with all that stands before and after it as one ONNX file: grey pixels of any size in, the lesion on these pixels out.

The file needs no code of ours: it resizes, scales, predicts and resizes back. Before it is kept, ONNX Runtime is held against torch;
it, and the same file in 8 bits, are then measured on validation cases.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from med_assets.errors import ConfigurationError
from med_assets.metrics.bootstrap import SEED, Interval, mean_with_interval, paired_difference
from med_assets.metrics.ranges import SHARE
from med_assets.programs.breast_us.classes import of_lesion
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.export import OPSET
from med_assets.programs.breast_us.predict import Predictor, load_predictor, probabilities
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.score import score_case
from med_assets.storage.files import replacing

FILE, QUANTISED = "pipeline.onnx", "pipeline.int8.onnx"

TOLERANCE = 1e-3
"""Largest difference of a probability between torch and ONNX Runtime, of images of sizes that the export did not see."""

TRIED = ((96, 131), (57, 40))
"""Rows and columns of the pictures of noise by which a file is held against torch: no squares, larger and smaller than a network's."""

LARGEST_BYTES = 1_900_000_000
"""One ONNX file holds no more than 2 GB."""

WARM_UPS, TIMED = 3, 30
"""Runs before the latency is measured, and runs that are measured."""


@dataclass(frozen=True)
class Measured:
    """One runtime of a model on the same cases: Dice of images with a lesion, its difference from torch's, and its time."""

    what: str
    size_mb: float
    dice: float | None
    n: int
    difference: float | None
    low: float | None
    high: float | None
    largest_probability_difference: float | None
    p50_ms: float
    p95_ms: float

    def shown(self, image: tuple[int, ...]) -> dict[str, str]:
        """As a row of a table for people."""

        def number(value: float | None, digits: int = 4) -> str:
            return "-" if value is None else f"{value:.{digits}f}"

        interval = "-" if self.low is None else f"{self.low:.4f} to {self.high:.4f}"
        return {
            "model": self.what,
            "size (MB)": number(self.size_mb, 2),
            "Dice": number(self.dice),
            "n": str(self.n),
            "minus torch": number(self.difference),
            "95% interval": interval,
            "largest difference of a probability": number(self.largest_probability_difference, 6),
            "p50 (ms)": number(self.p50_ms, 1),
            "p95 (ms)": number(self.p95_ms, 1),
            "timed": f"{TIMED} runs, 1 thread, {image[0]} x {image[1]} pixels",
        }


class WholePipeline(nn.Module):
    """Grey values uint8 (rows, columns) to the probability of a lesion float32 and whether it is above the threshold, uint8.

    Of a network of several classes the probability is that of any of them, and a third output has those of the background and of each
    class, float32 (1 + classes, rows, columns).
    """

    def __init__(self, predictor: Predictor, threshold: float) -> None:
        super().__init__()
        self.network, self.side = predictor.network, predictor.experiment.input_px
        self.threshold = threshold

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        rows, columns = image.shape
        small = _shrinking(rows, self.side) @ (image.float() / 255) @ _shrinking(columns, self.side).T
        logits = self.network(small[None, None])
        taken = functional.interpolate(logits, (rows, columns), mode="bilinear")[0]
        if len(taken) == 1:
            probability = torch.sigmoid(taken[0])
            return probability, (probability > self.threshold).to(torch.uint8)
        chances = taken.softmax(0)
        probability = chances[1:].sum(0)
        return probability, (probability > self.threshold).to(torch.uint8), chances


def _shrinking(size: int, side: int) -> Tensor:
    """The matrix (side, size) of torch's bilinear resize with antialias: a tent as wide as a pixel of the smaller grid.

    As a product of matrices every runtime computes the same, whatever its own resize does.
    """
    places = torch.arange(size, dtype=torch.float32)
    scale = (places[-1] + 1) / side
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) * scale
    weights = (1 - (places + 0.5 - centres[:, None]).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
    return weights / weights.sum(1, keepdim=True)


def export_pipeline(
    checkpoint: Path, out: Path, cases: Sequence[tuple[str, Path]], quantise: bool
) -> tuple[list[Path], list[dict[str, str]]]:
    """Write FILE, and QUANTISED if asked, and return their paths and what was measured of torch and of each.

    `cases` are patient and prepared artifact of the cases that Dice is measured on. Raises ConfigurationError where the network
    can't be exported, is too large for one file, or ONNX Runtime does not give torch's probabilities within TOLERANCE.
    """
    predictor, threshold = load_predictor(checkpoint), EvaluationSettings().threshold
    if (checkpoint / "weights.pt").stat().st_size > LARGEST_BYTES:
        raise ConfigurationError(
            f"expected weights of at most {LARGEST_BYTES / 1e9:.1f} GB, which one ONNX file can hold, got more; export a smaller "
            "network, such as a student of this one"
        )
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE
    write_equal(path, predictor, partial(_write, predictor, threshold))
    written = [path]
    if quantise:
        with replacing(out / QUANTISED) as temporary:
            _quantise(path, temporary)
        written.append(out / QUANTISED)
    return written, _measured(predictor, checkpoint, written, cases, threshold)


def write_equal(path: Path, predictor: Predictor, write: Callable[[Path], None]) -> None:
    """Write an ONNX file and keep it only where ONNX Runtime gives torch's probabilities with it. Raises ConfigurationError."""
    with replacing(path) as temporary:
        write(temporary)
        _demand_equal(predictor, temporary)


def _write(predictor: Predictor, threshold: float, path: Path) -> None:
    pipeline, classes = WholePipeline(predictor, threshold).eval(), predictor.experiment.classes
    rows, columns = (torch.export.Dim(name, min=16, max=16384) for name in ("rows", "columns"))
    # The kernels of a CPU lay attention out in a way that the exporter can't decompose.
    with warnings.catch_warnings(), sdpa_kernel([SDPBackend.MATH]), _own_layouts():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        try:
            program = torch.onnx.export(
                pipeline, (torch.zeros(TRIED[0], dtype=torch.uint8),), input_names=["image"],
                output_names=["probability", "mask", *(["classes"] if classes else [])], opset_version=OPSET, dynamo=True, verbose=False,
                dynamic_shapes={"image": {0: rows, 1: columns}},
            )  # fmt: skip
            assert program is not None
            program.model.metadata_props.update(
                program="breast_us",
                network=predictor.experiment.network.kind,
                experiment=predictor.experiment.hash(),
                image="grey values 0 to 255 of the region of tissue, uint8 (rows, columns)",
                probability="of a lesion at each of these pixels",
                mask=f"1 where the probability is above {threshold:g}",
            )
            if classes:
                program.model.metadata_props["classes"] = ", ".join(("background", *classes))
            program.save(str(path), external_data=False)
        except Exception as error:  # the exporter raises what it likes
            raise ConfigurationError(
                f"expected a network that torch can export, {predictor.experiment.network.kind} failed with "
                f"{type(error).__name__}; tinyusfm is the family made for small devices"
            ) from error


@contextmanager
def _own_layouts() -> Iterator[None]:
    """Keep the layouts that torch finds of tensors from those of other exports of this process, which may be of other kernels."""
    others, FakeTensorMode.cache = FakeTensorMode.cache, {}
    try:
        yield
    finally:
        FakeTensorMode.cache = others


def _chances(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Probabilities (outputs, rows, columns) as every prediction of med_assets computes them."""
    return probabilities(predictor.both(image)[0], image.shape)


def _lesion(chances: np.ndarray) -> np.ndarray:
    """The probability of a lesion of any class."""
    return np.asarray(of_lesion(chances) if len(chances) > 1 else chances[0], np.float32)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _by_file(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    session = _session(path)
    return lambda image: np.asarray(session.run(["probability"], {"image": image})[0])


def _demand_equal(predictor: Predictor, path: Path) -> None:
    session, numbers = _session(path), np.random.default_rng(0)
    for shape in TRIED:
        image = numbers.integers(0, 256, shape, np.uint8)
        chances = _chances(predictor, image)
        expected = {"probability": _lesion(chances)}
        if predictor.experiment.classes:
            expected["classes"] = chances
        found = session.run(list(expected), {"image": image})
        largest = max(float(np.abs(a - b).max()) for a, b in zip(expected.values(), found, strict=True))
        if not largest <= TOLERANCE:
            raise ConfigurationError(
                f"expected ONNX Runtime to give torch's probabilities within {TOLERANCE:g}, got {largest:g}; nothing was written"
            )


def _quantise(path: Path, quantised: Path) -> None:
    """Weights of matrix products in 8 bits; activations are scaled as they come, so that no data is needed.

    Convolutions stay as they are: of the full TinyUSFM they took 87 ms of a core in 8 bits, 38 ms so, and 47 ms with nothing in 8 bits.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet_log():
        quantize_dynamic(path, quantised, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)


@contextmanager
def _quiet_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to preprocess, which is for activations in 8 bits
    try:
        yield
    finally:
        logging.disable(before)


def _measured(
    predictor: Predictor, checkpoint: Path, files: Sequence[Path], cases: Sequence[tuple[str, Path]], threshold: float
) -> list[dict[str, str]]:
    """Rows of torch and of each file, on the same cases and the same picture."""
    settings = EvaluationSettings(threshold=threshold)
    opened = [(patient, PreparedCase.open(path)) for patient, path in cases]
    opened = [(patient, case) for patient, case in opened if case.labelled]
    timed = np.asarray(opened[0][1].image) if opened else np.zeros([predictor.experiment.input_px] * 2, np.uint8)
    weights = checkpoint / "weights.pt"
    ways: list[tuple[str, Path, Callable[[np.ndarray], np.ndarray]]] = [
        ("torch", weights, lambda image: _lesion(_chances(predictor, image)))
    ]
    ways += [(path.name, path, _by_file(path)) for path in files]
    patients = [patient for patient, _ in opened]
    rows, truth, baseline = [], [], list[float | None]()
    for what, path, ask in ways:
        answers = [np.asarray(ask(np.asarray(case.image))) for _, case in opened]
        scored = [score_case(case, answer, settings) for (_, case), answer in zip(opened, answers, strict=True)]
        dice = [next(one.value for one in scores if one.metric == "dice") for scores in scored]
        mean = mean_with_interval(dice, SEED, groups=patients)
        difference, apart = Interval(None, None, None, 0), None
        if what == "torch":
            truth, baseline = answers, dice
        else:
            difference = paired_difference(dice, baseline, SEED, groups=patients, bounds=SHARE)
            apart = max((float(np.abs(a - b).max()) for a, b in zip(answers, truth, strict=True)), default=None)
        p50, p95 = _latency_ms(partial(ask, timed))
        measured = Measured(
            what, path.stat().st_size / 1e6, mean.mean, mean.n, difference.mean, difference.low, difference.high, apart, p50, p95
        )  # fmt: skip
        rows.append(measured.shown(timed.shape))
    return rows


def _latency_ms(run: Callable[[], object]) -> tuple[float, float]:
    """Median and 95th percentile of TIMED runs on one thread, ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for number in range(WARM_UPS + TIMED):
            begun = time.perf_counter()
            run()
            if number >= WARM_UPS:
                taken.append(1000 * (time.perf_counter() - begun))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(taken), statistics.quantiles(taken, n=20, method="inclusive")[-1]
