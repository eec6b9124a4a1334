"""Predictions as files for other tools, and a network as ONNX for other runtimes, checked against itself."""

import warnings
from pathlib import Path

import numpy as np

from med_assets.dicom.objects import stored
from med_assets.dicom.segmentation_2d import write_segmentation_2d, write_segments_2d
from med_assets.dicom.sr_write import SQUARE_MILLIMETRE, Finding, OfSegment, Quantity, code_of, write_report
from med_assets.errors import ConfigurationError
from med_assets.launch.jobs import ADAPTERS
from med_assets.programs.breast_us.classes import are_organs, class_map
from med_assets.programs.breast_us.experiment import BreastExperiment, Sam
from med_assets.programs.breast_us.kept import read_classes, read_probability
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.vocabulary import NORMAL
from med_assets.storage.files import replacing

ONNX_TOLERANCE = 1e-3
"""Largest difference of a logit between torch and ONNX Runtime; both round differently."""

OPSET = 18

SEGMENTATION, REPORT = "predicted_lesion.dcm", "predicted_measurements.dcm"


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str, threshold: float) -> list[Path]:
    """Write predicted_lesion.dcm, a SEG of the case's own image, and the mask as PNG on the machine's whole picture.

    Where nothing is predicted the SEG holds an empty mask and says so. Of a network of several classes the SEG has a segment for each
    class that is called somewhere, and the PNG the union of them.
    """
    from PIL import Image

    case = PreparedCase.open(prepared)
    several = read_classes(predicted)
    if several is None:
        inside = (read_probability(predicted) > threshold).astype(np.uint8)
    else:
        inside = class_map(several[0], threshold)
    mask = np.zeros(case.full_shape, np.uint8)
    top, left = case.corner
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    out.mkdir(parents=True, exist_ok=True)
    segmentation, picture = out / SEGMENTATION, out / "predicted_lesion.png"
    source = stored(raw)["US"][0]
    organs = several is not None and are_organs(several[1])
    if several is None or not (mask.any() or organs):
        label = "lesion" if mask.any() else NORMAL
        write_segmentation_2d(segmentation, mask > 0, label, source, made_by=model, synthetic=case.synthetic)
    else:
        # An organ that is not called has an empty segment, since it was looked for.
        called = [number for number in range(1, 1 + len(several[1])) if organs or (mask == number).any()]
        numbered = np.searchsorted([0, *called], mask)
        names = [several[1][number - 1] for number in called]
        write_segments_2d(segmentation, numbered, names, source, made_by=model, synthetic=case.synthetic, organs=organs)
    Image.fromarray((mask > 0).astype(np.uint8) * 255).save(picture)
    return [segmentation, picture]


def write_measurements(raw: Path, prepared: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_measurements.dcm, the area of each segment of predicted_lesion.dcm in `out`; nothing on pixels that nobody calibrated."""
    from pydicom import dcmread
    from pydicom.sr.codedict import codes

    case = PreparedCase.open(prepared)
    if case.pixel_mm is None:
        return []
    seg, image = dcmread(out / SEGMENTATION), stored(raw)["US"][0]
    planes = seg.pixel_array.reshape(-1, int(seg.Rows), int(seg.Columns))
    findings = []
    for number, (segment, plane) in enumerate(zip(seg.SegmentSequence, planes, strict=True), start=1):
        pixels = int(np.count_nonzero(plane))
        area = Quantity(codes.SCT.Area, pixels * case.pixel_mm[0] * case.pixel_mm[1], SQUARE_MILLIMETRE)
        kind = code_of(segment, "SegmentedPropertyTypeCodeSequence")
        of_segment = OfSegment(seg, number, frame=number)
        findings.append(Finding(str(segment.SegmentLabel), kind, of_segment, (area,), site=codes.SCT.Breast))
    procedure = codes.SCT.UltrasonographyOfBreast
    path = out / REPORT
    write_report(path, findings, procedure, [image, seg], made_by=model, synthetic=case.synthetic)
    return [path]


def export_network(checkpoint: Path, out: Path) -> list[Path]:
    """Write what other tools can run: of an adapted SAM `adapters.pt`, the adapter-only file of SAMed, of any other network ONNX.

    Raises ConfigurationError as `export_onnx`.
    """
    from med_assets.programs.breast_us.samed import holds_all_that_is_trained, write_adapters
    from med_assets.training.callbacks import save_tensors
    from med_assets.training.tensors import read_checkpoint

    experiment, weights = read_checkpoint("breast_us", checkpoint)
    assert isinstance(experiment, BreastExperiment)
    network = experiment.network
    if isinstance(network, Sam) and experiment.initial != "random" and holds_all_that_is_trained(network, weights):
        out.mkdir(parents=True, exist_ok=True)
        save_tensors(out / ADAPTERS, write_adapters(weights))
        return [out / ADAPTERS]
    return export_onnx(checkpoint, out)


def export_onnx(checkpoint: Path, out: Path) -> list[Path]:
    """Write `model.onnx`: `image` (1, 1, side, side) in 0..1 to `logits` (1, outputs, side, side); returns its path.

    Of several classes the outputs are the background and the classes, whose names are in the file's metadata.
    The file is kept only if ONNX Runtime gives the logits of torch within ONNX_TOLERANCE. Raises ConfigurationError otherwise,
    and for a family that can't be exported.
    """
    import torch

    from med_assets.programs.breast_us.predict import load_predictor

    predictor = load_predictor(checkpoint)
    network, side = predictor.network.eval(), predictor.experiment.input_px
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 1, side, side, generator=generator)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        try:
            program = torch.onnx.export(
                network, (images[0],), str(temporary), input_names=["image"], output_names=["logits"], opset_version=OPSET,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
            if classes := predictor.experiment.classes:
                assert program is not None
                program.model.metadata_props["classes"] = ", ".join(("background", *classes))
                program.save(str(temporary), external_data=False)
        except Exception as error:  # the exporter raises what it likes
            raise ConfigurationError(
                f"expected a network that torch can export, {predictor.experiment.network.kind} failed with "
                f"{type(error).__name__}; tinyusfm is the family made for small devices"
            ) from error
        _demand_equal(network, temporary, images)
    return [path]


def _demand_equal(network: "object", path: Path, images: "object") -> None:
    import onnxruntime
    import torch

    assert isinstance(network, torch.nn.Module)
    assert isinstance(images, torch.Tensor)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for image in images:
        with torch.inference_mode():
            expected = network(image).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        largest = float(np.abs(expected - found).max())
        if not largest <= ONNX_TOLERANCE:
            raise ConfigurationError(
                f"expected ONNX Runtime to give torch's logits within {ONNX_TOLERANCE:g}, got {largest:g}; nothing was written"
            )
