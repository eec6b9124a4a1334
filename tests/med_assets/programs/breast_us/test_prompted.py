"""A person's points and box reach SAM where they were set, and its outline is written as any prediction."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from med_assets.dicom.segmentation_2d import read_segments_2d
from med_assets.errors import ConfigurationError
from med_assets.evaluation.prompts import Prompts, numbers_of
from med_assets.program import get
from med_assets.programs.breast_us.images import as_image
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.phantom import write_case
from med_assets.programs.breast_us.predict import Predictor, on_pixels
from med_assets.programs.breast_us.prepare import prepare_case
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.prompted import probability_of
from med_assets.settings import Workspace
from tests.med_assets.programs.breast_us.builders import TINY
from tests.med_assets.programs.breast_us.test_networks import demo
from tests.med_assets.programs.breast_us.test_pipeline import checkpoint


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_case(tmp_path / "raw", 0)


@pytest.fixture
def prepared(raw: Path, tmp_path: Path) -> Path:
    (tmp_path / "prepared").mkdir()
    prepare_case("c", raw, tmp_path / "prepared", {})
    return tmp_path / "prepared"


def sam() -> Predictor:
    torch.manual_seed(5)
    experiment = demo("sam_lora")
    return Predictor(experiment, Segmenter(experiment).state_dict())


def test_points_and_boxes_are_those_of_sam_on_the_networks_image(prepared: Path) -> None:
    case, predictor = PreparedCase.open(prepared), sam()
    (top, left), (rows, columns) = case.corner, np.asarray(case.image).shape
    found = probability_of(
        predictor,
        case,
        Prompts(((left, top),), ((left + columns - 1, top + rows - 1),), (left, top, left + 9, top + 5)),
    )
    side = predictor.experiment.input_px
    x, y = side / columns, side / rows
    net = predictor.network.eval()
    with torch.inference_mode():
        features = net.net.sam.vision_encoder(net.scaled(as_image(case.image, side)[None])).last_hidden_state
        masks = net.net.sam(
            image_embeddings=features,
            input_points=torch.tensor([[[[x / 2 - 0.5, y / 2 - 0.5], [side - x / 2 - 0.5, side - y / 2 - 0.5]]]]),
            input_labels=torch.tensor([[[1, 0]]]),
            input_boxes=torch.tensor([[[x / 2 - 0.5, y / 2 - 0.5, 9.5 * x - 0.5, 5.5 * y - 0.5]]]),
            multimask_output=False,
        ).pred_masks[:, 0]
    small = torch.nn.functional.interpolate(masks, (side, side), mode="bilinear")
    expected = 1 / (1 + np.exp(-on_pixels(small[0], (rows, columns))))
    assert np.abs(found - expected).max() < 1e-5


def test_every_prompt_changes_the_answer(prepared: Path) -> None:
    case, predictor = PreparedCase.open(prepared), sam()
    (top, left) = case.corner
    asked = [
        Prompts(((left + 5, top + 5),)),
        Prompts(((left + 5, top + 5),), ((left + 40, top + 30),)),
        Prompts(box=(left + 5, top + 5, left + 40, top + 30)),
    ]
    answers = [probability_of(predictor, case, one) for one in asked]
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(answers) for b in answers[i + 1 :])


def test_the_outline_is_written_as_any_prediction(
    workspace: Workspace, raw: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "checkpoint", "sam_lora")
    top, left = PreparedCase.open(prepared).corner
    given = (Prompts(((left + 9, top + 9),)), tmp_path / "out", "sam_lora")
    written = get("breast_us").outline(workspace, folder, raw, prepared, *given)  # type: ignore[attr-defined]  # a capability of it
    assert [path.name for path in written] == ["predicted_lesion.dcm", "predicted_lesion.png"]
    (segment,) = read_segments_2d(pydicom.dcmread(written[0]))
    assert segment.mask.shape == PreparedCase.open(prepared).full_shape


def test_what_can_not_be_meant_is_refused(prepared: Path, tmp_path: Path) -> None:
    case = PreparedCase.open(prepared)
    with pytest.raises(ConfigurationError, match="within the tissue"):
        probability_of(sam(), case, Prompts(((5000, 5),)))
    top, left = case.corner
    experiment = demo("tinyusfm", *TINY)
    student = Predictor(experiment, Segmenter(experiment).state_dict())
    with pytest.raises(ConfigurationError, match="a model of SAM"):
        probability_of(student, case, Prompts(((left, top),)))
    with pytest.raises(ConfigurationError, match="got neither"):
        Prompts()
    with pytest.raises(ConfigurationError, match="FIRST_COLUMN"):
        Prompts(box=(9, 9, 4, 20))
    for text in ("1", "1,b", "1,-2"):
        with pytest.raises(ConfigurationError, match="COLUMN,ROW"):
            numbers_of(text, 2)
