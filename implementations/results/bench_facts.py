"""What the bench says: ratios of medians, and which of them are too noisy to be figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from implementations.results import summary
from implementations.results.records import FORMS, LIMIT, Measured, Time
from implementations.wording import Spread

NOISY = 0.15  # half the distance between the extremes of the parts, over the ratio: above, a ratio is no figure
PARTS = 5  # in which the rounds are looked at, one after the other
RAW = "raw "


def rows(measured: Measured) -> list[Time]:
    """Beside their limit."""
    return [row for row in measured.bench if not row.is_step]


def steps(measured: Measured) -> list[Time]:
    """Beside what users do instead."""
    return [row for row in measured.bench if row.is_step]


def over(row: Time, form: str, other: str) -> Spread | None:
    """The time of one form over that of another, None where one of them was not timed."""
    seconds = row.run_seconds
    return of_medians(seconds[form], seconds[other]) if form in seconds and other in seconds else None


def of_medians(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratio of the medians, between the lowest and the highest that a fifth of the rounds alone would have shown.

    Not the quartiles of single rounds: calls of 100 µs differ by more than their median moves.
    """
    cuts = [len(numerator) * part // PARTS for part in range(PARTS + 1)]
    parts = [median(numerator[i:j]) / median(denominator[i:j]) for i, j in pairwise(cuts) if i < j]
    return Spread(median(numerator) / median(denominator), min(parts), max(parts))


def noise(ratio: Spread | None) -> float:
    return 0.0 if ratio is None else (ratio.high - ratio.low) / 2 / ratio.median


def noisiest(run_seconds: Mapping[str, Sequence[float]]) -> float:
    """The noise of the noisiest form, against the limit."""
    return max(noise(of_medians(seconds, run_seconds[LIMIT])) for seconds in run_seconds.values())


def is_noisy(row: Time, form: str, other: str = LIMIT) -> bool:
    """Whether the ratio is no figure: it is too noisy itself, or one of the two is against the limit."""
    ratios = over(row, form, other), over(row, form, LIMIT), over(row, other, LIMIT)
    return max(map(noise, ratios)) > NOISY


def others(row: Time) -> list[str]:
    """What users of the framework do today, in the order in which it was measured."""
    return [form for form in row.run_seconds if form not in (LIMIT, *FORMS)]


def nearest_memory(measured: Measured) -> tuple[Time, Spread] | None:
    """The forward program of one float32 vector that reads most, of equals the widest: how near it is to reading."""
    found = [
        (row, ratio)
        for row in rows(measured)
        if (row.limit, row.program, row.dtype) == ("read", "forward", "float32")
        and (ratio := over(row, "rolled", LIMIT))
        and not is_noisy(row, "rolled")
    ]
    return max(found, key=lambda pair: (pair[0].weights_bytes, pair[0].width[1]), default=None)


def against(row: Time, form: str) -> Spread:
    """The time of a rolled step over that of another form, round by round: steps are long, and their rounds are few."""
    return summary.ratio(row.run_seconds["rolled"], row.run_seconds[form])
