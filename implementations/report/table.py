"""One table as plain text cells, the cells that mean something by themselves, and what several tables write alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from implementations.results.summary import PROGRAMS

BAD = "✗"
NONE = "–"
PLUS_MINUS = "±: half the distance between the quartiles."


class Table(NamedTuple):
    name: str
    title: str
    columns: tuple[str, ...]
    align: str  # "l" or "r" for each column
    rows: list[list[str]]  # a new group starts where the first cell changes
    note: str = ""


def constant(counts: dict[int, int], holds: bool | None = None) -> str:
    return flag(spanned(counts), len(set(counts.values())) <= 1 if holds is None else holds)


def growing(counts: dict[int, int]) -> str:
    return f"{counts[max(counts)]:,} [{max(counts)}]" if counts else NONE


def spanned(counts: dict[int, int]) -> str:
    low, high = min(counts.values(), default=0), max(counts.values(), default=0)
    return NONE if not counts else f"{low:,}" if low == high else f"{low:,}–{high:,}"


def comma(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def twice(*columns: str) -> tuple[str, ...]:
    return tuple(f"{program}\n{column}" for program in PROGRAMS.values() for column in columns)


def flag(text: str, ok: bool) -> str:
    return text if ok else f"{text} {BAD}"
