"""A model as a folder that `python -m monai.bundle run` executes on NIfTI files, by MONAI's own components: a MONAI bundle.

It does what `TargetPredictor` does: crop, scale, orient and resample the CT, ask for the class in overlapping windows, and take the
mask back to the grid of the file. Nothing of med_assets is needed to run it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from med_assets.programs.lung_ct.experiment import LungExperiment, Network
from med_assets.programs.lung_ct.network import CLASSES, LAST_SUPPORTED
from med_assets.programs.lung_ct.transforms import HU_RANGE, MARGIN
from med_assets.storage.files import write_json, write_text
from med_assets.training.tensors import read_checkpoint

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Schema of `metadata.json`, as bundles of the MONAI Model Zoo name it."""

BUNDLE_VERSION = "1.0.0"

README = """# {name}

{about} Experiment `{experiment}`, checkpoint `{model}`.

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER --output_dir OUT

reads every `*.nii` and `*.nii.gz` of FOLDER, a CT in HU each, and writes `OUT/<file>_seg.nii.gz`, 1 inside {target} and 0 outside, on the grid of the file.
It needs {packages}, `nibabel`, and `fire` for the command line. `--classes "[1]"` asks for another class of VISTA3D, by its id.

{limits}

The weights are made from others where the experiment names initial weights; the licence of those holds for these too.
"""


@dataclass(frozen=True)
class About:
    """What a bundle says of its model."""

    title: str
    use: str
    """What it is intended for."""
    not_for: str
    model: str
    """Key of the checkpoint."""
    target: str
    """Name of the class that it segments."""


def write_bundle(
    checkpoint: Path, out: Path, spacing_mm: tuple[float, float, float], target: int, about: About
) -> list[Path]:
    """Write a checkpoint's network as a bundle that segments the class `target` at `spacing_mm`, (x, y, z); returns the paths.

    The weights are tensors alone, which `torch.load(weights_only=True)` reads. Raises CheckpointMismatch for a folder that does not fit.
    """
    from med_assets.programs.lung_ct.predict import Predictor
    from med_assets.training.callbacks import save_tensors

    experiment, weights = read_checkpoint("lung_ct", checkpoint)
    assert isinstance(experiment, LungExperiment)
    Predictor(experiment, weights)  # every tensor fits
    files = {
        "configs/metadata.json": _metadata(experiment, about),
        "configs/inference.json": _inference(experiment, spacing_mm, target),
    }
    for folder in ("configs", "models", "docs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_json(out / name, content)
    save_tensors(out / "models" / "model.pt", weights)
    text = README.format(
        name=f"med_assets lung_ct {experiment.name}", about=about.use, experiment=experiment.name, model=about.model, target=about.target,
        packages=f"`monai` {version('monai')} or later, `torch`", limits=about.not_for,
    )  # fmt: skip
    write_text(out / "docs" / "README.md", text)
    return [*(out / name for name in files), out / "models" / "model.pt", out / "docs" / "README.md"]


def _network(network: Network) -> dict[str, Any]:
    if network.kind == "vista3d132":
        return {"_target_": "monai.networks.nets.vista3d132", "encoder_embed_dim": 48, "in_channels": 1}
    width = network.channels
    return {
        "_target_": "monai.networks.nets.VISTA3D",
        "image_encoder": {
            "_target_": "monai.networks.nets.SegResNetDS2",
            "in_channels": 1,
            "blocks_down": list(network.blocks_down),
            "norm": "instance",
            "out_channels": width,
            "init_filters": width,
            "dsdepth": 1,
        },
        "class_head": {
            "_target_": "monai.networks.nets.vista3d.ClassMappingClassify",
            "n_classes": CLASSES,
            "feature_size": width,
            "use_mlp": True,
        },
        "point_head": {
            "_target_": "monai.networks.nets.vista3d.PointMappingSAM",
            "n_classes": CLASSES,
            "feature_size": width,
            "last_supported": LAST_SUPPORTED,
        },
    }


def _inference(experiment: LungExperiment, spacing_mm: tuple[float, float, float], target: int) -> dict[str, Any]:
    """What `run` executes: expressions and components of MONAI and torch alone, none of which needs Ignite."""
    inference, (low, high) = experiment.inference, HU_RANGE
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "files": "$sorted(f for end in ('nii', 'nii.gz') for f in glob.glob(os.path.join(@dataset_dir, '*.' + end)))",
        "weights": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "classes": [target],
        "class_vector": "$torch.tensor(@classes, dtype=torch.long, device=@device)[:, None]",
        "network_def": _network(experiment.network),
        "network": "$@network_def.to(@device).eval()",
        "predictor": "$lambda windows: @network(input_images=windows, class_vector=@class_vector, transpose=True).float()",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {
                    "_target_": "CropForegroundd",
                    "keys": "image",
                    "source_key": "image",
                    "margin": MARGIN,
                    "allow_smaller": True,
                },
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": low,
                    "a_max": high,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                {
                    "_target_": "Orientationd",
                    "keys": "image",
                    "axcodes": "RAS",
                    "labels": [["L", "R"], ["P", "A"], ["I", "S"]],
                },
                {"_target_": "Spacingd", "keys": "image", "pixdim": list(spacing_mm), "mode": "bilinear"},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(inference.window),
            "sw_batch_size": inference.batch,
            "overlap": inference.overlap,
            "mode": inference.mode,
            "padding_mode": inference.padding,
            "sw_device": "@device",
            "device": "cpu",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.0},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": True,
                    "to_tensor": True,
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$np.uint8",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @files]",
            "transform": "@preprocessing",
        },
        "initialize": [
            "$torch.set_grad_enabled(False)",
            "$@network.load_state_dict(torch.load(@weights, map_location=@device, weights_only=True))",
        ],
        "run": [
            "$[@postprocessing({**item, 'pred': @inferer(item['image'][None], @predictor)[0]}) for item in @dataset]"
        ],
    }


def _metadata(experiment: LungExperiment, about: About) -> Mapping[str, Any]:
    shape = list(experiment.inference.window)
    patch = {"spatial_shape": shape, "dtype": "float32", "value_range": [0, 1], "is_patch_data": True}
    return {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {
            BUNDLE_VERSION: f"{about.model} of lung_ct/{experiment.name}, written by med_assets {version('med-assets')}"
        },
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "name": f"med_assets lung_ct {experiment.name}",
        "task": about.title,
        "description": about.use,
        "authors": "written by med_assets",
        "copyright": "that of the initial weights and of the training data",
        "intended_use": f"{about.use} Not for: {about.not_for}",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    **patch,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1,
                    **patch,
                    "channel_def": {"0": about.target},
                }
            },
        },
    }
