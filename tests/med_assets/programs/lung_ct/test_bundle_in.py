"""A bundle as an experiment: the order of overlays, what is mapped and what is not, and that nothing of it is executed."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from med_assets.cli.command_line import cli
from med_assets.errors import ConfigurationError
from med_assets.experiments.bundles import Line, Reading, adopt_bundle
from med_assets.experiments.configuration import load
from med_assets.programs.lung_ct.experiment import LungExperiment
from med_assets.storage.conf import CONF_VARIABLE, conf_folder

P = "lung_ct"

METADATA = {
    "name": "a lung bundle",
    "version": "0.1.0",
    "description": "Costs ${oc.env:HOME} nothing.",
    "network_data_format": {"inputs": {"image": {"num_channels": 1, "modality": "CT"}}},
}

TRAIN = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "epochs": 5,
    "val_interval": 1,
    "val_at_start": False,
    "sw_overlap": 0.625,
    "learning_rate": 0.0001,
    "num_patches_per_image": 2,
    "input_channels": 1,
    "max_point": 5,
    "drop_label_prob": 0.25,
    "drop_point_prob": 0.25,
    "amp": True,
    "finetune": False,
    "patch_size": [128, 128, 128],
    "patch_size_valid": "$@patch_size",
    "resample_to_spacing": [1.5, 1.5, 1.5],
    "network_def": "$monai.networks.nets.vista3d132(in_channels=@input_channels)",
    "network": "$@network_def.to(@device)",
    "loss": {"_target_": "DiceCELoss", "include_background": True, "sigmoid": True, "smooth_dr": 1e-5, "smooth_nr": 0, "squared_pred": True},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@learning_rate", "weight_decay": 1e-5},
    "lr_schedule": {"activate": True, "lr_scheduler": {"_target_": "monai.optimizers.WarmupCosineSchedule"}},
    "train": {
        "deterministic_transforms": [
            {"_target_": "Orientationd", "keys": ["image", "label"], "axcodes": "RAS"},
            {"_target_": "CropForegroundd", "source_key": "image", "margin": 30, "allow_smaller": True},
        ],
        "random_transforms": [
            {"_target_": "RandCropByLabelClassesd", "keys": ["image", "label"]},
            {"_target_": "RandZoomd", "prob": 0.3, "min_zoom": 0.9, "max_zoom": 1.1},
            {"_target_": "RandShiftIntensityd", "prob": 0.1, "offsets": 0.2},
            {"_target_": "RandAffined", "prob": 0.5},
        ],
        "dataloader": {"batch_size": 1, "num_workers": 3},
        "trainer": {"_target_": "scripts.trainer.Vista3dTrainer"},
    },
    "validate": {"inferer": {"overlap": "@sw_overlap"}},
    "initialize": ["$monai.utils.set_determinism(seed=7)"],
    "run": ["$@train#trainer.run()"],
}  # fmt: skip

CONTINUAL = {
    "finetune": True,
    "val_at_start": True,
    "lr_schedule#activate": False,
    "loss#smooth_dr": 0.01,
    "loss#smooth_nr": 0.0001,
    "label_mappings": {"default": [[1, 2], [2, 254]]},
    "label_set": "$[0] + list(x[1] for x in @label_mappings#default)",
    "patch_size": [160, 160, 160],
}

TASK06 = {
    "label_mappings": {"default": [[1, 23]]},
    "patch_size": [96, 96, 96],
    "learning_rate": 5e-5,
    "drop_label_prob": 0.0,
    "drop_point_prob": 1.0,
}

EVALUATE = {
    "label_mappings": {"default": [[1, 3]]},
    "patch_size": [128, 128, 128],
    "validate#evaluator": {"_target_": "scripts.evaluator"},
}

ORDER = ("configs/train.json", "configs/train_continual.json", "configs/task06.json")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a bundle, and a conf of its own to write to."""
    shutil.copytree(conf_folder(P), tmp_path / "conf" / P)
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    files = {"metadata": METADATA, "train": TRAIN, "train_continual": CONTINUAL, "task06": TASK06, "evaluate": EVALUATE}
    for name, content in files.items():
        write(folder, name, content)
    return folder


def write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / "configs" / f"{name}.json").write_text(json.dumps(content))


def lung(name: str) -> LungExperiment:
    experiment = load(P, name, profile="full")
    assert isinstance(experiment, LungExperiment)
    return experiment


def by_key(lines: tuple[Line, ...]) -> dict[str, Line]:
    return {line.key: line for line in lines}


