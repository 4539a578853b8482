"""How a panel is drawn: matplotlib in, SVG out that follows the page it stands in.

Colours are CSS variables, so that one drawing suits a light and a dark page; text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from implementations import wording
from implementations.results.records import FORMS

WIDTH, HEIGHT = 320, 236  # of a panel without its legend, in points
LEGEND_ROW = 15
LEFT, RIGHT, TOP, BOTTOM = 46, 54, 44, 42
LETTER = 6  # how wide a letter of a label is, about
BY_STEP = ("loss", "deviation")  # kinds of panels that count steps: from left to right, each as far as the next

# What matplotlib draws -> (CSS variable, on light, on dark). Near Okabe and Ito's colours, which the colour-blind can
# tell apart, darkened or lightened for contrast; markers and dashes say the same without any colour.
COLOURS = {
    "#000001": ("--ink", "#1c2126", "#e8eaed"),
    "#000002": ("--muted", "#5c6670", "#9aa4ae"),
    "#000003": ("--grid", "#e3e6e9", "#31363c"),
    "#000004": ("--rolled", "#0067a5", "#5cb8ee"),
    "#000005": ("--unrolled", "#c85200", "#f58f4d"),
    "#000006": ("--third", "#00805e", "#3ccb9f"),
    "#000007": ("--fourth", "#8a4fa3", "#d29fe0"),
    "#000008": ("--fifth", "#7d6b00", "#dcc94f"),
    "#000009": ("--paper", "#ffffff", "#16191d"),
}
INK, MUTED, GRID, ROLLED, UNROLLED, THIRD, FOURTH, FIFTH, PAPER = COLOURS
OTHERS = ((THIRD, "^"), (FOURTH, "D"), (FIFTH, "v"), (THIRD, "<"), (FOURTH, "P"), (FIFTH, ">"))
MANY = (  # each colour twice, with two markers
    *((ROLLED, "o"), (THIRD, "^"), (FOURTH, "D"), (FIFTH, "v"), (MUTED, "X")),
    *((ROLLED, "s"), (THIRD, "<"), (FOURTH, "P"), (FIFTH, ">"), (MUTED, "d")),
)
RING: dict[str, Any] = {
    "color": INK,
    "linestyle": "none",
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgewidth": 1.4,
}
NO_CROSSING: Mapping[bool, tuple[int, float]] = MappingProxyType({})
CHEAPER = "rolled costs less from here on"
LIGHT, DARK = (";".join(f"{colour[0]}:{colour[theme]}" for colour in COLOURS.values()) for theme in (1, 2))
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Line(NamedTuple):
    form: str
    gradient: bool
    values: Mapping[int, wording.Spread]  # N -> value
    colour: str
    marker: str


class Panel(NamedTuple):
    name: str  # of the implementation
    versions: str
    quantity: str  # what the vertical axis shows, with its unit
    kind: str  # count, seconds, bytes; loss and deviation, which are against the steps of a training, not against N
    where: str  # N range, d, dtype
    lines: list[Line]
    missing: str  # why there is no line
    crossings: Mapping[bool, tuple[int, float]] = NO_CROSSING  # gradient -> where rolled costs less from then on


def canvas(width: float, height: float) -> Canvas:
    return Canvas(figsize=(width / 72, height / 72))


def legend_height(panel: Panel) -> int:
    return math.ceil(len(_legend(panel)) / 2) * LEGEND_ROW


def draw(canvas: Canvas, panel: Panel, limits: tuple[float, float], x: float, y: float, legend: float) -> None:
    width, height = (72 * inches for inches in canvas.get_size_inches())
    box = (x + LEFT, y + BOTTOM + legend, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    axes = canvas.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    canvas.text((x + 8) / width, (y + HEIGHT + legend - 16) / height, panel.name, color=INK, size=12, weight="bold")
    canvas.text(
        (x + WIDTH - 8) / width, (y + HEIGHT + legend - 16) / height, panel.versions, color=MUTED, size=9.5, ha="right"
    )
    canvas.text((x + 8) / width, (y + HEIGHT + legend - 32) / height, panel.quantity, color=MUTED, size=10)
    if panel.missing:
        axes.set_axis_off()
        axes.text(0.5, 0.5, panel.missing, transform=axes.transAxes, ha="center", va="center", color=MUTED, size=11)
        return
    for line in panel.lines:
        depths = list(line.values)
        middle, low, high = (list(part) for part in zip(*line.values.values(), strict=True))
        axes.plot(depths, middle, clip_on=False, zorder=3 if line.form in FORMS else 2, **_look(line))
        if any(a != b for a, b in zip(low, high, strict=True)):
            axes.fill_between(depths, low, high, color=line.colour, alpha=0.18, linewidth=0)
    for n, value in panel.crossings.values():
        axes.plot([n], [value], clip_on=False, zorder=4, **RING)
    _axes(axes, panel, limits)
    _labels(axes, panel, box[2], box[3])
    handles = _legend(panel)
    if handles:
        axes.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.01 - LEFT / box[2], (6 - BOTTOM) / box[3]),
            ncols=2,
            frameon=False,
            fontsize=9.5,
            labelcolor=MUTED,
            handlelength=2.2,
            columnspacing=1.2,
            borderpad=0,
            labelspacing=0.35,
        )


def _look(line: Line) -> dict[str, Any]:
    """Solid and filled is the forward program, dashed and hollow the gradient, dotted and bare a limit."""
    main = line.form in FORMS
    return {
        "color": line.colour,
        "linestyle": (0, (1, 1.6)) if not line.marker else (0, (4, 2)) if line.gradient else "-",
        "linewidth": 2 if main else 1.4,
        "marker": line.marker or None,
        "markersize": 4.5 if main else 4,
        "markevery": max(1, len(line.values) // 8),
        "markeredgewidth": 1.2,
        "markerfacecolor": PAPER if line.gradient else line.colour,
    }


def _axes(axes: Axes, panel: Panel, limits: tuple[float, float]) -> None:
    depths = sorted({n for line in panel.lines for n in line.values})
    axes.set_xscale("linear" if panel.kind in BY_STEP else "log")
    axes.set_yscale("linear" if panel.kind == "loss" else "log")
    axes.set_xlim(depths[0] / 1.12, depths[-1] * 1.12 if len(depths) > 1 else depths[0] * 2)
    axes.set_ylim(*limits)
    apart = 0.13 * math.log(max(depths[-1] / depths[0], 2))
    kept: list[int] = []
    for n in (depths[0], depths[-1], *depths):  # the ends are always named; a neighbour too near is not
        if all(abs(math.log(n / other)) > apart for other in kept):
            kept.append(n)
    if panel.kind in BY_STEP:
        axes.set_xlim(depths[0] - 1, depths[-1] + 1)
        kept = [depths[0], *(n for n in depths if n % 10 == 0)]
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    narrow = limits[1] / limits[0] < 100
    ticks = LogLocator(subs=(1.0, 3.0) if narrow else (1.0,), numticks=8)
    axes.yaxis.set_major_locator(MaxNLocator(5) if panel.kind == "loss" else ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value, panel.kind)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(panel.where, color=MUTED, fontsize=9.5, labelpad=4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="x", colors=MUTED, labelsize=9.5, length=3)
    axes.tick_params(axis="y", colors=MUTED, labelsize=9.5, length=0)


def _labels(axes: Axes, panel: Panel, width: float, height: float) -> None:
    """`rolled` and `unrolled` beside the ends of their lines, each where it is farthest from lines and labels."""

    def place(n: float, value: float) -> tuple[float, float]:  # in points, from the lower left corner
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((n, value)))
        return x * width, y * height

    taken = []  # where not to write: along every line
    for line in panel.lines:
        for (ax, ay), (bx, by) in pairwise([place(n, value.median) for n, value in line.values.items()]):
            taken += [(ax + (bx - ax) * i / 24, ay + (by - ay) * i / 24) for i in range(25)]
    for form in FORMS:
        own = [line for line in panel.lines if line.form == form]
        if not own:
            continue
        line = own[0]
        last = max(line.values)
        x, y = place(last, line.values[last].median)
        near = [ty - y for tx, ty in taken if x + 4 < tx < x + 10 + LETTER * len(form)]
        # Beside the end of another line it would name that one, unless both end in one place.
        for other in panel.lines:
            ox, oy = place(max(other.values), other.values[max(other.values)].median)
            near += [oy - y + side for side in (-3, 3) if abs(ox - x) < 6 and abs(oy - y) > 5]
        # Far from everything, but no farther from its own line than that is worth.
        shifts = [dy for dy in (0, 6, -6, 10, -10, 14, -14) if dy == 0 or 4 < y + dy < height + 6]
        away = {dy: min([abs(ty - dy) for ty in near] + [12]) - abs(dy) / 4 for dy in shifts}
        dy = max(away, key=lambda dy: away[dy])
        axes.annotate(
            form,
            (last, line.values[last].median),
            (7, dy),
            textcoords="offset points",
            va="center_baseline",
            color=line.colour,
            size=10,
            weight="bold",
            annotation_clip=False,
        )
        taken += [(x + 8 + LETTER * i, y + dy + side) for i in range(len(form)) for side in (-5, 0, 5)]


def _legend(panel: Panel) -> list[Line2D]:
    """What no label beside a line says: the dashes, and the lines that are neither rolled nor unrolled."""
    shown = [line for line in panel.lines if line.form not in FORMS]
    if any(line.gradient for line in panel.lines):
        shown = [Line("rolled", False, {}, MUTED, "o"), Line("rolled", True, {}, MUTED, "o"), *shown]
    names = {"rolled": ("forward", "with gradient")}
    handles = [Line2D([], [], label=names.get(line.form, (line.form,))[line.gradient], **_look(line)) for line in shown]
    return handles + ([Line2D([], [], label=CHEAPER, **RING)] if panel.crossings else [])


def say(value: float, kind: str) -> str:
    said = {
        "seconds": wording.seconds,
        "bytes": wording.size,
        "loss": lambda loss: f"{loss:.3g}",
        "deviation": lambda off: f"{off:.2g}",
    }
    return said.get(kind, lambda count: f"{count:,.0f}")(value)


def svg(canvas: Canvas, name: str, alt: str, standalone: bool = False) -> str:
    """The drawing with colours as CSS variables, ids of its own and an alternative text; nothing depends on the day."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    body = drawn[drawn.index(">") + 1 :].strip()
    # Matplotlib's own <style> applies to `*`, which inline would be the whole page.
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, body)
    for colour, (variable, *_) in COLOURS.items():
        body = body.replace(colour, f"var({variable})")
    # A halo keeps a label legible where a line passes behind it.
    halo = "paint-order: stroke; stroke: var(--paper); stroke-width: 3"
    body = re.sub(r'(<text style="[^"]*fill: var\(--(?:un)?rolled\))', rf"\1; {halo}", body)
    width, height = (f"{72 * inches:g}" for inches in canvas.get_size_inches())
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {height}" stroke-linejoin="round"'
    if not standalone:
        return f"{head}>{body}"
    head += f' width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg"'
    head += ' xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f"<style>svg{{{LIGHT}}}@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}</style>"
    paper = f'<rect width="{width}" height="{height}" style="fill:var(--paper)"/>'
    return f"{head}><title>{escape(alt)}</title>{style}{paper}{body}\n"
