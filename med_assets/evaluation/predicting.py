"""A checkpoint applied to prepared cases: each prediction is an artifact, made once and scored as often as scoring changes.

Its key covers what the model sees of a case and nothing that people said of it, so that a corrected label, a label that
arrives later and a new metric infer nothing.
"""

from collections.abc import Iterable, Mapping

from med_assets import program
from med_assets.catalog import Case
from med_assets.errors import DiskFull, RemoteFailed
from med_assets.records import DatasetCase, PreparedCase
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from med_assets.storage.memo import Memo
from med_assets.storage.versions import part_of

PreparedArrays = Case | DatasetCase | PreparedCase
"""A case whose prepared arrays are in the store, under the key `artifact`."""

_hashes: Memo[Mapping[str, str]] = Memo()
"""File hashes of prepared cases by home and key, of which sensors ask at each look."""


def prediction_key(ws: Workspace, program_name: str, checkpoint: str, prepared: str) -> str:
    """Key of one case's prediction: the checkpoint, what it sees of the prepared case, and the code that predicts."""
    chosen = program.get(program_name)
    hashes = _hashes.get((ws.home, prepared), lambda: ws.store.file_hashes(prepared))
    seen = {name: hashes.get(name) for name in chosen.inputs}
    return "prediction/" + digest(checkpoint, seen, chosen.code_versions["predict"])


@part_of("predict")
class Predicting:
    """A checkpoint that is loaded only when a case was not predicted yet."""

    def __init__(self, ws: Workspace, program_name: str, checkpoint: str) -> None:
        self.ws, self.program, self.checkpoint = ws, program_name, checkpoint
        self._predictor: program.CasePredictor | None = None

    def __call__(self, prepared: str) -> tuple[str, bool]:
        """Return the key of a case's prediction, and whether it was made now. Raises what the model does."""
        key = prediction_key(self.ws, self.program, self.checkpoint, prepared)
        if self.ws.store.has(key):
            return key, False
        if self._predictor is None:
            folder = self.ws.store.fetch(self.checkpoint)
            self._predictor = program.get(self.program).predictor(folder, self.ws.jobs)
        with self.ws.store.create(key) as folder:
            self._predictor.predict(self.ws.store.fetch(prepared), folder)
        return key, True


def predict_cases(
    ws: Workspace, program_name: str, checkpoint: str, cases: Iterable[PreparedArrays]
) -> tuple[dict[str, str], dict[str, int], dict[str, str]]:
    """Keys of predictions by case id, counts, and failures by case id."""
    predicting = Predicting(ws, program_name, checkpoint)
    keys: dict[str, str] = {}
    counts = {"new": 0, "reused": 0}
    failures: dict[str, str] = {}
    for case in cases:
        try:
            keys[case.case_id], fresh = predicting(case.artifact)
        except (DiskFull, RemoteFailed):  # no fault of the case
            raise
        except Exception as error:  # one bad case never stops a batch; it is reported
            failures[case.case_id] = f"{type(error).__name__}: {error}"
            continue
        counts["new" if fresh else "reused"] += 1
    return keys, counts, failures
