"""The panels of the figures: one for each implementation, with its lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

from implementations import wording
from implementations.report import drawing
from implementations.report.drawing import Line, Panel
from implementations.results import summary, worth
from implementations.results.laws import Counted
from implementations.results.records import FORMS, LIMIT, PROGRAMS, Measured, OnDevices, Results
from implementations.wording import Spread

LOOKS = {"rolled": (drawing.ROLLED, "o"), "unrolled": (drawing.UNROLLED, "s")}


def _panel(
    measured: Measured | OnDevices,
    quantity: str,
    kind: str,
    at: object,
    lines: Iterable[Line],
    absent: str = "not measured",
    crossings: Mapping[bool, tuple[int, float]] = drawing.NO_CROSSING,
) -> Panel:
    lines = [line for line in lines if line.values]
    depths = sorted({n for line in lines for n in line.values})
    where = missing = ""
    if not lines:
        missing = absent if measured.status == "ok" else measured.status
    else:
        where = f"step · {at}" if kind in drawing.BY_STEP else f"N = {depths[0]} to {depths[-1]} layers · {at}"
    versions = ", ".join(f"{package} {version}" for package, version in list(measured.versions.items())[:2])
    return Panel(measured.name, versions, quantity, kind, where, lines, missing, crossings)


def dense(measured: Measured, key: str) -> Panel:
    looks = LOOKS | dict(zip(summary.alternatives(measured), cycle(drawing.OTHERS), strict=False))
    lines = [
        Line(form, program == "gradient", _values(measured, key, form, program), colour, marker)
        for form, (colour, marker) in looks.items()
        # The gradients of alternatives are in the tables: a panel with ten lines says nothing.
        for program in (PROGRAMS if form in FORMS else ("forward",))
    ]
    if key == "run_seconds":
        read = _values(measured, key, LIMIT, "forward")
        lines.append(Line("reading the weights once", False, read, drawing.MUTED, ""))
    unit = measured.units.get(key)
    quantity, kind = {
        "compile_seconds": ("compile time", "seconds"),
        "run_seconds": ("run time a layer", "seconds"),
        "temp_bytes": ("temporary memory", "bytes"),
    }.get(key, (f"{key}: {unit}" if unit else key, "count"))
    silent = key == "temp_bytes" and summary.reports_no_memory(measured)
    absent = "not reported by this framework" if silent else "not measured"
    return _panel(measured, quantity, kind, _setting(measured), lines, absent)


def _setting(measured: Measured) -> str:
    return next((size.setting for size in measured.sizes), "")


def _values(measured: Measured, key: str, form: str, program: str) -> dict[int, Spread]:
    found = summary.deep(summary.series(measured, key, form, program))
    if key == "run_seconds":
        found = {n: [sample / n for sample in samples] for n, samples in found.items()}
    elif key != "compile_seconds":
        return _single(found)
    return {n: summary.spread(samples) for n, samples in found.items()}


def _single(values: Mapping[int, float]) -> dict[int, Spread]:
    """Without a spread. A logarithmic axis has no zero."""
    return {n: summary.spread([value]) for n, value in values.items() if value > 0}


def programs(measured: Measured, layer: str, looks: Mapping[str, tuple[str, str]]) -> Panel:
    rolled = [program for program in summary.programs(measured, layer) if program.of.form == "rolled"]
    unit = measured.units.get("compiled")
    quantity = f"compiled: {unit}" if unit else "compiled"
    return _panel(measured, quantity, "count", layer, _lines(rolled, "compiled", looks))


def remat(measured: Measured, layer: str, looks: Mapping[str, tuple[str, str]]) -> Panel:
    lines = _lines(summary.gradients(measured, layer), "temp_bytes", looks)
    return _panel(measured, "temporary memory of the gradient", "bytes", layer, lines)


def _lines(programs: Iterable[Counted], key: str, looks: Mapping[str, tuple[str, str]]) -> list[Line]:
    lines = []
    for program in programs:
        unrolled = program.of.form == "unrolled"
        name, look = ("unrolled", LOOKS["unrolled"]) if unrolled else (program.of.name, looks[program.of.name])
        lines.append(Line(name, False, _single(program.counts(key)), *look))
    lines = [line for line in lines if line.values]
    return sorted(lines, key=lambda line: -line.values[max(line.values)].median)  # the legend in the order of the lines


def cost(measured: Measured, calls: int) -> Panel:
    lines, crossings = [], {}
    for program in PROGRAMS:
        gradient = program == "gradient"
        costs = {form: worth.costs(measured, form, program, calls) for form in FORMS}
        lines += [Line(form, gradient, _single(costs[form]), *LOOKS[form]) for form in FORMS]
        fact = worth.crossover(*costs.values())
        if fact and fact.since:
            crossings[gradient] = (fact.since, costs["rolled"][fact.since])
    quantity = f"compile time and {wording.calls(calls)}"
    return _panel(measured, quantity, "seconds", _setting(measured), lines, crossings=crossings)


def trained(measured: Measured, results: Results, kind: str) -> Panel:
    run, own = summary.trained(results, measured), (f"{measured.name} float32", *LOOKS["rolled"])
    curves: dict[tuple[str, str, str], Any] = {}
    if run and kind == "loss":
        curves = {own: run.losses, ("NumPy float64", drawing.INK, ""): run.exact}
    elif run:
        curves = {
            own: run.off,
            ("NumPy float32", drawing.THIRD, "^"): run.numpy_off,
            ("allowed", drawing.MUTED, ""): run.allowed,
        }
    lines = [
        Line(name, False, _single(dict(enumerate(curve.tolist(), 1))), colour, marker)
        for (name, colour, marker), curve in curves.items()
    ]
    sizes = results.training.sizes if results.training else {}
    at = ", ".join(f"{symbol} = {sizes[symbol]}" for symbol in ("N", "d", "B", "T") if symbol in sizes)
    quantity = "loss, in nats a character" if kind == "loss" else "relative difference from NumPy float64, so far"
    not_run = measured.training and measured.training.status != "ok"
    return _panel(measured, quantity, kind, at, lines, "not run" if not_run else "not measured")


# Ways in which no device has the whole stack.
WHOLE = "the whole stack"
CUT = {
    "fully sharded": (drawing.ROLLED, "o"),
    "fully sharded, remat=True": (drawing.THIRD, "^"),
    "fully sharded x tensor": (drawing.FOURTH, "D"),
    "pipeline": (drawing.FIFTH, "v"),
}


def held(found: OnDevices) -> Panel:
    known = [one for one in found.ways if one.temp_bytes is not None]
    values = {way: {one.N: one.param_bytes + (one.temp_bytes or 0) for one in known if one.way == way} for way in CUT}
    values[WHOLE] = {one.N: one.whole_bytes for one in found.ways if one.way in CUT}
    lines = [Line(way, False, _single(of), *CUT.get(way, (drawing.MUTED, ""))) for way, of in values.items()]
    return _panel(found, "bytes a device", "bytes", f"mlp, {found.size} devices", lines)
