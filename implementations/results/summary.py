"""What the results say: series against N, medians and ratios, what was counted and what was trained.

Pure functions of the plain data that `compare` merges and `results.json` holds (its fields: `compare.merge`). Tables,
figures and page take every number from here, so no two of them can disagree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np

from implementations.wording import Spread
from reference.error_bound import allowed_so_far, worst_so_far
from reference.layers import Array

Results = Mapping[str, Any]
Measured = Mapping[str, Any]  # one implementation's part of the results
FORMS = ("rolled", "unrolled")
PROGRAMS = {False: "forward", True: "gradient"}


class Setting(NamedTuple):
    d: int
    dtype: str

    def __str__(self) -> str:
        return f"d = {self.d}, {self.dtype}"


def implementations(results: Results) -> list[Measured]:
    return list(results.get("implementations", ()))


def ran(results: Results) -> list[Measured]:
    return [measured for measured in implementations(results) if measured.get("status") == "ok"]


def settings(results: Results, block: str) -> list[Setting]:
    """The (d, dtype) that `block` ("sizes" or "times") was measured at, the most frequent first."""
    counted = Counter(
        Setting(record["d"], record["dtype"]) for measured in ran(results) for record in measured.get(block, ())
    )
    return [setting for setting, _ in counted.most_common()]


def series(measured: Measured, key: str, form: str, gradient: bool, setting: Setting | None) -> dict[int, Any]:
    """N -> value of `key`, in order of N; what was not measured is not there."""
    block = "times" if key.endswith("_seconds") else "sizes"
    found = {
        record["N"]: record[key]
        for record in measured.get(block, ())
        if record["form"] == form
        and bool(record.get("gradient")) == gradient
        and (record["d"], record["dtype"]) == setting
        and record.get(key) not in (None, [])
    }
    return dict(sorted(found.items()))


def alternatives(measured: Measured) -> list[str]:
    """The forms other than the rolled stack and its unrolled twin, in the order in which they were measured."""
    records = [*measured.get("sizes", ()), *measured.get("times", ())]
    return [form for form in dict.fromkeys(record["form"] for record in records) if form not in FORMS]


def reports_no_memory(measured: Measured) -> bool:
    sizes = measured.get("sizes", ())
    return bool(sizes) and all(record.get("temp_bytes") is None for record in sizes)


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


def own_settings(measured: Measured, block: str) -> list[Setting]:
    return settings({"implementations": [measured]}, block)


class Flat(NamedTuple):
    first: int  # the smallest N >= 2
    last: int
    low: int  # the smallest value, which is the largest where the size does not depend on N
    high: int


def flat(measured: Measured, key: str, gradient: bool) -> Flat | None:
    """The range of a size of the rolled form over N, at the setting measured most; None with fewer than two N."""
    setting = next(iter(own_settings(measured, "sizes")), None)
    found = deep(series(measured, key, "rolled", gradient, setting))
    return Flat(min(found), max(found), min(found.values()), max(found.values())) if len(found) > 1 else None


class Growth(NamedTuple):
    low: int  # the smallest N >= 2
    high: int
    ratio: float  # time at `high` / time at `low`


def compile_growth(measured: Measured, form: str, gradient: bool, setting: Setting | None = None) -> Growth | None:
    setting = setting or next(iter(own_settings(measured, "times")), None)
    found = deep(series(measured, "compile_seconds", form, gradient, setting))
    if len(found) < 2:
        return None
    low, high = min(found), max(found)
    return Growth(low, high, spread(found[high]).median / spread(found[low]).median)


class Compared(NamedTuple):
    n: int
    ratio: Spread  # rolled / unrolled


def compared(measured: Measured, key: str, gradient: bool = False) -> Compared | None:
    """Rolled against unrolled, at the largest N at which both were timed."""
    setting = next(iter(own_settings(measured, "times")), None)
    rolled, unrolled = (series(measured, key, form, gradient, setting) for form in FORMS)
    n = max((n for n in rolled if n in unrolled), default=None)
    return None if n is None else Compared(n, ratio(rolled[n], unrolled[n]))


class Counted(NamedTuple):
    """One program of the general stack: what was counted at each N >= 2."""

    name: str
    layer: str
    form: str
    k: int  # layers a step or a group: the larger of unroll and remat
    remat: bool | int
    carry_bytes: int
    sizes: dict[int, Measured]  # N -> record, in order of N

    def counts(self, key: str) -> dict[int, int]:
        return {n: record[key] for n, record in self.sizes.items() if record.get(key) is not None}

    def constant(self, key: str) -> int | None:
        """What the count may be at all N: with one layer a step the first count; with k, the one at the first
        N >= 2k that leaves the largest remainder, which is the longest program."""
        counts = {n: count for n, count in self.counts(key).items() if n >= 2 * self.k or self.k == 1}
        return counts[max(counts, key=lambda n: (n % self.k, -n))] if counts else None

    def holds(self, key: str) -> bool:
        """Rolled: with one layer a step every count is the constant; with k, for N >= 2k, none is above it."""
        counts, constant = self.counts(key), self.constant(key)
        if self.k == 1:
            return len(set(counts.values())) <= 1
        return constant is None or all(count <= constant for n, count in counts.items() if n >= 2 * self.k)

    def memory_a_layer(self) -> float | None:
        """Bytes that one more layer adds, between depths of one remainder, so that the program is the same."""
        found = self.counts("temp_bytes")
        return growth({n: size for n, size in found.items() if n % self.k == max(found) % self.k})


def programs(measured: Measured, layer: str = "") -> list[Counted]:
    """The programs of the general stack, of `layer` or of all, in the order in which they were measured."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for record in measured.get("programs", ()):
        if record["N"] >= 2 and layer in ("", record["layer"]):
            found.setdefault((record["program"], record["layer"]), []).append(record)
    counted = []
    for (name, of), records in found.items():
        first = records[0]
        k = max(first["unroll"], int(first["remat"]))
        sizes = {record["N"]: record for record in sorted(records, key=lambda record: record["N"])}
        counted.append(Counted(name, of, first["form"], k, first["remat"], first["carry_bytes"], sizes))
    return counted


