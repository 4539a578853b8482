"""When a scan is worth it: compiling once and calling so often, rolled against unrolled."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from implementations.results import summary
from implementations.results.records import FORMS, Measured

CALLS = (1, 100, 10_000)


class Worth(NamedTuple):
    """From `since` on, at every deeper N at which both forms were measured, the rolled form costs less."""

    depths: tuple[int, ...]  # at which both were measured, in order
    since: int | None  # None: not even at the deepest

    def __str__(self) -> str:
        if self.since is None:
            return "never"
        return "at every N" if self.since == self.depths[0] else f"from N = {self.since}"


def costs(measured: Measured, form: str, program: str, calls: int) -> dict[int, float]:
    """N -> seconds: the median compile time, and so many calls at the median run time."""
    compiled, ran = (summary.series(measured, key, form, program) for key in ("compile_seconds", "run_seconds"))
    return {n: median(compiled[n]) + calls * median(ran[n]) for n in compiled if n >= 1 and n in ran}


def worth(measured: Measured, program: str, calls: int) -> Worth | None:
    """None where the two forms were not measured at two N together."""
    rolled, unrolled = (costs(measured, form, program, calls) for form in FORMS)
    return crossover(rolled, unrolled)


def crossover(rolled: Mapping[int, float], unrolled: Mapping[int, float]) -> Worth | None:
    depths = sorted(rolled.keys() & unrolled.keys())
    since = None
    for n in reversed(depths):
        if rolled[n] >= unrolled[n]:
            break
        since = n
    return Worth(tuple(depths), since) if len(depths) > 1 else None
