"""Counts of a server for Prometheus; no label has a value that a client chose."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from med_assets.storage.exposition import Family, Kind, Sample, text

BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the histogram of seconds."""

PREFIX = "med_assets_serve_"


class Metrics:
    """What a server counts from its start on; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[str] = Counter()
        self._cases: Counter[str] = Counter()
        self._buckets = [0] * len(BUCKETS_S)
        self._seconds, self._n, self._bytes, self._loads, self._failed_loads = 0.0, 0, 0, 0, 0

    def answered(self, status: int) -> None:
        """Count an answer to a prediction by its HTTP status."""
        with self._lock:
            self._answers[str(status)] += 1

    def received(self, n_bytes: int) -> None:
        """Count bytes of an upload."""
        with self._lock:
            self._bytes += n_bytes

    def predicted(self, seconds: float, cases: Sequence[str]) -> None:
        """Count a prediction: its seconds without those of waiting, and the status of each case."""
        with self._lock:
            self._seconds, self._n = self._seconds + seconds, self._n + 1
            self._buckets = [n + (seconds <= top) for n, top in zip(self._buckets, BUCKETS_S, strict=True)]
            self._cases.update(cases)

    def loaded(self, *, failed: bool) -> None:
        """Count a model that was loaded, or that could not be."""
        with self._lock:
            self._failed_loads += failed
            self._loads += not failed

    def mean_s(self) -> float | None:
        """Mean seconds of a prediction; None before the first."""
        with self._lock:
            return self._seconds / self._n if self._n else None

    def text(self, gauges: Sequence[Family]) -> str:
        """All counts, and these values of now."""
        with self._lock:
            return text([*self._families(), *gauges])

    def _families(self) -> Iterator[Family]:
        counters: Sequence[tuple[str, str, Mapping[str, float], str]] = (
            ("answers_total", "answers to predictions by HTTP status", self._answers, "status"),
            ("cases_total", "cases in uploads by what came of them", self._cases, "status"),
            ("upload_bytes_total", "bytes of uploads", {"": self._bytes}, ""),
            ("model_loads_total", "models that were loaded", {"": self._loads}, ""),
            ("model_load_failures_total", "models that could not be loaded", {"": self._failed_loads}, ""),
        )
        for name, meaning, values, label in counters:
            samples = tuple(Sample(value, {label: key} if label else {}) for key, value in sorted(values.items()))
            yield Family(f"{PREFIX}{name}", meaning, samples, Kind.COUNTER)
        buckets = [(f"{top:g}", n) for top, n in zip(BUCKETS_S, self._buckets, strict=True)]
        yield Family(
            f"{PREFIX}prediction_seconds",
            "seconds from reading an upload to its result, without those of waiting",
            (
                *(Sample(n, {"le": top}, "_bucket") for top, n in [*buckets, ("+Inf", self._n)]),
                Sample(self._seconds, suffix="_sum"),
                Sample(self._n, suffix="_count"),
            ),
            Kind.HISTOGRAM,
        )
