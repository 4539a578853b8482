"""What the results say: series against N, medians and ratios, what was counted and what was trained.

Pure functions of the records. Tables, figures and page take every number from here, so no two of them can disagree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np

from implementations.results import laws
from implementations.results.laws import Counted
from implementations.results.records import FORMS, LIMIT, Checkpoint, Comparison, Measured, Results
from implementations.wording import Spread
from reference.error_bound import allowed_so_far, worst_so_far
from reference.layers import Array


def series(measured: Measured, key: str, form: str, program: str) -> dict[int, Any]:
    """N -> value of `key` of the dense stack, in order of N; what was not measured is not there."""
    if not key.endswith("_seconds"):
        return dict(laws.program(measured.sizes, form, program).values(key))
    timed = [time for time in measured.times if time.program == program and form in getattr(time, key)]
    return {time.N: getattr(time, key)[form] for time in sorted(timed, key=lambda time: time.N)}


def alternatives(measured: Measured) -> list[str]:
    """The forms other than the rolled stack and its unrolled twin, in the order in which they were measured."""
    found = [*(size.form for size in measured.sizes), *(form for time in measured.times for form in time.run_seconds)]
    return [form for form in dict.fromkeys(found) if form not in (*FORMS, LIMIT)]


def reports_no_memory(measured: Measured) -> bool:
    return bool(measured.sizes) and all(size.temp_bytes is None for size in measured.sizes)


def deep(values: Mapping[int, Any]) -> dict[int, Any]:
    """Those at N >= 2. Below, a compiler drops the loop: another program, which no law is about."""
    return {n: value for n, value in values.items() if n >= 2}


def growth(counts: Mapping[int, float]) -> float | None:
    """What one layer adds, from the smallest to the largest N >= 2."""
    counts = deep(counts)
    if len(counts) < 2:
        return None
    low, high = min(counts), max(counts)
    return float(counts[high] - counts[low]) / (high - low)


class Flat(NamedTuple):
    first: int  # the smallest N >= 2
    last: int
    low: int  # the smallest value, which is the largest where the size does not depend on N
    high: int


def flat(measured: Measured, key: str, program: str) -> Flat | None:
    """The range of a size of the rolled form over N; None with fewer than two N."""
    found = deep(series(measured, key, "rolled", program))
    return Flat(min(found), max(found), min(found.values()), max(found.values())) if len(found) > 1 else None


class Growth(NamedTuple):
    low: int  # the smallest N >= 2
    high: int
    ratio: Spread  # time at `high` / time at `low`


def compile_growth(measured: Measured, program: str) -> Growth | None:
    """Of the rolled form, in medians."""
    found = deep(series(measured, "compile_seconds", "rolled", program))
    if len(found) < 2:
        return None
    low, high = min(found), max(found)
    return Growth(low, high, spread([median(found[high]) / median(found[low])]))


def linear(measured: Measured) -> Growth | None:
    """The run time of the rolled gradient at the largest N over that at the smallest: high / low where it is linear."""
    found = {time.N: time.run_seconds["rolled"] for time in measured.linear}
    low, high = min(found, default=0), max(found, default=0)
    return Growth(low, high, ratio(found[high], found[low])) if low < high else None


class Compared(NamedTuple):
    n: int
    ratio: Spread


def compared(measured: Measured, key: str) -> Compared | None:
    """The forward program, rolled against unrolled, at the largest N at which both were timed."""
    return against(measured, key, "rolled", "unrolled", "forward")


def against(measured: Measured, key: str, form: str, other: str, program: str) -> Compared | None:
    """The time of a form over that of another, at the largest N at which both were timed."""
    seconds, others = (series(measured, key, each, program) for each in (form, other))
    n = max((n for n in seconds if n in others), default=None)
    return None if n is None else Compared(n, ratio(seconds[n], others[n]))


def programs(measured: Measured, layer: str = "") -> list[Counted]:
    """The programs of the general stack, of `layer` or of all, in the order in which they were measured."""
    return laws.programs(size for size in measured.programs if size.N >= 2 and layer in ("", size.layer))


def gradients(measured: Measured, layer: str) -> list[Counted]:
    return [program for program in programs(measured, layer) if program.of.program == "gradient"]


def memory_a_layer(program: Counted) -> float | None:
    """Bytes that one more layer adds, between depths of one remainder, so that the program is the same."""
    found = program.counts("temp_bytes")
    return growth({n: size for n, size in found.items() if n % program.k == max(found) % program.k})


def main_layer(results: Results, remat: bool = False) -> str:
    """The layer with the most programs, of those with a choice of remat if so asked; of equals the last."""
    counted = [program.of for measured in results.ran for program in programs(measured)]
    numbers = Counter(of.layer for of in counted if of.remat or not remat)
    return max(reversed(numbers), key=lambda layer: numbers[layer], default="")


def checkpoint(measured: Measured) -> Checkpoint | None:
    """What was measured on the checkpoint; nothing where it was not."""
    return measured.checkpoint if measured.checkpoint and measured.checkpoint.status == "ok" else None


class Losses(NamedTuple):
    """A training in float32 beside NumPy's: for each step, what is not finite as NaN."""

    losses: Array
    exact: Array  # NumPy's losses in float64
    off: Array  # the largest relative deviation so far
    numpy_off: Array  # that of NumPy in float32
    allowed: Array
    norms_off: float  # the largest relative deviation of the norm of a layer's weights, at the end

    @property
    def broken(self) -> int | None:
        """The first step, from 1, at which more than allowed is observed."""
        wrong = np.flatnonzero(~(self.off <= self.allowed))  # so written that NaN is wrong
        return int(wrong[0]) + 1 if wrong.size else None


def trained(results: Results, measured: Measured) -> Losses | None:
    own, right = measured.training, results.training
    if not own or own.status != "ok" or not right:
        return None
    losses, norms = (np.array(values, float) for values in (own.losses, own.weight_norms))  # None becomes NaN
    exact, yardstick, exact_norms = (
        np.array(values, float) for values in (right.float64.losses, right.float32.losses, right.float64.weight_norms)
    )
    return Losses(
        losses,
        exact,
        worst_so_far(losses, exact),
        worst_so_far(yardstick, exact),
        allowed_so_far(exact, yardstick, "float32"),
        float(worst_so_far(norms, exact_norms)[-1]),
    )


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) < 2:
        return Spread(samples[0], samples[0], samples[0])
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Repetition by repetition where they were interleaved, so that what slows both down cancels."""
    if len(numerator) == len(denominator):
        return spread([a / b for a, b in zip(numerator, denominator, strict=True)])
    middle = median(denominator)
    return spread([a / middle for a in numerator])


def worst(numerics: Iterable[Comparison]) -> Comparison | None:
    """The record nearest to (or furthest beyond) what is allowed, among those with a tolerance."""

    def excess(record: Comparison) -> float:
        return math.inf if record.ratio is None else record.ratio / record.allowed

    return max((record for record in numerics if not record.exact), key=excess, default=None)
