"""Runs expectations over a table of facts with Great Expectations, and says which cases failed which.

Great Expectations is imported when a suite runs, in an ephemeral context without telemetry and without files.
"""

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from med_assets.errors import ConfigurationError
from med_assets.storage.files import canonical_json
from med_assets.storage.memory import without_collecting

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["error", "warn"]

INDEX = "case_id"
"""Column that names the case of a row."""

PLACE = "place"
"""Where the number of an expectation in its suite is kept in Great Expectations' own."""


@dataclass(frozen=True)
class Expectation:
    """One sentence about one column: `kind` is a Great Expectations class, `meaning` says it to a person.

    `kwargs` are the arguments of the class besides the column, e.g. min_value. severity "error" fails the suite.
    An undefined fact (None, NaN) satisfies every kind but ExpectColumnValuesToNotBeNull, as in Great Expectations.
    """

    column: str
    kind: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = "error"
    meaning: str = ""

    @property
    def name(self) -> str:
        """Short stable name with the arguments, unique where the expectation is."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(self.kwargs.items()))
        return f"{self.column}: {self.kind}({arguments})"


def between(
    column: str, low: float | None, high: float | None, meaning: str, severity: Severity = "error"
) -> Expectation:
    """Return the expectation that a fact lies between two values, both included; None is no limit on that side."""
    limits = {name: value for name, value in (("min_value", low), ("max_value", high)) if value is not None}
    return Expectation(column, "ExpectColumnValuesToBeBetween", limits, severity, meaning)


LOSSLESS = Expectation(
    "lossy", "ExpectColumnValuesToBeInSet", {"value_set": [False]}, "warn", "images compressed without loss"
)
"""What the facts that every program has are held against, beside the program's own expectations."""


@dataclass(frozen=True)
class Result:
    """Outcome of one expectation. `failing` are the cases that do not meet it, or all when it is about the column."""

    expectation: Expectation
    passed: bool
    observed: str
    n: int
    failing: tuple[str, ...]


@dataclass(frozen=True)
class AuditResult:
    """Outcome of a suite: `passed` is whether every expectation of severity "error" held."""

    passed: bool
    results: tuple[Result, ...]

    @property
    def failing(self) -> dict[str, tuple[str, ...]]:
        """Expectation name -> failing case ids, for those that failed."""
        return {result.expectation.name: result.failing for result in self.results if not result.passed}

    def failing_cases(self, severity: Severity = "error") -> tuple[str, ...]:
        """Sorted ids of the cases that fail at least one expectation of this severity."""
        failed = (r for r in self.results if not r.passed and r.expectation.severity == severity)
        return tuple(sorted({case for result in failed for case in result.failing}))

    def table(self) -> "pd.DataFrame":
        """One row per expectation: column, kind, severity, meaning, passed, observed, n, failing (comma separated)."""
        import pandas as pd

        columns = ["column", "kind", "severity", "meaning", "passed", "observed", "n", "failing"]
        rows = [
            (e.column, e.kind, e.severity, e.meaning, r.passed, r.observed, r.n, ", ".join(r.failing))
            for r in self.results
            for e in (r.expectation,)
        ]
        return pd.DataFrame(rows, columns=columns)


def import_ahead() -> None:
    """Begin to import Great Expectations in a thread, while this process waits for others: a suite needs it, and it takes seconds."""
    threading.Thread(target=_imported, name="imports Great Expectations", daemon=True).start()


def _imported() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    if "great_expectations" not in sys.modules:
        with without_collecting():
            import great_expectations as gx

            gc.freeze()  # its 200,000 objects stay, and each look for garbage among them would take a tenth of a second
    import great_expectations as gx

    return gx


def run_suite(facts: "pd.DataFrame", expectations: Sequence[Expectation]) -> AuditResult:
    """Check `facts` (one row per case, ids in column `case_id`) against each expectation.

    An empty table passes: there is no case to fail. Raises ConfigurationError for a missing or repeated case_id, and
    for an unknown kind, column, severity or argument.
    """
    _refuse_mistakes(facts, expectations)
    if facts.empty or not expectations:
        return AuditResult(True, tuple(Result(e, True, "", len(facts), ()) for e in expectations))
    outcomes = _validated(facts.reset_index(drop=True), expectations)
    results = tuple(
        _result(expectation, facts, outcome) for expectation, outcome in zip(expectations, outcomes, strict=True)
    )
    return AuditResult(all(r.passed or r.expectation.severity == "warn" for r in results), results)


