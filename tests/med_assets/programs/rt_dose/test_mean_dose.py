"""The mean of the training doses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose import mean_dose
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import load_site
from tests.med_assets.programs.rt_dose.builders import write_case

SITE = load_site("prostate_sib")


def test_the_mean_of_one_dose_on_its_own_grid_is_that_dose(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "c", spacing_mm=(4.0, 4.0, 4.0))
    case = PreparedCase.open(folder)
    found = mean_dose.predict(mean_dose.fit([folder], SITE, 1.0), case, SITE)
    inner = (slice(2, -2),) * 3
    assert float(np.abs(found - case.target())[inner].mean()) < 0.005


def test_a_shifted_case_gets_the_shifted_dose(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a", spacing_mm=(4.0, 4.0, 4.0))
    moved = write_case(tmp_path / "b", spacing_mm=(4.0, 4.0, 4.0))
    for name in ("masks", "dose"):
        np.save(moved / f"{name}.npy", np.roll(np.load(moved / f"{name}.npy"), 3, axis=2))
    weights = mean_dose.fit([folder], SITE, 4.0)
    here = mean_dose.predict(weights, PreparedCase.open(folder), SITE)
    there = mean_dose.predict(weights, PreparedCase.open(moved), SITE)
    np.testing.assert_allclose(there[:, :, 6:-3], here[:, :, 3:-6], atol=1e-5)


def test_two_doses_are_averaged(tmp_path: Path) -> None:
    folders = [write_case(tmp_path / name, seed=3) for name in "ab"]
    np.save(folders[1] / "dose.npy", 3 * np.load(folders[1] / "dose.npy"))
    one, both = mean_dose.fit(folders[:1], SITE, 4.0), mean_dose.fit(folders, SITE, 4.0)
    torch.testing.assert_close(both["template"], 2 * one["template"])


def test_a_case_without_the_main_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="PTV70"):
        mean_dose.fit([write_case(tmp_path / "c", absent=["PTV70"])], SITE, 4.0)