def main_layer(results: Results, remat: bool = False) -> str:
    """The layer with the most programs, of those with a choice of remat if so asked; of equals the last."""
    counted = [program for measured in ran(results) for program in programs(measured)]
    numbers = Counter(program.layer for program in counted if program.remat or not remat)
    return max(reversed(numbers), key=lambda layer: numbers[layer], default="")


class Linear(NamedTuple):
    low: int
    high: int
    ratio: Spread  # time at `high` / time at `low`, timed in turn


def linear(measured: Measured) -> Linear | None:
    """The run time of the rolled gradient at the largest N over that at the smallest: high / low where it is linear."""
    found = {record["N"]: record["run_seconds"] for record in measured.get("linear", ())}
    low, high = min(found, default=0), max(found, default=0)
    return Linear(low, high, ratio(found[high], found[low])) if low < high else None


def checkpoint(measured: Measured) -> Measured:
    """What was measured on the checkpoint; nothing where it was not."""
    block: Measured = measured.get("checkpoint") or {}
    return block if block.get("status") == "ok" else {}


def checkpoint_counts(measured: Measured, key: str, form: str, gradient: bool) -> dict[int, int]:
    """N -> count, of the stack of the checkpoint's layers."""
    return {
        record["N"]: record[key]
        for record in checkpoint(measured).get("sizes", ())
        if (record["form"], record["gradient"]) == (form, gradient)
    }


class Trained(NamedTuple):
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


def trained(results: Results, measured: Measured) -> Trained | None:
    block, right = measured.get("training") or {}, results.get("training")
    if block.get("status") != "ok" or not right:
        return None
    losses, norms = (np.array(block[key], float) for key in ("losses", "weight_norms"))  # None becomes NaN
    exact, yardstick, exact_norms = (
        np.array(right[dtype][key])
        for dtype, key in (("float64", "losses"), ("float32", "losses"), ("float64", "weight_norms"))
    )
    return Trained(
        losses,
        exact,
        worst_so_far(losses, exact),
        worst_so_far(yardstick, exact),
        allowed_so_far(exact, yardstick, "float32"),
        float(worst_so_far(norms, exact_norms)[-1]),
    )


def within(value: float | None, allowed: float) -> bool:
    """At most as large as allowed; what was not finite is None in the results."""
    return value is not None and value <= allowed


def at_least(value: float | None, allowed: float) -> bool:
    return value is not None and value >= allowed


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


def worst(numerics: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record nearest to (or furthest beyond) what is allowed, among those with a tolerance."""

    def excess(record: Mapping[str, Any]) -> float:
        ratio = record.get("ratio")
        return math.inf if ratio is None else ratio / (record.get("allowed") or 1.0)

    return max((record for record in numerics if not record.get("exact")), key=excess, default=None)
