"""A model as a MONAI bundle: what MONAI writes with it is what this package predicts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch

from med_assets.preparation.nifti import write_nifti
from med_assets.programs.lung_ct.bundle_out import About, write_bundle
from med_assets.programs.lung_ct.kept import read_prediction
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.lung_ct.scorer import TargetPredictor
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared
from tests.med_assets.programs.lung_ct.test_predict import save

ABOUT = About("Lung tumour segmentation", "Research.", "Diagnosis.", "checkpoint/0123", "lung tumor")


OPTIONAL = ("cv2", "matplotlib", "mlflow", "pandas", "skimage", "sklearn", "tensorboard", "transformers")
"""Libraries that MONAI imports where they are installed, which takes seconds; a bundle needs none of them."""

MONAI_ALONE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({OPTIONAL}))
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def monai_bundle(folder: Path, *arguments: str) -> str:
    """Run a bundle as a user of MONAI alone does, in a process that can't import this package."""
    command = [sys.executable, "-P", "-c", MONAI_ALONE, "run", "--config_file", "configs/inference.json", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_monai_runs_the_bundle_on_a_folder_and_writes_the_mask_that_this_package_predicts(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    case = PreparedCase.open(write_prepared(tmp_path / "case"))
    written = write_bundle(tmp_path / "checkpoint", tmp_path / "bundle", case.spacing_mm, 23, ABOUT)
    assert [path.relative_to(tmp_path / "bundle").as_posix() for path in written] == [
        "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md",
    ]  # fmt: skip
    (tmp_path / "scans").mkdir()
    write_nifti(tmp_path / "scans" / "ct.nii.gz", np.asarray(case.ct), case.geometry)
    monai_bundle(tmp_path / "bundle", "--dataset_dir", str(tmp_path / "scans"), "--output_dir", str(tmp_path / "out"))
    saved = nibabel.load(tmp_path / "out" / "ct_seg.nii.gz")
    (tmp_path / "kept").mkdir()
    TargetPredictor(tmp_path / "checkpoint").predict(tmp_path / "case", tmp_path / "kept")
    ours = read_prediction(tmp_path / "kept", case.ct.shape)
    assert 0 < ours.sum() < ours.size
    np.testing.assert_array_equal(np.asarray(saved.dataobj).T.astype(bool), ours)
    np.testing.assert_allclose(saved.affine, case.geometry.nifti_affine())


def test_the_weights_are_tensors_alone_and_the_files_name_no_path_of_this_machine(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    written = write_bundle(tmp_path / "checkpoint", tmp_path / "bundle", (1.5, 1.5, 1.5), 23, ABOUT)
    weights = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    assert weights["class_head.class_embeddings.weight"].shape == (512, 8)
    texts = [path.read_text() for path in written if path.suffix != ".pt"]
    assert not any(str(tmp_path) in text or "med_assets." in text for text in texts)
    metadata = json.loads(texts[0])
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "lung tumor"}
    assert metadata["monai_version"]
    assert json.loads(texts[1])["preprocessing"]["transforms"][-1]["pixdim"] == [1.5, 1.5, 1.5]


def test_the_full_network_is_the_released_architecture(tmp_path: Path) -> None:
    from med_assets.experiments.configuration import load
    from med_assets.programs.lung_ct.bundle_out import _network
    from med_assets.programs.lung_ct.experiment import LungExperiment

    experiment = load("lung_ct", "foundation", profile="full")
    assert isinstance(experiment, LungExperiment)
    assert _network(experiment.network)["_target_"] == "monai.networks.nets.vista3d132"