def test_later_files_of_a_bundle_hold_over_earlier_ones(bundle: Path) -> None:
    path, _ = adopt_bundle(P, "from_bundle", bundle, ORDER)
    assert path == conf_folder(P) / "from_bundle.yaml"
    found = lung("from_bundle")
    assert (found.schedule.epochs, found.schedule.validate_first, found.seed, found.initial) == (
        5,
        True,
        7,
        "foundation",
    )
    assert (found.optimiser.lr, found.optimiser.min_lr, found.optimiser.weight_decay) == (5e-5, 5e-5, 1e-5)
    assert found.patches.size == found.inference.window == (96, 96, 96)
    assert found.patches.per_case == 2
    assert (found.labels.mode, found.labels.mapping) == ("mapping", ((1, 23),))
    assert (found.loss.smooth_dr, found.loss.smooth_nr, found.precision) == (0.01, 0.0001, "16-mixed")
    assert (found.prompts.drop_points, found.prompts.drop_labels) == (1.0, 0.0)
    assert (found.augment.zoom.p, found.augment.zoom.low, found.augment.shift.by, found.augment.noise.p) == (
        0.3,
        0.9,
        0.2,
        0.0,
    )
    assert found.title == "From a lung bundle, version 0.1.0"

    adopt_bundle(P, "alone", bundle, ORDER[:1])
    alone = lung("alone")
    assert (alone.optimiser.lr, alone.optimiser.min_lr, alone.initial, alone.labels.mode) == (
        1e-4,
        0.0,
        "random",
        "target",
    )

    adopt_bundle(P, "evaluation", bundle, (*ORDER[:2], "configs/evaluate.json", ORDER[2]))
    assert lung("evaluation").labels.mapping == ((1, 23),)
    adopt_bundle(P, "evaluation_last", bundle, (*ORDER, "configs/evaluate.json"))
    assert (lung("evaluation_last").labels.mapping, lung("evaluation_last").patches.size) == (
        ((1, 3),),
        (128, 128, 128),
    )


def test_every_entry_is_mapped_the_same_or_listed_with_the_reason(bundle: Path) -> None:
    _, found = adopt_bundle(P, "from_bundle", bundle, ORDER)
    lines = by_key(found.lines)
    for key in (*TRAIN, *CONTINUAL):
        top = key.partition("#")[0]
        assert any(line.partition("#")[0] == top for line in lines), key
    assert (lines["loss#smooth_dr"].reading, lines["loss#smooth_dr"].note) == (Reading.MAPPED, "loss.smooth_dr")
    assert lines["resample_to_spacing"].reading is Reading.SAME
    not_mapped = {key: line.note for key, line in lines.items() if line.reading is Reading.NOT_MAPPED}
    assert not_mapped["train#deterministic_transforms#1"] == "preparation has margin 10"
    assert not_mapped["train#random_transforms#3"] == "there is no such random transform"
    assert "0.25" in not_mapped["sw_overlap"]
    assert "not executed" in not_mapped["train#trainer"]
    assert "labels.mapping" in not_mapped["label_set"]


def test_nothing_of_a_bundle_is_executed(bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    power = f"$__import__('pathlib').Path({str(mark)!r}).touch() or 9"
    write(
        bundle,
        "task06",
        TASK06
        | {
            "epochs": power,
            "val_interval": {"_target_": "pathlib.Path.touch", "self": str(mark)},
            "network_def": power,
            "initialize": [power],
            "max_point": "@a",
            "a": "@max_point",
            "drop_label_prob": "%/etc/passwd",
        },
    )
    _, found = adopt_bundle(P, "from_bundle", bundle, ORDER)
    assert not mark.exists()
    lines = by_key(found.lines)
    assert lines["epochs"].note == "an expression, which is not executed"
    assert lines["max_point"].note == "references lead to one another"
    assert all(
        lines[key].reading is Reading.NOT_MAPPED
        for key in ("epochs", "val_interval", "network_def", "initialize", "drop_label_prob")
    )
    assert lung("from_bundle").prompts.max_points == 5, "the value that every experiment has"
    assert "oc.env" not in lung("from_bundle").description.replace("{oc.env:HOME}", "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata", METADATA | {"network_data_format": {"inputs": {"image": {"num_channels": 4, "modality": "MR"}}}}, "got 4 of 'MR'"),
        ("metadata", {"name": "nothing"}, "expected the image of the network"),
        ("task06", TASK06 | {"patch_size": [100, 100, 100]}, "patches.size"),
        ("task06", {"+loss": 3}, "config must be dict or list"),
    ],
)  # fmt: skip
def test_what_makes_no_experiment_is_refused_and_leaves_no_file(
    bundle: Path, name: str, content: dict[str, Any], message: str
) -> None:
    write(bundle, name, content)
    with pytest.raises(ConfigurationError, match=message):
        adopt_bundle(P, "from_bundle", bundle, ORDER)
    assert not (conf_folder(P) / "from_bundle.yaml").exists()


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("foundation", ORDER, "a name that no experiment has"),
        ("new", ("../conf/lung_ct/_base.yaml",), "lies outside of it"),
        ("new", ("configs/other.json",), "found no such file"),
    ],
)
def test_files_outside_and_names_that_are_taken_are_refused(
    bundle: Path, name: str, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        adopt_bundle(P, name, bundle, files)


def test_a_file_that_is_too_large_or_too_deep_is_refused(bundle: Path) -> None:
    (bundle / "configs" / "task06.json").write_text("[" * 100_000)
    with pytest.raises(ConfigurationError, match="reading them failed with"):
        adopt_bundle(P, "new", bundle, ORDER)
    (bundle / "configs" / "task06.json").write_text(" " * (5 << 20))
    with pytest.raises(ConfigurationError, match="at most 4 MiB"):
        adopt_bundle(P, "new", bundle, ORDER)


def test_the_command_lists_what_is_not_mapped(bundle: Path) -> None:
    done = CliRunner().invoke(cli, ["import-bundle", P, str(bundle), "adopted", "--config", *ORDER])
    assert done.exit_code == 0, done.output
    assert "conf/lung_ct/adopted.yaml" in done.output
    assert "there is no such random transform" in done.output
    assert lung("adopted").labels.mapping == ((1, 23),)
