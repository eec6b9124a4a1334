"""One sensor for all programs: what one of them fails in stops no other."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import dagster as dg

from med_assets.errors import MedAssetsError

T = TypeVar("T")


def for_each(context: dg.SensorEvaluationContext, programs: Iterable[str], work: Callable[[str], T]) -> list[T]:
    """Do some work for each program; a failure is logged with the program's name, and raised where no program is left."""
    found: list[T] = []
    failures: list[dg.Failure | MedAssetsError] = []
    for name in programs:
        try:
            found.append(work(name))
        except (dg.Failure, MedAssetsError) as error:
            context.log.error(f"{name}: {error.description if isinstance(error, dg.Failure) else error}")
            failures.append(error)
    if failures and not found:
        raise failures[0]
    return found


def by_program(messages: Mapping[str, str], n_programs: int) -> str:
    """The messages of all programs; the one program of a site needs no name."""
    if n_programs == 1:
        return "; ".join(messages.values())
    return "; ".join(f"{name}: {text}" for name, text in messages.items())
