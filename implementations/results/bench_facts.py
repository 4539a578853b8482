"""What the bench says: ratios of medians, and which of them are too noisy to be figures.

Pure functions of one row of the block "bench" of the results; its fields: `compare.merge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from implementations.results import summary
from implementations.results.summary import Measured
from implementations.wording import Spread

NOISY = 0.15  # half the distance between the extremes of the parts, over the ratio: above, a ratio is no figure
PARTS = 5  # in which the rounds are looked at, one after the other
LIMIT, RAW = "limit", "raw "
Row = Mapping[str, Any]


def rows(measured: Measured) -> list[Row]:
    """Beside their limit."""
    return [row for row in measured.get("bench") or () if not is_step(row)]


def steps(measured: Measured) -> list[Row]:
    """Beside what users do instead."""
    return [row for row in measured.get("bench") or () if is_step(row)]


def over(row: Row, form: str, other: str) -> Spread | None:
    """The time of one form over that of another, None where one of them was not timed."""
    seconds = row["run_seconds"]
    return of_medians(seconds[form], seconds[other]) if seconds.get(form) and seconds.get(other) else None


def of_medians(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratio of the medians, between the lowest and the highest that a fifth of the rounds alone would have shown.

    Not the quartiles of single rounds: calls of 100 µs differ by more than their median moves.
    """
    cuts = [len(numerator) * part // PARTS for part in range(PARTS + 1)]
    parts = [median(numerator[i:j]) / median(denominator[i:j]) for i, j in pairwise(cuts) if i < j]
    return Spread(median(numerator) / median(denominator), min(parts), max(parts))


def noise(ratio: Spread | None) -> float:
    return 0.0 if ratio is None else (ratio.high - ratio.low) / 2 / ratio.median


def noisiest(run_seconds: Mapping[str, list[float]]) -> float:
    """The noise of the noisiest form, against the limit."""
    return max(noise(of_medians(seconds, run_seconds[LIMIT])) for seconds in run_seconds.values())


def is_noisy(row: Row, form: str, other: str = LIMIT) -> bool:
    """Whether the ratio is no figure: it is too noisy itself, or one of the two is against the limit."""
    ratios = over(row, form, other), over(row, form, LIMIT), over(row, other, LIMIT)
    return max(map(noise, ratios)) > NOISY


def layer_seconds(row: Row) -> float | None:
    seconds = row["run_seconds"].get("rolled")
    return median(seconds) / row["N"] if seconds else None


def raw(row: Row) -> str | None:
    """The primitive as a user first writes it, where it was timed."""
    return next((form for form in row["run_seconds"] if form.startswith(RAW)), None)


def others(row: Row) -> list[str]:
    """What users of the framework do today, in the order in which it was measured."""
    return [form for form in row["run_seconds"] if form not in (LIMIT, *summary.FORMS)]


def nearest_memory(measured: Measured) -> tuple[Row, Spread] | None:
    """The forward program of one float32 vector that reads most, of equals the widest: how near it is to reading."""
    found = [
        (row, ratio)
        for row in rows(measured)
        if (row["limit"], row["program"], row["dtype"]) == ("read", "forward", "float32")
        and (ratio := over(row, "rolled", LIMIT))
        and not is_noisy(row, "rolled")
    ]
    return max(found, key=lambda pair: (pair[0]["weights_bytes"], pair[0]["sizes"]["d"]), default=None)


def is_step(row: Row) -> bool:
    """Whether it is a training step of a real layer, which stands beside what users do instead."""
    return row["layer"] != "dense" and row["program"] == "training step"


def against(row: Row, form: str) -> Spread:
    """The time of a rolled step over that of another form, round by round: steps are long, and their rounds are few."""
    return summary.ratio(row["run_seconds"]["rolled"], row["run_seconds"][form])


def width(sizes: Mapping[str, int]) -> tuple[str, int]:
    """The symbol of the carry's last axis and its size."""
    return next((symbol, sizes[symbol]) for symbol in ("d", "c") if symbol in sizes)


def name(row: Row) -> str:
    """The case in words: "dense, gradient, d = 64, N = 256, batch 32"."""
    said = [row["layer"], row["program"], "{} = {}".format(*width(row["sizes"])), f"N = {row['N']}"]
    said += [f"batch {row['batch']}"] if row["batch"] else []
    return ", ".join(said + ([row["dtype"]] if row["dtype"] != "float32" else []))


def in_weights(row: Row) -> float | None:
    """The peak of the process in multiples of the weights, None where it is not known."""
    peak = row.get("peak_bytes")
    return None if peak is None else peak / row["weights_bytes"]
