"""VISTA3D's bundle as an experiment: `train.json` with its overlays, entry by entry."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from med_assets.errors import ConfigurationError
from med_assets.experiments.bundles import BundleConfiguration, Line, ReadBundle, Reading, Unresolved
from med_assets.programs.lung_ct.transforms import HU_RANGE, MARGIN

Change = Callable[[Any], Any]

DEEPER = ("loss", "optimizer", "lr_schedule", "train", "validate")
"""Entries whose parts are read one by one."""

FIELDS: dict[str, tuple[str, Change]] = {
    "epochs": ("schedule.epochs", int),
    "val_interval": ("schedule.val_every", int),
    "val_at_start": ("schedule.validate_first", bool),
    "patch_size": ("patches.size", list),
    "patch_size_valid": ("inference.window", list),
    "num_patches_per_image": ("patches.per_case", int),
    "max_point": ("prompts.max_points", int),
    "max_backprompt": ("prompts.max_absent", lambda most: most),
    "drop_label_prob": ("prompts.drop_labels", float),
    "drop_point_prob": ("prompts.drop_points", float),
    "loss#smooth_nr": ("loss.smooth_nr", float),
    "loss#smooth_dr": ("loss.smooth_dr", float),
    "loss#squared_pred": ("loss.squared", bool),
    "loss#lambda_dice": ("loss.dice", float),
    "loss#lambda_ce": ("loss.ce", float),
    "train#dataloader#batch_size": ("schedule.batch", int),
    "train#dataloader#num_workers": ("runtime.workers", int),
    "amp": ("precision", lambda mixed: "16-mixed" if mixed else "32-true"),
    "finetune": ("initial", lambda tuned: "foundation" if tuned else "random"),
    "optimizer#lr": ("optimiser.lr", float),
}
"""By entry of the bundle the field that holds it here, and what is done to its value."""

FIXED: dict[str, tuple[object, ...]] = {
    "input_channels": (1,),
    "loss#_target_": ("DiceCELoss", "monai.losses.DiceCELoss"),
    "loss#include_background": (True,),
    "loss#sigmoid": (True,),
    "loss#to_onehot_y": (False,),
    "optimizer#_target_": ("torch.optim.AdamW", "AdamW"),
}
"""Entries that are so in every experiment, with the values that mean the same."""

ELSEWHERE = {
    "bundle_root ckpt_dir output_dir ckpt_path use_tensorboard": "files are in the home, see MED_ASSETS_HOME",
    "data_list_file_path dataset_dir fold train_datalist val_datalist n_train_samples n_val_samples": "cases and folds come in by "
    "`med-assets import datalist --val-fold`",
    "train_dataset_cache_rate val_dataset_cache_rate num_cache_workers show_cache_progress cache_cls_idx": "prepared cases are stored once, "
    "and nothing is cached",
    "finetune_model_path": "released weights are named in _program.yaml, see `med-assets weights`",
    "device": "runtime.accelerator",
    "sw_overlap": "MONAI's inferer uses 0.25 for class prompts, whatever this says; inference.overlap sets it here",
    "label_set val_label_set num_classes output_classes valid_remap": "follow from labels.mapping",
    "early_stop": "schedule.patience",
    "imports run": "code of the bundle, which is not executed",
    "train#handlers train#trainer train#key_metric train#inferer validate#handlers validate#evaluator": "code of the bundle, which is not executed",
    "train#dataset validate#dataset validate#dataloader train#preprocessing validate#preprocessing validate#postprocessing": "code of the bundle, "
    "which is not executed",
    "optimizer#params lr_schedule#lr_scheduler": "code of the bundle, which is not executed",
}
"""Entries without a field, by their ids, with where that is set here."""

TORCH_DECAY = 0.01
"""Weight decay of torch.optim.AdamW where none is given."""

SET_DETERMINISM = re.compile(r"\$?monai\.utils\.set_determinism\(seed=(\d+)\)", re.ASCII)
RELEASED = re.compile(r"(?:\$?monai\.networks\.nets\.)?vista3d132(?:\(in_channels=(?:1|@input_channels)\))?", re.ASCII)
"""The entry `network_def` of the released architecture, as a call or as a component; it is compared and not executed."""

PREPARATION: dict[str, Mapping[str, object]] = {
    "LoadImaged": {},
    "CropForegroundd": {"source_key": "image", "margin": MARGIN, "allow_smaller": True},
    "ScaleIntensityRanged": {"a_min": HU_RANGE[0], "a_max": HU_RANGE[1], "b_min": 0.0, "b_max": 1.0, "clip": True},
    "Orientationd": {"axcodes": "RAS"},
    "Spacingd": {"mode": ["bilinear", "nearest"]},
    "CastToTyped": {},
    "EnsureTyped": {},
    "SpatialPadd": {},
}
"""The deterministic transforms, all of which preparation does, with the arguments that it has."""

SAMPLING = ("ClassesToIndicesd", "RandCropByLabelClassesd", "ResizeWithPadOrCropd", "Relabeld")
"""Random transforms that every training has."""

AUGMENTATION: dict[str, tuple[str, Mapping[str, str]]] = {
    "RandZoomd": ("zoom", {"prob": "p", "min_zoom": "low", "max_zoom": "high"}),
    "RandSimulateLowResolutiond": ("low_resolution", {"prob": "p", "zoom_range": "low high"}),
    "RandGaussianSmoothd": ("smooth", {"prob": "p", "sigma_x": "low high"}),
    "RandScaleIntensityd": ("scale", {"prob": "p", "factors": "by"}),
    "RandShiftIntensityd": ("shift", {"prob": "p", "offsets": "by"}),
    "RandGaussianNoised": ("noise", {"prob": "p", "std": "by"}),
}
"""By transform the field of `augment`, and what each of its arguments is there."""


def read_bundle(
    configuration: BundleConfiguration, metadata: Mapping[str, Any], spacing_mm: Sequence[float]
) -> ReadBundle:
    """Read a bundle of VISTA3D; `spacing_mm` is that of this site's preparation in the profile `full`.

    Raises ConfigurationError where the bundle is of another task: not one channel of CT.
    """
    return _Reader(configuration, spacing_mm).read(metadata)


class _Reader:
    """Collects fields and lines while the entries of a bundle are read."""

    def __init__(self, configuration: BundleConfiguration, spacing_mm: Sequence[float]) -> None:
        self.entries, self.spacing_mm = configuration, [float(step) for step in spacing_mm]
        self.fields: dict[str, Any] = {}
        self.lines: dict[str, Line] = {}

    def read(self, metadata: Mapping[str, Any]) -> ReadBundle:
        self._metadata(metadata)
        for key, (field, change) in FIELDS.items():
            self._take(key, field, change)
        for key, same in FIXED.items():
            self._compare(key, same)
        self._learning_rate()
        self._network()
        self._labels()
        self._seed()
        self._spacing()
        self._transforms()
        notes = {key: note for keys, note in ELSEWHERE.items() for key in keys.split()}
        for key in self.entries.keys(DEEPER):
            covered = key in self.lines or any(other.startswith(f"{key}#") for other in self.lines)
            if not covered:
                self._add(key, Reading.NOT_MAPPED, notes.get(key) or self._without_field(key))
        return ReadBundle(self.fields, tuple(self.lines.values()))

    def _add(self, key: str, reading: Reading, note: str) -> None:
        self.lines[key] = Line(key, self.entries.text(key), reading, note)

    def _set(self, key: str, field: str, value: Any) -> None:
        self.fields[field] = value
        self._add(key, Reading.MAPPED, field)

    def _value(self, key: str) -> Any:
        """The value of an entry, with a line that says why where it has none. Raises KeyError for an entry without one."""
        try:
            return self.entries.value(key)
        except Unresolved as reason:
            self._add(key, Reading.NOT_MAPPED, str(reason))
            raise KeyError(key) from None

    def _without_field(self, key: str) -> str:
        try:
            self.entries.value(key)
        except Unresolved as reason:
            return str(reason)
        return "there is no field for it"

    def _take(self, key: str, field: str, change: Change) -> None:
        try:
            value = self._value(key)
            self._set(key, field, change(value))
        except KeyError:
            return
        except (TypeError, ValueError) as error:
            self._add(key, Reading.NOT_MAPPED, f"can't be {field}: {error}")

    def _compare(self, key: str, same: Sequence[object]) -> None:
        try:
            value = self._value(key)
        except KeyError:
            return
        if value in same:
            self._add(key, Reading.SAME, "in every experiment")
        else:
            self._add(key, Reading.NOT_MAPPED, f"every experiment has {same[0]}")

    def _metadata(self, metadata: Mapping[str, Any]) -> None:
        try:
            image = metadata["network_data_format"]["inputs"]["image"]
            channels, modality = image["num_channels"], image["modality"]
        except (KeyError, TypeError):
            raise ConfigurationError(
                "expected the image of the network in metadata.json (network_data_format, inputs, image) with num_channels and modality"
            ) from None
        if (channels, modality) != (1, "CT"):
            raise ConfigurationError(f"expected a bundle for 1 channel of CT, got {channels!r} of {modality!r}")

    def _learning_rate(self) -> None:
        if "optimizer#lr" not in self.lines and "learning_rate" in self.entries:
            self._take("learning_rate", "optimiser.lr", float)
        elif "learning_rate" in self.entries:
            self._add("learning_rate", Reading.MAPPED, "optimiser.lr")
        if (
            self.lines.get("optimizer#_target_", None) is not None
            and self.lines["optimizer#_target_"].reading is Reading.SAME
        ):
            if "optimizer#weight_decay" in self.entries:
                self._take("optimizer#weight_decay", "optimiser.weight_decay", float)
            else:
                self.fields["optimiser.weight_decay"] = TORCH_DECAY
        try:
            active = self._value("lr_schedule#activate")
        except KeyError:
            return
        rate = self.fields.get("optimiser.lr")
        if not active and rate is not None:
            self.fields["optimiser.min_lr"] = rate
            self._add(
                "lr_schedule#activate", Reading.MAPPED, "optimiser.min_lr, equal to optimiser.lr: a constant rate"
            )
        else:
            self.fields["optimiser.min_lr"] = 0.0
            self._add("lr_schedule#activate", Reading.MAPPED, "optimiser.min_lr of 0: a cosine, without its warm-up")

    def _is_same(self, key: str) -> bool:
        return key in self.lines and self.lines[key].reading is Reading.SAME

    def _network(self) -> None:
        key = "network_def" if "network_def#_target_" not in self.entries else "network_def#_target_"
        if key not in self.entries:
            return
        if RELEASED.fullmatch(str(self.entries.written(key)).replace(" ", "")):
            self._set(key, "network.kind", "vista3d132")
        else:
            self._add(
                key, Reading.NOT_MAPPED, "the networks here are vista3d132 and small ones like it, see network.kind"
            )
        if "network" in self.entries:
            self._add("network", Reading.SAME, "the network on its device")

    def _labels(self) -> None:
        try:
            mappings = self._value("label_mappings")
        except KeyError:
            return
        pairs = mappings.get("default") if isinstance(mappings, dict) else None
        if not (isinstance(pairs, list) and pairs and all(_is_pair(pair) for pair in pairs)):
            self._add("label_mappings", Reading.NOT_MAPPED, "expected pairs of numbers under default")
            return
        self.fields["labels.mode"], self.fields["labels.mapping"] = "mapping", pairs
        others = sorted(set(mappings) - {"default"})
        more = f"; not those of {', '.join(others)}, of which there is one mapping here" if others else ""
        self._add("label_mappings", Reading.MAPPED, f"labels.mapping{more}")

    def _seed(self) -> None:
        try:
            found = [SET_DETERMINISM.fullmatch(str(text)) for text in self.entries.content["initialize"]]
        except (KeyError, TypeError):
            return
        seeds = [int(one[1]) for one in found if one]
        if seeds:
            self.fields["seed"] = seeds[-1]
        others = len(found) - len(seeds)
        note = "code of the bundle, which is not executed"
        self._add(
            "initialize", Reading.MAPPED if seeds and not others else Reading.NOT_MAPPED,
            "seed" if seeds and not others else f"{'seed is; the rest is ' if seeds else ''}{note}",
        )  # fmt: skip

    def _spacing(self) -> None:
        try:
            spacing = [float(step) for step in self._value("resample_to_spacing")]
        except KeyError:
            return
        except (TypeError, ValueError):
            self._add("resample_to_spacing", Reading.NOT_MAPPED, "expected three numbers")
            return
        same = spacing == self.spacing_mm
        note = "spacing_mm of conf/lung_ct/_preparation.yaml"
        self._add(
            "resample_to_spacing",
            Reading.SAME if same else Reading.NOT_MAPPED,
            note if same else f"set {note}, now {self.spacing_mm}",
        )

    def _transforms(self) -> None:
        for number, one in self._listed("train#deterministic_transforms"):
            self._prepares(f"train#deterministic_transforms#{number}", one)
        found = False
        for number, one in self._listed("train#random_transforms"):
            found = True
            self._augments(f"train#random_transforms#{number}", one)
        if found:  # what the bundle does not do
            for field, _ in AUGMENTATION.values():
                self.fields.setdefault(f"augment.{field}.p", 0.0)

    def _listed(self, key: str) -> list[tuple[int, Mapping[str, Any]]]:
        if key not in self.entries:
            return []
        listed = self.entries.written(key)
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            self._add(key, Reading.NOT_MAPPED, "expected a list of components")
            return []
        return list(enumerate(listed))

    def _prepares(self, key: str, one: Mapping[str, Any]) -> None:
        name = str(one.get("_target_")).rpartition(".")[2]
        expected = PREPARATION.get(name)
        if expected is None:
            self._add(key, Reading.NOT_MAPPED, "preparation has no such transform")
            return
        other = [argument for argument, value in expected.items() if one.get(argument) != value]
        if other:
            self._add(
                key, Reading.NOT_MAPPED, f"preparation has {', '.join(f'{name} {expected[name]}' for name in other)}"
            )
        else:
            self._add(key, Reading.SAME, "in preparation")

    def _augments(self, key: str, one: Mapping[str, Any]) -> None:
        name = str(one.get("_target_")).rpartition(".")[2]
        if name in SAMPLING:
            self._add(key, Reading.SAME, "in every training")
            return
        if name not in AUGMENTATION:
            self._add(key, Reading.NOT_MAPPED, "there is no such random transform")
            return
        field, arguments = AUGMENTATION[name]
        taken: dict[str, float] = {}
        for argument, parts in arguments.items():
            try:
                value = self.entries.value(f"{key}#{argument}")
                ends = value if isinstance(value, list) else [value]
                taken |= {f"augment.{field}.{part}": float(end) for part, end in zip(parts.split(), ends, strict=True)}
            except KeyError:
                continue
            except (Unresolved, TypeError, ValueError) as error:
                self._add(key, Reading.NOT_MAPPED, f"{argument} can't be read: {error}")
                return
        self.fields |= taken
        self._add(key, Reading.MAPPED, f"augment.{field}")


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(number) is int and number >= 0 for number in pair)
