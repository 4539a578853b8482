"""The tables of a stack on many devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from implementations.report.table import BAD, NONE, Table
from implementations.results.records import OnDevices, Way

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "permute")


def tables(found: Sequence[OnDevices]) -> list[Table]:
    """What is sent for one layer, and what a device holds; nothing of nothing."""
    ways = dict.fromkeys(one.way for each in found for one in each.ways)
    depths = ", ".join(str(N) for N in dict.fromkeys(one.N for each in found for one in each.ways))

    def rows(cells: Callable[[list[Way]], list[str]]) -> list[list[str]]:
        counted = {way: [[one for one in each.ways if one.way == way] for each in found] for way in ways}
        return [[way, *(cell for own in counted[way] for cell in cells(own))] for way in ways]

    def sent(counted: list[Way]) -> list[str]:
        kinds = counted[-1].collectives if counted else {}
        said = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds.get(kind))
        return [f"{said} {BAD}" if any(one.wrong for one in counted) else said or NONE]

    def held(counted: list[Way]) -> list[str]:
        params = [_percent(one.param_bytes, one.whole_bytes) for one in counted[-1:]]
        return ["".join(params), ", ".join(_percent(one.temp_bytes, one.whole_bytes) for one in counted)]

    title = f"On {max((each.size for each in found), default=0)} devices: what is sent for one layer"
    note = f"In the bodies of the loops of the gradient's program, the same at every N; {BAD}: the numbers are wrong."
    of_all = Table("devices", title, ("", *(each.name for each in found)), "l" * (1 + len(found)), rows(sent), note)
    columns = ("", *(f"{each.name}\n{what}" for each in found for what in ("params", "temporaries")))
    note = f"Of one device, in percent of the whole stack; temporaries of the gradient at N = {depths}."
    return [of_all, Table("devices-held", "What a device holds", columns, "l" + "rr" * len(found), rows(held), note)]


def _percent(part: int | None, whole: int) -> str:
    return NONE if part is None else f"{100 * part / whole:.0f} %"
