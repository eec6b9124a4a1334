"""The champion, loaded once and loaded anew when it changes."""

import logging
import shutil
import tempfile
import time
from pathlib import Path

from med_assets.catalog import Catalog
from med_assets.errors import MedAssetsError
from med_assets.evaluation.predict_folder import LoadedModel, load_model
from med_assets.records import Champion
from med_assets.serving.metrics import Metrics
from med_assets.settings import Workspace
from med_assets.storage.scratch import scratch

RETRY_S = 30.0
"""Seconds after which a champion that could not be loaded is tried again, such as one whose store was away."""

LOADING = "the model is being loaded"

log = logging.getLogger(__name__)


class NotReady(MedAssetsError):
    """There is no champion, or it can't be loaded: nothing is predicted by another model in its stead."""


class ChampionModel:
    """The champion of a program. One thread asks for it; others may read `loaded` and `problem`."""

    def __init__(self, ws: Workspace, program_name: str, metrics: Metrics) -> None:
        self.ws, self.program, self.metrics = ws, program_name, metrics
        self.loaded: LoadedModel | None = None
        self.problem = LOADING
        self._cache = Path(tempfile.mkdtemp(dir=scratch(ws.home), prefix="model-"))
        self._stamp: tuple[int, ...] | None = None
        self._tried_at: float | None = None

    def current(self) -> LoadedModel:
        """The champion of now; loaded first where it is another than before. Raises NotReady."""
        catalog = Catalog(self.ws, self.program)
        stamp = catalog.stamp(Champion)
        again = self.loaded is None and (self._tried_at is None or time.monotonic() - self._tried_at > RETRY_S)
        if stamp != self._stamp or again:
            self._refresh(catalog.champion())
            self._stamp = stamp
        if self.loaded is None:
            raise NotReady(self.problem)
        return self.loaded

    def forget_cases(self) -> None:
        """Remove what the model kept of the cases that it predicted."""
        for path in self._cache.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _refresh(self, champion: Champion | None) -> None:
        if champion is not None and self.loaded is not None and self.loaded.checkpoint == champion.checkpoint:
            return
        self.loaded, self.problem = None, LOADING  # first, so that memory need not hold two models
        self._tried_at = time.monotonic()
        if champion is None:
            self.problem = (
                f"{self.program} has no champion yet; it is served once there is one, see `med-assets promote`"
            )
            return
        try:
            self.loaded = load_model(self.ws, self.program, champion, self._cache)
        except Exception as error:  # whatever a damaged checkpoint raises; the text of a foreign error stays unknown
            reason = str(error) if isinstance(error, MedAssetsError) else type(error).__name__
            self.problem = f"expected the champion {champion.checkpoint} to load, got: {reason}"
            log.error("%s: %s", self.program, self.problem)
        else:
            self.problem = ""
            log.info("%s: loaded %s (%s)", self.program, champion.experiment, champion.checkpoint)
        self.metrics.loaded(failed=self.loaded is None)
