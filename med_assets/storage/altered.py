"""Modules of libraries that are altered while they are imported: a loader of their own takes them."""

import sys
from collections.abc import Collection, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType


class _Finder:
    """Finds some modules alone, and gives them a loader."""

    def __init__(self, names: Collection[str], loader: type[SourceFileLoader]) -> None:
        self.names, self.loader = names, loader

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = self.loader(spec.loader.name, spec.loader.path)
        return spec


def load_by(loader: type[SourceFileLoader], names: Collection[str]) -> None:
    """Let this process load modules of these names by `loader`; asked again, nothing changes. Those that it has imported stay as they are."""
    if not any(isinstance(one, _Finder) and one.loader is loader for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder(names, loader))
