"""TorchMetrics is imported without Transformers and SciPy's signals, and nothing of it is missing."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from med_assets.storage import lean_torchmetrics
from tests import fresh
from tests.conftest import REPOSITORY

OF_A_TRAINING = """
import json, sys
assert "lightning" in sys.modules and "torchmetrics" in sys.modules
loaded = [name for name in sys.argv[1:] if name in sys.modules]
from torchmetrics.functional.text import bert, bert_score
import scipy.signal, transformers
same = bert.AutoTokenizer.from_pretrained == transformers.AutoTokenizer.from_pretrained
print(json.dumps([loaded, callable(bert_score), same, scipy.signal.windows.hann(3).tolist(), transformers.__spec__.name]))
"""


def test_a_process_that_trains_loads_neither_and_gets_both_when_it_asks() -> None:
    done = fresh.run(REPOSITORY, OF_A_TRAINING, *sorted(lean_torchmetrics.LATE.values()))
    assert done.returncode == 0, done.stderr
    loaded, scores_texts, same, window, name = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    assert scores_texts
    assert same
    assert window == [0, 1, 0]
    assert name == "transformers"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_library_is_loaded_by_its_first_use_unless_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    (tmp_path / "late_library.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "late_metric.py").write_text(
        "import late_library\nfrom late_library import double\n\ndef use():\n    return late_library.double(2) + double(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(lean_torchmetrics.LATE, "late_metric", "late_library")
    for name in ("late_metric", "late_library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if is_there:
        importlib.import_module("late_library")
    metric = importlib.import_module("late_metric")
    assert ("late_library" in sys.modules) is is_there
    assert metric.use() == 10
    library = importlib.import_module("late_library")
    assert (metric.late_library is library) is is_there
    assert (metric.double is library.double) is is_there
    for name in ("late_metric", "late_library"):
        monkeypatch.delitem(sys.modules, name)
