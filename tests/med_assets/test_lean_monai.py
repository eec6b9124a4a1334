"""MONAI is imported as it is used: nothing of it is missing, and what most processes do not use is not loaded."""

import importlib
import json
import operator
import subprocess
import sys
from fractions import Fraction

import pytest

from med_assets.storage.lean_monai import LATE, Late

TRANSFORMS_ALONE = """
import json, sys
import med_assets
from monai.transforms import Compose, Spacingd
import monai
loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
before = "monai.engines" in sys.modules
packages = [name for name in monai.__all__ if getattr(monai, name).__name__ != f"monai.{name}"]
from monai.bundle.config_parser import ConfigParser
network = ConfigParser({"it": {"_target_": "monai.networks.nets.SegResNet", "init_filters": 8}}).get_parsed_content("it")
print(json.dumps([loaded, before, packages, type(network).__module__]))
"""


def test_a_process_that_transforms_images_loads_no_library_that_it_does_not_use() -> None:
    libraries = sorted(set(LATE) - {"matplotlib", "requests", "skimage"})  # MONAI imports them as any module does
    named = json.dumps([*libraries, "torch._dynamo", "torch.utils.tensorboard"])
    asked = subprocess.run([sys.executable, "-c", TRANSFORMS_ALONE, named], capture_output=True, text=True, check=True)
    loaded, before, packages, network = json.loads(asked.stdout.splitlines()[-1])
    assert loaded == []
    assert not before, "a package of MONAI is imported when it is asked for"
    assert packages == []
    assert network == "monai.networks.nets.segresnet"


def test_what_monai_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        operator.attrgetter("nothing")(importlib.import_module("monai"))


def test_a_late_module_or_class_is_what_it_stands_for() -> None:
    assert Late("json").loads("[1]") == [1]
    late = Late("fractions", "Fraction")
    assert late(1, 2) == Fraction(1, 2)
    assert late.from_float(0.5) == Fraction(1, 2)
    assert isinstance(Fraction(1, 2), late)  # type: ignore[arg-type] # as MONAI asks it
    assert not isinstance(0.5, late)  # type: ignore[arg-type] # as MONAI asks it
    with pytest.raises(ModuleNotFoundError):
        operator.attrgetter("name")(Late("no_such_module_anywhere"))
