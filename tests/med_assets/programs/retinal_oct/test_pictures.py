"""The confusion matrix of a checkpoint as a picture."""

from pathlib import Path

import numpy as np

from med_assets.capabilities import SplitPlots
from med_assets.program import get
from tests.med_assets.programs.retinal_oct.test_score import PREDICTED, TRUTH, rows


def test_the_confusion_matrix_of_a_split_is_a_picture_with_all_counts(tmp_path: Path) -> None:
    from matplotlib.image import imread

    chosen, path = get("retinal_oct"), tmp_path / "all_cases_val.png"
    assert isinstance(chosen, SplitPlots)
    assert chosen.split_plot([], "val", path) is None
    assert not path.exists()
    caption = chosen.split_plot(rows(TRUTH, np.eye(4)[PREDICTED]), "val", path)
    assert caption is not None
    assert caption.startswith("Confusion matrix of 10 cases of val")
    picture = imread(path)
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50
