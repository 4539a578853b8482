"""How a measured number is written: three digits, a unit of the right size, its spread."""

from __future__ import annotations

from typing import NamedTuple


class Spread(NamedTuple):
    """A median between what is low and what is high: quartiles, or extremes of parts."""

    median: float
    low: float
    high: float


def number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}" if value < 100 else f"{value:.3g}"


def times(value: float) -> str:
    return f"{value:.3g}×" if value < 1000 else f"{value:,.0f}×"


def calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def spread(value: Spread) -> str:
    text = f"{value.median:.3g}" if value.median < 1000 else f"{value.median:,.0f}"
    if value.high == value.low:  # one sample has no spread
        return text
    return f"{text} ±{50 * (value.high - value.low) / value.median:.0f}%"


def seconds(value: float) -> str:
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: float) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"
