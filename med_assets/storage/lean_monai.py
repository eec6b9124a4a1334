"""MONAI, of which a process imports what it uses.

`import monai` executes every module of MONAI, most of them twice, and imports each library that one of them can use and that is
installed, such as Transformers, OpenCV and scikit-learn: 5.5 s of CPU in each process that trains, predicts or prepares, beside torch.
`import_lazily` changes when that happens, not what there is: a package of MONAI is imported with the first name of it that is used, and
so are those libraries. That takes 1 s.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from med_assets.storage.altered import load_by

LATE = (
    "transformers", "cv2", "sklearn", "huggingface_hub", "tifffile", "pandas", "matplotlib", "requests", "mlflow",
    "skimage", "scipy.signal",
)  # fmt: skip
"""What few functions of MONAI use, each by its attributes, by calls, or in `isinstance`."""

FIRST = "monai.apps"
"""Package that MONAI imports first, and with it data and transforms, which import one another and can be imported in that order alone."""


class Late:
    """A module, or an attribute of one, that is imported when it is used."""

    def __init__(self, module: str, name: str = "") -> None:
        self._module, self._name = module, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._imported(), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._imported()(*arguments, **options)

    def __instancecheck__(self, value: object) -> bool:
        return self._module in sys.modules and isinstance(value, self._imported())

    def _imported(self) -> Any:
        module = import_module(self._module)
        return getattr(module, self._name) if self._name else module


def _optional_import(
    original: Callable[..., Any],
    module: str,
    version: str = "",
    version_checker: Callable[..., bool] | None = None,
    name: str = "",
    **options: Any,
) -> Any:
    """What MONAI's `optional_import` returns, with a module of `LATE` not yet imported."""
    library, wanted = module.partition(".")[0], {"version_checker": version_checker} if version_checker else {}
    is_late = not options and any(f"{module}.".startswith(f"{late}.") for late in LATE) and find_spec(library)
    if is_late and (not version or (version_checker and version_checker(import_module(library), version))):
        return Late(module, name), True
    return original(module, version, name=name, **wanted, **options)


def _load_submodules(original: Callable[..., Any], package: ModuleType, *arguments: Any, **options: Any) -> Any:
    """What MONAI's `load_submodules` does, but for MONAI itself, which loads all of its modules while it is imported."""
    if getattr(package.__spec__, "_initializing", False):
        return [import_module(FIRST)], []
    return original(package, *arguments, **options)


def _package(monai: ModuleType, name: str) -> ModuleType:
    """Import a package of MONAI that is asked for as an attribute."""
    if name.startswith("_") or find_spec(f"monai.{name}") is None:
        raise AttributeError(f"module 'monai' has no attribute {name!r}", name=name, obj=monai)
    return import_module(f"monai.{name}")


class _Loader(SourceFileLoader):
    """Loads `monai.utils.module`, with whose functions MONAI imports its own modules and other libraries."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for function in (_optional_import, _load_submodules):
            name = function.__name__.removeprefix("_")
            setattr(module, name, partial(function, getattr(module, name)))
        monai = sys.modules["monai"]
        monai.__getattr__ = partial(_package, monai)  # type: ignore[method-assign]  # PEP 562


def import_lazily() -> None:
    """Let this process import MONAI as it uses it, unless it has imported it already."""
    load_by(_Loader, ("monai.utils.module",))