def _refuse_mistakes(facts: "pd.DataFrame", expectations: Sequence[Expectation]) -> None:
    if INDEX not in facts.columns:
        raise ConfigurationError(f"expected facts with a column {INDEX!r}, got columns {sorted(facts.columns)}")
    if facts[INDEX].isna().any() or facts[INDEX].duplicated().any():
        raise ConfigurationError(f"expected one row per {INDEX}, got repeated or missing ids; pass one version each")
    for expectation in expectations:
        if expectation.column not in facts.columns:
            raise ConfigurationError(
                f"expected facts to have the column {expectation.column!r}, got {sorted(facts.columns)}; "
                "measure it in prepare, or take the expectation out"
            )
        if expectation.severity not in ("error", "warn"):
            raise ConfigurationError(f"expected severity error or warn, got {expectation.severity!r}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Great Expectations logs errors alone in the block."""
    # The second sets a level of its own, and reports each of its temporary folders.
    loggers = [logging.getLogger(name) for name in ("great_expectations", "great_expectations.data_context.types.base")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_one_table = threading.Lock()
"""Held while a table is in `_asset`, which has one at a time."""


@cache
def _asset() -> tuple[Any, Any]:
    """An ephemeral context with a data asset, which `_validated` gives its table; made once in a process, since it takes a third of the
    time of a suite. Analytics and the version check are off before the package is imported.
    """
    context = _imported().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context, context.data_sources.add_pandas("facts").add_dataframe_asset("facts")


def _validated(table: "pd.DataFrame", expectations: Sequence[Expectation]) -> list[Any]:
    """The outcome of each expectation, in their order; one validation of the whole suite shares what they measure.

    Of what is held against each value it is asked first only whether it holds: counts and lists of cases take two thirds of the time.
    """
    with _one_table, _quiet():
        _, asset = _asset()
        batch = asset.get_batch(asset.build_batch_request({"dataframe": table}))
        try:
            asked = dict(enumerate(expectations))
            of_values = {place: one for place, one in asked.items() if _holds_for_all_or_fails(_build(one, place))}
            outcomes = _outcomes(batch, of_values, {"result_format": "BOOLEAN_ONLY"}) if of_values else {}
            in_full = {
                place: one for place, one in asked.items() if place not in outcomes or not outcomes[place].success
            }
            if in_full:
                listing = {"result_format": "COMPLETE", "unexpected_index_column_names": [INDEX]}
                outcomes |= _outcomes(batch, in_full, listing)
        finally:  # the table is not kept
            manager = batch.data.execution_engine.batch_manager
            manager.reset_batch_cache()
            manager.batch_data_cache.clear()
    return [outcomes[place] for place in range(len(expectations))]


def _holds_for_all_or_fails(expectation: Any) -> bool:
    """Whether it holds where no value fails it: then whether it holds says also how many do not meet it."""
    from great_expectations.expectations.expectation import ColumnMapExpectation

    return isinstance(expectation, ColumnMapExpectation) and expectation.mostly == 1


def _outcomes(batch: Any, asked: Mapping[int, Expectation], result_format: Mapping[str, Any]) -> dict[int, Any]:
    """The outcomes of a validation by the numbers of the expectations; those that raise come first in its results."""
    context, _ = _asset()
    name = canonical_json([[place, one.column, one.kind, dict(one.kwargs)] for place, one in asked.items()])
    built = [_build(one, place).configuration for place, one in asked.items()]
    validator = _planned_validator()(batch.data.execution_engine, data_context=context, batches=[batch])
    validator.plan = f"{name} {canonical_json(result_format)}"
    found = validator.graph_validate(configurations=built, runtime_configuration={"result_format": dict(result_format)})
    return {outcome.expectation_config.meta[PLACE]: outcome for outcome in found}


MAX_PLANS = 64
"""Plans of `_planned_validator` that are kept: the whole suite of each program, and the parts of it that fail now and then."""


@cache
def _planned_validator() -> Any:
    """The validator of Great Expectations, which finds out once for each suite what the expectations measure: two thirds of its time.

    What they measure depends on their arguments and on the form of the result, not on the table.
    """
    from great_expectations.validator.validator import Validator

    plans: dict[str, tuple[list[Any], list[Any]]] = {}

    class Planned(Validator):
        plan = ""
        """What is asked, and in which form."""

        def _generate_metric_dependency_subgraphs_for_each_expectation_configuration(
            self, *given: Any, **named: Any
        ) -> tuple[list[Any], list[Any], list[Any]]:
            if self.plan not in plans:
                graphs, refused, configurations = (
                    super()._generate_metric_dependency_subgraphs_for_each_expectation_configuration(*given, **named)
                )
                if refused:
                    return graphs, refused, configurations
                for configuration in configurations:  # else each validation makes its expectation anew
                    configuration.__dict__["to_domain_obj"] = cache(configuration.to_domain_obj)
                while len(plans) >= MAX_PLANS:
                    plans.pop(next(iter(plans)), None)
                plans[self.plan] = graphs, configurations
            graphs, configurations = plans[self.plan]
            return graphs, [], list(configurations)

    return Planned


def _result(expectation: Expectation, table: "pd.DataFrame", outcome: Any) -> Result:
    raised = [info["exception_message"] for info in _exceptions(outcome.exception_info)]
    if raised:
        raise ConfigurationError(f"{expectation.name} can't be evaluated on these facts: {raised[0]}")
    result = outcome.result
    rows = result.get("unexpected_index_list")
    failing = () if outcome.success else tuple(sorted(str(row[INDEX]) for row in rows or ()))
    if not outcome.success and rows is None:
        failing = tuple(sorted(table[INDEX].astype(str)))
    observed = result.get("observed_value")
    if observed is None:
        observed = f"{result.get('unexpected_count', 0)} of {len(table)} cases do not meet it"
    return Result(expectation, bool(outcome.success), str(observed), len(table), failing)


def _build(expectation: Expectation, place: int) -> Any:
    import great_expectations as gx

    kind = getattr(gx.expectations, expectation.kind, None)
    if kind is None:
        raise ConfigurationError(
            f"expected a Great Expectations class such as ExpectColumnValuesToBeBetween, got {expectation.kind!r}"
        )
    try:
        return _remembering(kind)(column=expectation.column, meta={PLACE: place}, **expectation.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{expectation.name} has arguments that its kind does not take: {error}") from error


@cache
def _remembering(kind: Any) -> Any:
    """A kind whose configuration, and what it measures, are made once for each expectation: Great Expectations asks it sixty times, half of its time."""
    from great_expectations.compatibility import pydantic

    def configuration(self: Any) -> Any:
        if self._made is None:
            self._made = kind.configuration.fget(self)
        return self._made

    def get_validation_dependencies(
        self: Any, execution_engine: Any = None, runtime_configuration: Any = None, **named: Any
    ) -> Any:
        asked = canonical_json(runtime_configuration)
        if asked not in self._measured:
            self._measured[asked] = kind.get_validation_dependencies(
                self, execution_engine, runtime_configuration, **named
            )
        return self._measured[asked]

    def set_attribute(self: Any, name: str, value: Any) -> None:
        kind.__setattr__(self, name, value)
        if name not in ("_made", "_measured"):
            self._made, self._measured = None, {}

    members = {
        "_made": pydantic.PrivateAttr(None),
        "_measured": pydantic.PrivateAttr(default_factory=dict),
        "configuration": property(configuration),
        "get_validation_dependencies": get_validation_dependencies,
        "__setattr__": set_attribute,
    }
    return type(kind)(f"{kind.__name__}Remembering", (kind,), {"__module__": __name__, **members})


def _exceptions(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The raised exceptions of a validation; Great Expectations nests them by metric or not."""
    entries = [info] if "raised_exception" in info else [entry for entry in info.values() if isinstance(entry, Mapping)]
    return [entry for entry in entries if entry.get("raised_exception")]
