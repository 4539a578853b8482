"""The figures: log-log against N, one panel for each implementation, never two frameworks in one panel. One is against
the steps of a training.

Each figure comes as single panels, which the page arranges by the width of the screen, and as one SVG file of them all.
What a caption states is computed from the data, like every number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

from implementations import wording
from implementations.interface import LEVELS
from implementations.report import drawing
from implementations.report.drawing import Line, Panel
from implementations.results import summary, worth
from implementations.results.summary import Measured, Results, Setting
from implementations.wording import Spread


class Figure(NamedTuple):
    title: str
    caption: str
    panels: list[str]  # one SVG each, row by row
    columns: int
    svg: str  # all panels in one file, on a background of its own


def figures(results: Results) -> dict[str, Figure]:
    """File name without suffix -> figure; empty if nothing ran, or nothing but the bench."""
    if not any(measured.get(block) for measured in summary.ran(results) for block in ("sizes", "times")):
        return {}
    sizes, times = (next(iter(summary.settings(results, block)), None) for block in ("sizes", "times"))
    compiled, compile_time = _row(results, "compiled", sizes), _row(results, "compile_seconds", times)
    return {
        "graph-size": _figure(
            "graph-size",
            "Graph size at the three levels",
            f"{_flat(results)} Units differ between panels, so compare slopes, not heights: all panels of a row "
            "span the same number of decades.",
            [_row(results, level, sizes) for level in LEVELS],
        ),
        **_general(results),
        "compile-time": _figure(
            "compile-time",
            "Compile time",
            f"{_compile(results)} Trace and compile from cold, without the first execution; bands are quartiles.",
            [compile_time],
        ),
        "run-time": _figure(
            "run-time",
            "Run time a layer",
            f"{_run(results)} One call divided by N: where N is small the call itself dominates. The dotted line reads "
            "the weights once from memory, which nothing here can avoid. Bands are quartiles.",
            [_row(results, "run_seconds", times)],
        ),
        **_worth(results),
        "temporary-memory": _figure(
            "temporary-memory",
            "Temporary memory",
            f"{_memory(results)} What a compiled program allocates beside its arguments and results. A gradient keeps "
            "what each layer needs for its derivative, so it grows with N in both forms.",
            [_row(results, "temp_bytes", sizes)],
        ),
        **_training(results),
        # Not on the page: the one to show elsewhere.
        "overview": _figure("overview", "Compiled size and compile time", "", [compiled, compile_time]),
    }


def _general(results: Results) -> dict[str, Figure]:
    """The figures of the general stack, where it was measured."""
    if not any(summary.programs(measured) for measured in summary.ran(results)):
        return {}
    layer, kept = summary.main_layer(results), summary.main_layer(results, remat=True)
    names = [program.name for measured in summary.ran(results) for program in summary.programs(measured)]
    looks = dict(zip(dict.fromkeys(names), cycle(drawing.MANY), strict=False))  # the same in every panel
    found = {
        "programs": _figure(
            "programs",
            "Compiled size of each program of the general stack",
            f"{_held(results)} Layer: {layer}; each panel has its own unit.",
            [[_general_panel(measured, "compiled", layer, looks) for measured in summary.implementations(results)]],
        )
    }
    if kept:
        found["remat"] = _figure(
            "remat",
            "Memory of each choice of remat",
            f"{_kept(results, kept)} Layer: {kept}.",
            [[_general_panel(measured, "temp_bytes", kept, looks) for measured in summary.implementations(results)]],
        )
    return found


def _held(results: Results) -> str:
    broken = [
        f"{program.name} of {program.layer} in {measured['name']}"
        for measured in summary.ran(results)
        for program in summary.programs(measured)
        if program.form == "rolled" and not program.holds("compiled")
    ]
    if broken:
        return f"Not of one size or below one: {', '.join(broken)}."
    return (
        "Each derivative, batch and choice of remat is one program of one size; k layers a step or a group, below one."
    )


def _kept(results: Results, layer: str) -> str:
    said = []
    for measured in summary.ran(results):
        facts = [
            f"{program.name.removeprefix('gradient, ').replace('gradient', 'remat=False')} {added / carry:.3g}"
            for program in _gradients(measured, layer)
            if (added := program.memory_a_layer()) is not None and (carry := program.carry_bytes)
        ]
        said += [f"{measured['name']}: {', '.join(facts)}"] if facts else []
    return f"Carries that one more layer adds. {'; '.join(said)}." if said else ""


def _gradients(measured: Measured, layer: str) -> list[summary.Counted]:
    return [program for program in summary.programs(measured, layer) if program.name.startswith("gradient")]


def _general_panel(measured: Measured, key: str, layer: str, looks: dict[str, tuple[str, str]]) -> Panel:
    programs = _gradients(measured, layer) if key == "temp_bytes" else summary.programs(measured, layer)
    programs = [p for p in programs if p.counts(key) and (key == "temp_bytes" or p.form == "rolled")]
    lines = []
    for program in programs:
        colour, marker = (drawing.UNROLLED, "s") if program.form == "unrolled" else looks[program.name]
        name = "unrolled" if program.form == "unrolled" else program.name
        values = {n: summary.spread([count]) for n, count in program.counts(key).items() if count > 0}
        if values:
            lines.append(Line(name, False, values, colour, marker))
    lines.sort(key=lambda line: -line.values[max(line.values)].median)  # the legend in the order of the lines
    depths = sorted({n for line in lines for n in line.values})
    unit = measured.get("units", {}).get("compiled")
    quantity = (
        "temporary memory of the gradient" if key == "temp_bytes" else f"compiled: {unit}" if unit else "compiled"
    )
    where = f"N = {depths[0]} to {depths[-1]} layers · {layer}" if depths else ""
    missing = "" if lines else "not measured" if measured.get("status") == "ok" else str(measured.get("status"))
    versions = _versions(measured)
    kind = "bytes" if key == "temp_bytes" else "count"
    return Panel(measured["name"], versions, quantity, kind, where, lines, missing)


def _worth(results: Results) -> dict[str, Figure]:
    """What compiling and some calls cost, where that is known of both forms."""
    found = {
        calls: {m["name"]: fact for m in summary.ran(results) if (fact := worth.worth(m, False, calls))}
        for calls in worth.CALLS
    }
    if not any(found.values()):
        return {}
    facts = [
        f"{_calls(calls)}: {', '.join(f'{worth.said(fact)} in {name}' for name, fact in own.items())}"
        for calls, own in found.items()
        if own
    ]
    return {
        "worth": _figure(
            "worth",
            "When is a scan worth it?",
            f"Compiling once and calling so often, rolled and unrolled. Of the forward program the scan costs less, "
            f"for {'; '.join(facts)}.",
            [[_worth_panel(measured, calls) for measured in summary.implementations(results)] for calls in worth.CALLS],
        )
    }


def _worth_panel(measured: Measured, calls: int) -> Panel:
    lines, crossings = [], {}
    for gradient in summary.PROGRAMS:
        for form, colour, marker in (("rolled", drawing.ROLLED, "o"), ("unrolled", drawing.UNROLLED, "s")):
            values = {n: summary.spread([cost]) for n, cost in worth.costs(measured, form, gradient, calls).items()}
            lines += [Line(form, gradient, values, colour, marker)] if values else []
        fact = worth.worth(measured, gradient, calls)
        if fact and fact.since:
            crossings[gradient] = (fact.since, worth.costs(measured, "rolled", gradient, calls)[fact.since])
    depths = sorted({n for line in lines for n in line.values})
    where = f"N = {depths[0]} to {depths[-1]} layers · {worth.setting(measured)}" if depths else ""
    missing = "" if lines else "not measured" if measured.get("status") == "ok" else str(measured.get("status"))
    quantity = f"compile time and {_calls(calls)}"
    return Panel(measured["name"], _versions(measured), quantity, "seconds", where, lines, missing, crossings)


def _calls(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls:,} calls"


def _training(results: Results) -> dict[str, Figure]:
    """The losses of the training and how far they are off, where something was trained."""
    runs = [(m["name"], run) for m in summary.ran(results) if (run := summary.trained(results, m))]
    if not runs:
        return {}
    off = ", ".join(f"{drawing.say(run.off[-1], 'deviation')} in {name}" for name, run in runs)
    return {
        "training": _figure(
            "training",
            "Training parity",
            f"The losses of one language model, from the same weights, batch by batch. In float32, after "
            f"{len(runs[0][1].losses)} steps, off from NumPy float64 by {off}; by "
            f"{drawing.say(runs[0][1].numpy_off[-1], 'deviation')} in NumPy float32. Below: the largest relative "
            "difference so far.",
            [
                [_training_panel(results, measured, kind) for measured in summary.implementations(results)]
                for kind in drawing.BY_STEP
            ],
        )
    }


def _training_panel(results: Results, measured: Measured, kind: str) -> Panel:
    run = summary.trained(results, measured)
    lines, where = [], ""
    if run:
        own = (f"{measured['name']} float32", drawing.ROLLED, "o")
        curves = {
            "loss": {own: run.losses, ("NumPy float64", drawing.INK, ""): run.exact},
            "deviation": {
                own: run.off,
                ("NumPy float32", drawing.THIRD, "^"): run.numpy_off,
                ("allowed", drawing.MUTED, ""): run.allowed,
            },
        }[kind]
        for (name, colour, marker), curve in curves.items():
            # a logarithmic axis has no zero
            values = {step: summary.spread([value]) for step, value in enumerate(curve.tolist(), 1) if value > 0}
            lines.append(Line(name, False, values, colour, marker))
        shape = ", ".join(f"{name} = {results['training'][name]}" for name in ("N", "d", "B", "T"))
        where = f"step · {shape}"
    quantity = {"loss": "loss, in nats a character", "deviation": "relative difference from NumPy float64, so far"}[
        kind
    ]
    missing = "" if run else str((measured.get("training") or measured).get("status"))
    missing = "not measured" if missing == "ok" else missing
    lines = [line for line in lines if line.values]
    return Panel(measured["name"], _versions(measured), quantity, kind, where, lines, missing)


def _flat(results: Results) -> str:
    facts = {
        (measured["name"], summary.flat(measured, level, gradient))
        for measured in summary.ran(results)
        for level in LEVELS
        for gradient in summary.PROGRAMS
    }
    changing = sorted({name for name, fact in facts if fact and fact.low != fact.high})
    if changing:
        return f"Not every rolled line is flat: {', '.join(changing)}."
    return (
        "Every rolled line is flat: the number of layers does not enter the program. Unrolled, each layer adds to it."
    )


def _compile(results: Results) -> str:
    flat, twins = [], []
    for measured in summary.ran(results):
        grown, twin = summary.compile_growth(measured, "rolled", False), summary.compared(measured, "compile_seconds")
        flat += [f"{grown.ratio:.2f} in {measured['name']} (N = {grown.high} over {grown.low})"] if grown else []
        twins += [f"{wording.times(1 / twin.ratio.median)} in {measured['name']} (N = {twin.n})"] if twin else []
    said = f"Rolled, the deepest stack over the shallowest: {', '.join(flat)}. " if flat else ""
    return said + (f"Unrolled over rolled: {', '.join(twins)}." if twins else "")


def _run(results: Results) -> str:
    said = [
        f"{fact.ratio.median:.2f} in {measured['name']} (N = {fact.n})"
        for measured in summary.ran(results)
        if (fact := summary.compared(measured, "run_seconds"))
    ]
    return f"Rolled over unrolled, at the largest N at which both ran: {', '.join(said)}." if said else ""


def _memory(results: Results) -> str:
    said = []
    for measured in summary.ran(results):
        fact = summary.flat(measured, "temp_bytes", False)
        if fact:
            low, high = wording.size(fact.low), wording.size(fact.high)
            count = low if fact.low == fact.high else f"{low} to {high}"
            said.append(f"{count} in {measured['name']} for N = {fact.first} to {fact.last}")
    return f"The rolled forward needs {', '.join(said)}." if said else ""


def _row(results: Results, key: str, setting: Setting | None) -> list[Panel]:
    return [_panel(measured, key, setting) for measured in summary.implementations(results)]


def _panel(measured: Measured, key: str, setting: Setting | None) -> Panel:
    looks = {"rolled": (drawing.ROLLED, "o"), "unrolled": (drawing.UNROLLED, "s")}
    looks |= dict(zip(summary.alternatives(measured), cycle(drawing.OTHERS), strict=False))
    lines = [
        Line(form, gradient, _values(measured, key, form, gradient, setting), colour, marker)
        for form, (colour, marker) in looks.items()
        # The gradients of alternatives are in the tables: a panel with ten lines says nothing.
        for gradient in (summary.PROGRAMS if form in summary.FORMS else (False,))
    ]
    if key == "run_seconds":
        read = _values(measured, "read_seconds", "rolled", False, setting)
        lines.append(Line("reading the weights once", False, read, drawing.MUTED, ""))
    lines = [line for line in lines if line.values]
    depths = sorted({n for line in lines for n in line.values})
    unit = measured.get("units", {}).get(key)
    quantity, kind = {
        "compile_seconds": ("compile time", "seconds"),
        "run_seconds": ("run time a layer", "seconds"),
        "temp_bytes": ("temporary memory", "bytes"),
    }.get(key, (f"{key}: {unit}" if unit else key, "count"))
    missing = ""
    if measured.get("status") != "ok":
        missing = str(measured.get("status"))
    elif not lines:
        silent = key == "temp_bytes" and summary.reports_no_memory(measured)
        missing = "not reported by this framework" if silent else "not measured"
    return Panel(
        measured["name"],
        _versions(measured),
        quantity,
        kind,
        f"N = {depths[0]} to {depths[-1]} layers · {setting}" if depths else "",
        lines,
        missing,
    )


def _versions(measured: Measured) -> str:
    return ", ".join(f"{package} {version}" for package, version in list(measured.get("versions", {}).items())[:2])


def _values(measured: Measured, key: str, form: str, gradient: bool, setting: Setting | None) -> dict[int, Spread]:
    found = summary.series(measured, key, form, gradient, setting)
    samples = {n: value if isinstance(value, list) else [value] for n, value in summary.deep(found).items()}
    if key in ("run_seconds", "read_seconds"):
        samples = {n: [sample / n for sample in value] for n, value in samples.items()}
    # A logarithmic axis has no zero.
    return {n: summary.spread(value) for n, value in samples.items() if min(value) > 0}


def _figure(name: str, title: str, caption: str, rows: Sequence[Sequence[Panel]]) -> Figure:
    limits = [_limits(row) for row in rows]
    legend = max(drawing.legend_height(panel) for row in rows for panel in row)
    height, columns = drawing.HEIGHT + legend, len(rows[0])
    whole, panels = drawing.canvas(drawing.WIDTH * columns, height * len(rows)), []
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            single = drawing.canvas(drawing.WIDTH, height)
            drawing.draw(single, panel, limits[i][j], 0, 0, legend)
            panels.append(drawing.svg(single, f"{name}-{i}-{j}", alternative_text(panel)))
            drawing.draw(whole, panel, limits[i][j], j * drawing.WIDTH, (len(rows) - 1 - i) * height, legend)
    alt = f"{title}. " + " ".join(alternative_text(panel) for row in rows for panel in row)
    return Figure(title, caption.strip(), panels, columns, drawing.svg(whole, name, alt, standalone=True))


def _limits(row: Sequence[Panel]) -> list[tuple[float, float]]:
    """Vertical limits of the panels: the same where the unit is the same, else the same number of decades."""
    values = [[value for line in panel.lines for value in line.values.values()] for panel in row]
    ends = [(min(v.low for v in found), max(v.high for v in found)) if found else None for found in values]
    known = [end for end in ends if end]
    if not known:
        return [(1.0, 10.0)] * len(row)
    if row[0].kind == "loss":  # on a linear axis
        low, high = min(low for low, _ in known), max(high for _, high in known)
        return [(low - 0.07 * (high - low), high + 0.07 * (high - low))] * len(row)
    if row[0].kind == "count":
        decades = max(math.log10(high / low) for low, high in known)
        spans = [(end[0], end[0] * 10**decades) if end else (1.0, 10.0**decades) for end in ends]
    else:
        spans = [(min(low for low, _ in known), max(high for _, high in known))] * len(row)
    padded = []
    for low, high in spans:
        high = max(high, low * 12)  # so that at least one power of ten is on the axis
        space = (high / low) ** 0.07
        padded.append((low / space, high * space))
    return padded


def alternative_text(panel: Panel) -> str:
    """The panel in words: the ends of every line."""
    if panel.missing:
        return f"{panel.name}: {panel.quantity}: {panel.missing}."
    said, by_step = [], panel.kind in drawing.BY_STEP
    at, against = ("step ", "the steps") if by_step else ("N = ", "N")
    for line in panel.lines:
        ends = [
            f"{drawing.say(line.values[n].median, panel.kind)} at {at}{n}" for n in (min(line.values), max(line.values))
        ]
        said.append(f"{line.form}{', with gradient' if line.gradient else ''}: {', '.join(dict.fromkeys(ends))}")
    for gradient, (n, _) in panel.crossings.items():
        said.append(f"rolled{', with gradient' if gradient else ''} costs less from N = {n} on")
    return f"{panel.name} ({panel.versions}): {panel.quantity} against {against} ({panel.where}). {'; '.join(said)}."
