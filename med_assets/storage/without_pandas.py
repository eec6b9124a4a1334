"""To import this is to have no pandas in this process from here on.

Arrow imports pandas wherever it finds it, which takes longer than most queries (`storage.query`), whose process has no data frames.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class WithoutPandas(MetaPathFinder):
    """Finds no pandas, for whoever asks."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Nothing of any module. Raises ModuleNotFoundError for pandas."""
        if name == "pandas":
            raise ModuleNotFoundError(f"{name} is not imported here", name=name)


sys.meta_path.insert(0, WithoutPandas())
