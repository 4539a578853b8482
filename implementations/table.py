"""One table as plain text cells, and the cells that mean something by themselves."""

from __future__ import annotations

from typing import NamedTuple

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
