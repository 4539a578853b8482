"""One table as plain text cells, what several tables write alike, and a table on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from implementations import wording
from implementations.results import summary
from implementations.results.laws import Counted
from implementations.results.records import FORMS, LIMIT, PROGRAMS, Measured

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


def in_markdown(table: Table) -> str:
    rows = [[column.replace("\n", ": ") for column in table.columns], ["---"] * len(table.columns), *table.rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (f"\n{table.note}" if table.note else "")


def constant(program: Counted, level: str) -> str:
    """One count or a range, marked where it breaks the law."""
    return flag(spanned(program.counts(level)), not program.broken(level))


def growing(program: Counted, level: str) -> str:
    """The count at the largest N, likewise."""
    return flag(largest(program.counts(level)), not program.broken(level))


def largest(counts: dict[int, int]) -> str:
    return f"{counts[max(counts)]:,} [{max(counts)}]" if counts else NONE


def spanned(counts: dict[int, int]) -> str:
    low, high = min(counts.values(), default=0), max(counts.values(), default=0)
    return NONE if not counts else f"{low:,}" if low == high else f"{low:,}–{high:,}"


def comma(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def twice(*columns: str) -> tuple[str, ...]:
    return tuple(f"{program}\n{column}" for program in PROGRAMS for column in columns)


def flag(text: str, ok: bool) -> str:
    return text if ok else f"{text} {BAD}"


def seconds(samples: Sequence[float] | None, layers: int = 1) -> str:
    """The median, or of so many layers that of one."""
    return wording.seconds(summary.spread(samples).median / layers) if samples else NONE


def over(numerator: Sequence[float] | None, denominator: Sequence[float] | None) -> str:
    return wording.spread(summary.ratio(numerator, denominator)) if numerator and denominator else NONE


def by_depth(measured: Measured, key: str, cells: Callable[..., list[str]]) -> list[list[str]]:
    """One row for each N at which `key` was measured, of the forward program, then of the gradient: the cells of N and
    of the values of the rolled form, of the unrolled one, and of the limit."""
    found = [[summary.series(measured, key, form, program) for form in (*FORMS, LIMIT)] for program in PROGRAMS]
    depths = sorted({n for rolled, unrolled, _ in found for n in (*rolled, *unrolled)})
    rows = [
        [measured.name, str(n), *(cell for own in found for cell in cells(n, *(values.get(n) for values in own)))]
        for n in depths
    ]
    return [row for row in rows if set(row[2:]) != {NONE}]


def renderable(table: Table) -> RenderableType:
    """For a terminal: long cells fold, nothing is cut."""
    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.show_header, shown.header_style, shown.pad_edge = any(table.columns), "dim", False
    for column, align in zip(table.columns, table.align, strict=True):
        shown.add_column(column, justify="right" if align == "r" else "left", overflow="fold", vertical="top")
    grouped = table.name not in ("provenance", "capabilities")
    previous = None
    for row in table.rows:
        if grouped and previous not in (None, row[0]):
            shown.add_section()
        name = Text("" if row[0] == previous else row[0], style="bold" if grouped else "")
        shown.add_row(name, *(Text(cell, style="bold red" if cell.endswith(BAD) else "") for cell in row[1:]))
        previous = row[0]
    return Group(shown, Text(table.note + "\n", style="dim")) if table.note else shown
