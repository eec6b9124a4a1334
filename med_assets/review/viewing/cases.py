"""A case of the home as the viewer needs it: its arrays, the models that predicted it, and its views, of which the last few are kept open."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from med_assets import program
from med_assets.capabilities import Viewable
from med_assets.catalog import Catalog, usable
from med_assets.errors import ArtifactMissing, ConfigurationError, MedAssetsError
from med_assets.evaluation.predicting import prediction_key
from med_assets.records import Checkpoint, PreparedCase
from med_assets.review.viewing.contract import Layer, View
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.files import digest

FORMAT = 1
"""Raised when the bytes of a layer change for the same artifacts, so that no browser keeps the former ones."""

KEPT_OPEN = 4
"""Cases whose views stay open; what a layer computed is kept with them."""


log = logging.getLogger(__name__)


class UnknownCase(ConfigurationError):
    """No such program, case, model or layer, or none that can be displayed."""


@dataclass(frozen=True)
class Model:
    """A checkpoint that predicted a case: its experiment, and the key of the prediction."""

    experiment: str
    checkpoint: str
    prediction: str


@dataclass(frozen=True, eq=False)
class OpenCase:
    """A case with its views under one model, or without a prediction; `key` is of all that they are made of."""

    program: str
    case: PreparedCase
    model: Model | None
    key: str
    views: Sequence[View]

    def view_of(self, layer_name: str) -> tuple[View, Layer]:
        """A layer by its name, and its view. Raises UnknownCase."""
        for view in self.views:
            for layer in view.layers:
                if layer.name == layer_name:
                    return view, layer
        raise UnknownCase(f"expected a layer of case {self.case.case_id}, got {layer_name!r}")


def viewable_program(program_name: str) -> Viewable:
    """A program that shows its cases. Raises UnknownCase."""
    try:
        found = program.get(program_name)
    except ConfigurationError as error:
        raise UnknownCase(str(error)) from None
    if not isinstance(found, Viewable):
        raise UnknownCase(f"expected a program that shows its cases, got {program_name}")
    return found


def prepared_case(ws: Settings, program_name: str, case_id: str) -> PreparedCase:
    """The case of this id that was prepared last; one that the audit quarantined has arrays too. Raises UnknownCase."""
    viewable_program(program_name)
    try:
        names.CASE.check(case_id)
    except ConfigurationError as error:
        raise UnknownCase(str(error)) from None
    found = [row for row in Catalog(ws, program_name).prepared() if row.case_id == case_id and row.artifact]
    if not found:
        raise UnknownCase(f"expected a case of {program_name} with arrays to show, got {case_id!r}")
    return max(found, key=lambda row: row.batch)


def models_of(ws: Settings, program_name: str, case: PreparedCase) -> list[Model]:
    """The present checkpoints whose prediction of a case is in the store, the champion's first, then by experiment."""
    catalog = Catalog(ws, program_name)
    checkpoints = {row.experiment: row.checkpoint for row in catalog.rows(Checkpoint)}
    champion = catalog.champion()
    if champion is not None:
        checkpoints = {champion.experiment: champion.checkpoint} | {
            name: key for name, key in sorted(checkpoints.items()) if name != champion.experiment
        }
    found = []
    for experiment, checkpoint in checkpoints.items():
        key = prediction_key(ws, program_name, checkpoint, case.artifact)
        if ws.store.has(key):
            found.append(Model(experiment, checkpoint, key))
    return found


class Cases:
    """Opens cases; threads may share it."""

    def __init__(self, ws: Settings) -> None:
        self.ws = ws
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenCase] = OrderedDict()

    def open(self, program_name: str, case_id: str, experiment: str | None) -> OpenCase:
        """A case under the model of an experiment, of the first of `models_of` for None, or under no model for "none". Raises UnknownCase."""
        case = prepared_case(self.ws, program_name, case_id)
        model = self._model(program_name, case, experiment)
        key = digest(FORMAT, case.artifact, model.prediction if model else "")
        with self._lock:
            if (found := self._open.get(key)) is not None:
                self._open.move_to_end(key)
                return found
        opened = self._opened(program_name, case, model, key)
        with self._lock:
            opened = self._open.setdefault(key, opened)
            while len(self._open) > KEPT_OPEN:
                self._open.popitem(last=False)
        return opened

    def _model(self, program_name: str, case: PreparedCase, experiment: str | None) -> Model | None:
        if experiment == "none":
            return None
        found = models_of(self.ws, program_name, case)
        if experiment is None:
            return found[0] if found else None
        for model in found:
            if model.experiment == experiment:
                return model
        raise UnknownCase(
            f"expected an experiment whose prediction of case {case.case_id} is in the store, got {experiment!r}; "
            f"there are {', '.join(model.experiment for model in found) or 'none'}"
        )

    def _opened(self, program_name: str, case: PreparedCase, model: Model | None, key: str) -> OpenCase:
        try:
            prepared = self.ws.store.fetch(case.artifact)
            predicted: Path | None = self.ws.store.fetch(model.prediction) if model else None
        except ArtifactMissing as missing:
            raise UnknownCase(str(missing)) from None
        views = viewable_program(program_name).views(self.ws, prepared, predicted)
        return OpenCase(program_name, case, model, key, [_reading_once(view) for view in views])


def warm_up(ws: Settings) -> None:
    """Open one case of each program, so that the first that a reader opens waits for no module to be loaded."""
    cases = Cases(ws)
    for name in program.registered():
        for case in usable(Catalog(ws, name).prepared())[-1:]:
            try:
                cases.open(name, case.case_id, None)
            except (MedAssetsError, OSError) as error:  # who opens the case gets the message
                log.info("%s: case %s can't be displayed: %s", name, case.case_id, type(error).__name__)


def _reading_once(view: View) -> View:
    return replace(view, layers=tuple(replace(layer, read=_Once(layer.read)) for layer in view.layers))


class _Once:
    """Calls a function once, however many threads ask at a time."""

    def __init__(self, read: Callable[[], np.ndarray]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._array: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        with self._lock:
            if self._array is None:
                self._array = self._read()
            return self._array
