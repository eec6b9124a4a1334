"""TorchMetrics, which Lightning imports, without the libraries that it imports for metrics which nobody here asks for.

`import torchmetrics` imports Transformers for the scores of texts, and all of `scipy.signal` to add a name that SciPy dropped: 1 s of CPU
in each process that trains, of 5.4 s for its imports. `import_lazily` changes when that happens: Transformers come with the first score of texts that is
computed, and `scipy.signal`, without that name, with whoever imports it.
"""

import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

from med_assets.storage.altered import load_by
from med_assets.storage.lean_monai import Late

LATE = {"torchmetrics": "scipy.signal", "torchmetrics.functional.text.bert": "transformers"}
"""By module of TorchMetrics the library that it imports at its top, uses by attributes and calls, and that this process may never need."""


class _Loader(SourceFileLoader):
    """Loads a module of `LATE` with a stand-in for its library, unless that is there already."""

    def exec_module(self, module: ModuleType) -> None:
        library = LATE[module.__name__]
        if library in sys.modules:
            super().exec_module(module)
            return
        stand_in = ModuleType(library)
        stand_in.__getattr__ = lambda name: Late(library, name)  # type: ignore[method-assign]  # PEP 562
        sys.modules[library] = stand_in
        try:
            super().exec_module(module)
        finally:
            if sys.modules.get(library) is stand_in:
                del sys.modules[library]


def import_lazily() -> None:
    """Let this process import TorchMetrics without those libraries, unless it has imported it already."""
    load_by(_Loader, LATE)
