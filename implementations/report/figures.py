"""The figures: log-log against N, one panel for each implementation, never two frameworks in one panel. One is against
the steps of a training.

Each figure comes as single panels, which the page arranges by the width of the screen, and as one SVG file of them all.
What a caption states is computed from the data, like every number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from implementations import wording
from implementations.interface import LEVELS
from implementations.report import drawing, panels
from implementations.report.drawing import Panel
from implementations.results import summary, worth
from implementations.results.records import PROGRAMS, OnDevices, Results


class Figure(NamedTuple):
    title: str
    caption: str
    panels: list[str]  # one SVG each, row by row
    columns: int
    svg: str  # all panels in one file, on a background of its own


def figures(results: Results) -> dict[str, Figure]:
    """File name without suffix -> figure; empty if nothing ran, or nothing but the bench."""
    if not any(measured.sizes or measured.times for measured in results.ran):
        return {}
    compiled, compile_time = (
        _each(results, panels.dense, "compiled"),
        _each(results, panels.dense, "compile_seconds"),
    )
    return {
        "graph-size": figure(
            "graph-size",
            "Graph size at the three levels",
            f"{_flat(results)} Units differ between panels, so compare slopes, not heights: all panels of a row "
            "span the same number of decades.",
            [_each(results, panels.dense, level) for level in LEVELS],
        ),
        **_general(results),
        "compile-time": figure(
            "compile-time",
            "Compile time",
            f"{_compile(results)} Trace and compile from cold, without the first execution; bands are quartiles.",
            [compile_time],
        ),
        "run-time": figure(
            "run-time",
            "Run time a layer",
            f"{_run(results)} One call divided by N: where N is small the call itself dominates. The dotted line reads "
            "the weights once from memory, which nothing here can avoid. Bands are quartiles.",
            [_each(results, panels.dense, "run_seconds")],
        ),
        **_worth(results),
        "temporary-memory": figure(
            "temporary-memory",
            "Temporary memory",
            f"{_memory(results)} What a compiled program allocates beside its arguments and results. A gradient keeps "
            "what each layer needs for its derivative, so it grows with N in both forms.",
            [_each(results, panels.dense, "temp_bytes")],
        ),
        **_training(results),
        **({"held": held(results.devices)} if results.devices else {}),
        # Not on the page: the one to show elsewhere.
        "overview": figure("overview", "Compiled size and compile time", "", [compiled, compile_time]),
    }


def _each(results: Results, panel: Callable[..., Panel], *of: Any) -> list[Panel]:
    """A row of a figure."""
    return [panel(measured, *of) for measured in results.implementations]


def _flat(results: Results) -> str:
    facts = {
        (measured.name, summary.flat(measured, level, program))
        for measured in results.ran
        for level in LEVELS
        for program in PROGRAMS
    }
    changing = sorted({name for name, fact in facts if fact and fact.low != fact.high})
    if changing:
        return f"Not every rolled line is flat: {', '.join(changing)}."
    return (
        "Every rolled line is flat: the number of layers does not enter the program. Unrolled, each layer adds to it."
    )


def _compile(results: Results) -> str:
    flat, twins = [], []
    for measured in results.ran:
        grown, twin = summary.compile_growth(measured, "forward"), summary.compared(measured, "compile_seconds")
        if grown:
            flat.append(f"{grown.ratio.median:.2f} in {measured.name} (N = {grown.high} over {grown.low})")
        if twin:
            twins.append(f"{wording.times(1 / twin.ratio.median)} in {measured.name} (N = {twin.n})")
    said = f"Rolled, the deepest stack over the shallowest: {', '.join(flat)}. " if flat else ""
    return said + (f"Unrolled over rolled: {', '.join(twins)}." if twins else "")


def _run(results: Results) -> str:
    said = [
        f"{fact.ratio.median:.2f} in {measured.name} (N = {fact.n})"
        for measured in results.ran
        if (fact := summary.compared(measured, "run_seconds"))
    ]
    return f"Rolled over unrolled, at the largest N at which both ran: {', '.join(said)}." if said else ""


def _memory(results: Results) -> str:
    said = []
    for measured in results.ran:
        fact = summary.flat(measured, "temp_bytes", "forward")
        if fact:
            low, high = wording.size(fact.low), wording.size(fact.high)
            count = low if fact.low == fact.high else f"{low} to {high}"
            said.append(f"{count} in {measured.name} for N = {fact.first} to {fact.last}")
    return f"The rolled forward needs {', '.join(said)}." if said else ""


def _general(results: Results) -> dict[str, Figure]:
    """The figures of the general stack, where it was measured."""
    names = [program.of.name for measured in results.ran for program in summary.programs(measured)]
    if not names:
        return {}
    layer, kept = summary.main_layer(results), summary.main_layer(results, remat=True)
    looks = dict(zip(dict.fromkeys(names), cycle(drawing.MANY), strict=False))  # the same in every panel
    found = {
        "programs": figure(
            "programs",
            "Compiled size of each program of the general stack",
            f"{_held(results)} Layer: {layer}; each panel has its own unit.",
            [_each(results, panels.programs, layer, looks)],
        )
    }
    if kept:
        found["remat"] = figure(
            "remat",
            "Memory of each choice of remat",
            f"{_kept(results, kept)} Layer: {kept}.",
            [_each(results, panels.remat, kept, looks)],
        )
    return found


def _held(results: Results) -> str:
    broken = [
        f"{program.of.name} of {program.of.layer} in {measured.name}"
        for measured in results.ran
        for program in summary.programs(measured)
        if program.of.form == "rolled" and program.broken("compiled")
    ]
    if broken:
        return f"Not of one size or below one: {', '.join(broken)}."
    return (
        "Each derivative, batch and choice of remat is one program of one size; k layers a step or a group, below one."
    )


def _kept(results: Results, layer: str) -> str:
    said = []
    for measured in results.ran:
        facts = [
            f"{program.of.name.removeprefix('gradient, ').replace('gradient', 'remat=False')} {added / carry:.3g}"
            for program in summary.gradients(measured, layer)
            if (added := summary.memory_a_layer(program)) is not None and (carry := program.of.carry_bytes)
        ]
        said += [f"{measured.name}: {', '.join(facts)}"] if facts else []
    return f"Carries that one more layer adds. {'; '.join(said)}." if said else ""


def _worth(results: Results) -> dict[str, Figure]:
    """What compiling and some calls cost, where that is known of both forms."""
    facts = []
    for calls in worth.CALLS:
        own = [f"{fact} in {m.name}" for m in results.ran if (fact := worth.worth(m, "forward", calls))]
        facts += [f"{wording.calls(calls)}: {', '.join(own)}"] if own else []
    if not facts:
        return {}
    return {
        "worth": figure(
            "worth",
            "When is a scan worth it?",
            f"Compiling once and calling so often, rolled and unrolled. Of the forward program the scan costs less, "
            f"for {'; '.join(facts)}.",
            [_each(results, panels.cost, calls) for calls in worth.CALLS],
        )
    }


def _training(results: Results) -> dict[str, Figure]:
    """The losses of the training and how far they are off, where something was trained."""
    runs = [(m.name, run) for m in results.ran if (run := summary.trained(results, m))]
    if not runs:
        return {}
    off = ", ".join(f"{drawing.say(run.off[-1], 'deviation')} in {name}" for name, run in runs)
    return {
        "training": figure(
            "training",
            "Training parity",
            f"The losses of one language model, from the same weights, batch by batch. In float32, after "
            f"{len(runs[0][1].losses)} steps, off from NumPy float64 by {off}; by "
            f"{drawing.say(runs[0][1].numpy_off[-1], 'deviation')} in NumPy float32. Below: the largest relative "
            "difference so far.",
            [_each(results, panels.trained, results, kind) for kind in drawing.BY_STEP],
        )
    }


def held(found: Sequence[OnDevices]) -> Figure:
    """What one device holds, and the line of the whole stack."""
    row, stack = [panels.held(each) for each in found], panels.WHOLE
    ends = {(panel.name, line.form): line.values[max(line.values)].median for panel in row for line in panel.lines}
    above = [f"{way} in {name}" for name, way in ends if way != stack and ends[name, way] >= ends[name, stack]]
    said = f"As much as the stack: {', '.join(above)}." if above else "At the largest N none reaches that of the stack."
    return figure("held", "What one device holds", f"Its params and the temporaries of the gradient. {said}", [row])


def figure(name: str, title: str, caption: str, rows: Sequence[Sequence[Panel]]) -> Figure:
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
