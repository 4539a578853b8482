"""The page: one self-contained HTML file, a pure function of the results.

No script, no network: style and figures stand in the file, colours follow the reader's light or dark setting, tables
scroll inside their own box on a narrow screen. What is missing is said, not hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby

from implementations import wording
from implementations.report import drawing, figures, tables
from implementations.report.figures import Figure
from implementations.report.table import BAD, NONE, Table
from implementations.results import bench_facts, deviations, summary
from implementations.results.records import Measured, Results

TITLE = "One layer stack, three frameworks, one size"

STYLE = f"""
:root {{ color-scheme: light dark; {drawing.LIGHT}; --wash: #f5f7f9; --bad: #b3261e; --good: #00805e; --link: #0067a5 }}
@media (prefers-color-scheme: dark) {{
  :root {{ {drawing.DARK}; --wash: #1e2227; --bad: #ff8a80; --good: #3ccb9f; --link: #5cb8ee }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 {drawing.FONTS} }}
main {{ max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }}
h1 {{ font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .75rem }}
h2 {{ font-size: 1.3rem; letter-spacing: -.01em; margin: 3.5rem 0 .75rem; padding-top: 1rem }}
h3 {{ font-size: 1rem; margin: 1.75rem 0 .5rem }}
h2, footer {{ border-top: 1px solid var(--grid) }}
p, figcaption, li {{ max-width: 46rem }}
a {{ color: var(--link) }}
code, pre {{ font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }}
.claim {{ font-size: clamp(1rem, 2.2vw, 1.15rem); line-height: 1.5; margin: 0 0 1.25rem; max-width: 56rem }}
.claim dt {{ font-weight: 650; margin-top: .6rem }}
.claim dd {{ margin: 0 }}
.verdict {{ border-left: 4px solid var(--good); background: var(--wash); padding: .6rem 1rem; margin: 0 0 1.75rem }}
.verdict.bad {{ border-color: var(--bad); color: inherit; font-weight: inherit }}
.verdict ul {{ margin: .25rem 0; padding-left: 1.2rem; overflow-wrap: anywhere }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 1rem }}
.card {{ border: 1px solid var(--grid); border-radius: 10px; padding: 1rem 1.15rem 1.1rem; overflow-wrap: anywhere }}
.card h3 {{ font-size: 1rem; margin: 0 }}
.card .versions, .note, figcaption, footer {{ color: var(--muted); font-size: .9rem }}
.card dl {{ margin: .8rem 0 0; display: grid; gap: .7rem }}
.card dt {{ font-size: 1.5rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums }}
.card dt.rolled {{ color: var(--rolled) }}
.card dt.unrolled {{ color: var(--unrolled) }}
.card dd {{ margin: 0; color: var(--muted); font-size: .9rem; line-height: 1.4 }}
.card pre {{ white-space: pre-wrap; margin: .5rem 0 0 }}
figure {{ margin: 1rem 0 1.5rem }}
.panels {{ display: grid; gap: .75rem 1rem; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)) }}
.panels svg {{ display: block; width: 100%; height: auto; max-width: 480px; margin-top: 1rem }}
.scroll {{ overflow-x: auto; width: fit-content; max-width: 100%; margin: .5rem 0 }}
.scroll {{ border: 1px solid var(--grid); border-radius: 10px }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .8rem; text-align: left; vertical-align: top; white-space: nowrap }}
thead th {{ color: var(--muted); font-weight: 500; vertical-align: bottom; border-bottom: 1px solid var(--grid) }}
tbody th {{ font-weight: 600; white-space: pre-line }}
tbody th[scope=rowgroup] {{ padding-top: .7rem }}
td:first-child, tbody th[scope=row] {{ position: sticky; left: 0; background: var(--paper) }}
tbody + tbody > tr:first-child > * {{ border-top: 1px solid var(--grid) }}
.r {{ text-align: right }}
.wrap td {{ white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12rem }}
.bad {{ color: var(--bad); font-weight: 600 }}
.no {{ color: var(--unrolled) }}
.none {{ color: var(--muted) }}
.swatch {{ font-weight: 650 }}
footer {{ margin-top: 3.5rem; padding-top: 1rem }}
summary {{ cursor: pointer }}
summary h2 {{ display: inline-block; margin: 0; padding-top: .6rem; border: 0; font-size: 1.1rem }}
details {{ border-top: 1px solid var(--grid); padding-bottom: .6rem }}
@media print {{ details::details-content {{ content-visibility: visible; block-size: auto }} }}
@media (max-width: 860px) {{
  .panels {{ grid-template-columns: minmax(0, 1fr) }}
  th, td {{ padding: .3rem .5rem }}
  .matrix {{ font-size: .82rem }}
  .matrix th[scope=row] {{ white-space: normal; min-width: 6rem; font-weight: 500 }}
}}
"""


def page(results: Results, drawn: Mapping[str, Figure] | None = None) -> str:
    """The whole page; `drawn` are the figures of the same results, if they have been made already."""
    shown = {table.name: table for table in tables.tables(results)}
    drawn = figures.figures(results) if drawn is None else drawn

    def section(name: str, *parts: str, is_folded: bool = True) -> str:
        """Folded, but for what answers the three questions."""
        body = "".join(part for part in parts if part)
        if not body or name not in shown:
            return ""
        title = f"<h2>{escape(shown[name].title)}</h2>"
        inside = f"<details><summary>{title}</summary>{body}</details>" if is_folded else title + body
        return f'<section id="{name}">{inside}</section>\n'

    def table(name: str, titled: bool = False) -> str:
        heading = f"<h3>{escape(shown[name].title)}</h3>" if titled and name in shown else ""
        return f"{heading}{_table(shown[name])}" if name in shown else ""

    def figure(name: str) -> str:
        return _figure(drawn[name]) if name in drawn else ""

    body = (
        f"<h1>{TITLE}</h1>\n"
        f'<p class="note">{_summary_of_provenance(results)}</p>\n'
        f"{_answers(results)}\n"
        f"{_verdict(results)}\n"
        f'<div class="cards">{"".join(_card(measured) for measured in results.implementations)}</div>\n'
        + section("numerics", table("numerics"), is_folded=False)
        + section("sizes", figure("graph-size"), table("sizes"), is_folded=False)
        + section("steps", table("steps"), is_folded=False)
        + section("provenance", table("provenance"))
        + section("programs", figure("programs"), table("programs"))
        + section("compile", figure("compile-time"), table("compile"))
        + section("run", figure("run-time"), table("run"))
        + section("worth", figure("worth"), table("worth"))
        + section(
            "bench", table("bench"), *(table(f"bench-{name}", True) for name in ("alternatives", "compile", "memory"))
        )
        + section("memory", figure("temporary-memory"), table("memory"))
        + section("remat", figure("remat"), table("remat"))
        + section("checkpoint", table("checkpoint"), table("checkpoint-pairs", True), table("checkpoint-sizes", True))
        + section("training", figure("training"), table("training"))
        + section("alternatives", table("alternatives"))
        + section("recompiles", table("recompiles"))
        + section("devices", table("devices"), figure("held"), table("devices-held", True))
        + section("capabilities", table("capabilities"), _notes(results))
        + f'<section id="limits"><h2>What is not measured</h2><ul>{_limits(results)}</ul></section>\n'
    )
    command = escape(results.provenance.get("command", "python -m implementations"))
    made = f"Made by <code>{command}</code>. The numbers of this page: <code>results.json</code> beside it."
    return _document(TITLE, f"{body}<footer>{made}</footer>\n")


def page_of(title: str, shown: Sequence[Table], drawn: Sequence[Figure] = ()) -> str:
    """A page of figures and tables alone."""
    sections = [f"<section><h2>{escape(figure.title)}</h2>{_figure(figure)}</section>\n" for figure in drawn]
    sections += [f"<section><h2>{escape(table.title)}</h2>{_table(table)}</section>\n" for table in shown]
    return _document(title, f"<h1>{escape(title)}</h1>\n{''.join(sections)}")


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}"
        "</main>\n</body>\n</html>\n"
    )


def _answers(results: Results) -> str:
    """The reader's three questions, each answered in a sentence, as far as the data bear it out."""
    if results.mode == "bench":
        return f'<p class="claim">{escape(claim(results))}</p>'
    answers = {
        "Is it equal?": _equal(results),
        "Is it one size?": claim(results),
        "What does it cost me?": _cost(results),
    }
    said = "".join(f"<dt>{question}</dt><dd>{escape(answer)}</dd>" for question, answer in answers.items() if answer)
    return f'<dl class="claim">{said}</dl>'


def _equal(results: Results) -> str:
    found = [record for measured in results.ran for record in measured.numerics]
    worst, wrong = summary.worst(found), sum(not record.ok for record in found)
    if not worst:
        return ""
    if wrong:
        return f"No: {wrong:,} of {len(found):,} comparisons with NumPy float64 are beyond their bound."
    return (
        f"Yes: in {len(found):,} comparisons with NumPy float64 the worst error is {wording.number(worst.ratio)} "
        f"standard deviations of rounding; {worst.allowed:g} are allowed."
    )


def _cost(results: Results) -> str:
    steps = [(m.name, row) for m in results.ran for row in bench_facts.steps(m)[:1]]
    if not steps:
        return ""
    ratios = [f"{wording.spread(bench_facts.against(row, 'unrolled'))} ({name})" for name, row in steps]
    layers = _list(sorted({f"{row.N} layers of {row.layer}" for _, row in steps}))
    return f"A training step of {layers} takes {_list(ratios)} times as long as unrolled."


def claim(results: Results) -> str:
    """The headline in one sentence, as far as the data bear it out."""
    flat = [(measured, summary.flat(measured, "compiled", "forward")) for measured in results.ran]
    facts = [(measured, fact) for measured, fact in flat if fact and fact.low == fact.high]
    if not facts:
        return _claim_of_bench(results)
    last, first = min(fact.last for _, fact in facts), max(fact.first for _, fact in facts)
    names = _list([measured.name for measured, _ in facts])
    said = f"{last:,} layers compile to exactly as many operations as {first} in {names}"
    slower = [(m.name, twin) for m, _ in facts if (twin := summary.compared(m, "compile_seconds"))]
    if slower:
        depths = {twin.n for _, twin in slower}
        here = "" if len(depths) == 1 else ", {} layers"
        ratios = [f"{wording.times(1 / twin.ratio.median)} ({name}{here.format(twin.n)})" for name, twin in slower]
        at = f"at {depths.pop()} layers " if len(depths) == 1 else ""
        said += f"; {at}a Python loop takes {_list(ratios)} as long to compile"
    missing = [measured.name for measured, fact in flat if not fact or fact.low != fact.high]
    return f"{said}." + (f" Not so, or not measured, in {_list(missing)}." if missing else "")


def _claim_of_bench(results: Results) -> str:
    near = [(m.name, *fact) for m in results.ran if (fact := bench_facts.nearest_memory(m))]
    if near:
        said = _list([f"{ratio.median:.3g} in {name} ({row.name})" for name, row, ratio in near])
        return f"The time of the layers over that of reading their weights once: {said}."
    steps = [(m.name, row) for m in results.ran for row in bench_facts.steps(m)[:1]]
    if steps:
        ratios = [(name, row.layer, bench_facts.against(row, "unrolled")) for name, row in steps]
        said = _list([f"{wording.spread(ratio)} in {name} ({layer})" for name, layer, ratio in ratios])
        return f"The time of a training step over that of its unrolled twin: {said}."
    return "No graph size was measured at two depths: nothing can be claimed here."


def _list(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _summary_of_provenance(results: Results) -> str:
    packages = [f"{key} {value}" for m in results.ran for key, value in list(m.versions.items())[:1]]
    known = results.provenance
    return escape(" · ".join([*packages, *(known[key] for key in ("cpu", "date") if key in known)]))


def _verdict(results: Results) -> str:
    found = deviations.deviations(results)
    if not found and results.mode == "bench":
        return '<p class="verdict">Times are not judged.</p>'
    if not found:
        return f'<p class="verdict">Everything observed is as declared: {_observed(results)}.</p>'
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<div class="verdict bad">Not as declared:<ul>{items}</ul></div>'


def _observed(results: Results) -> str:
    counted = {
        "comparisons with NumPy": sum(len(measured.numerics) for measured in results.ran),
        "programs measured": sum(len(measured.sizes) + len(measured.programs) for measured in results.ran),
        "recompilation counts": sum(len(measured.recompiles) for measured in results.ran),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counted.items())


def _card(measured: Measured) -> str:
    name = f"<h3>{escape(measured.name)}</h3>"
    if measured.status != "ok":
        install = f"<pre>{escape(measured.install)}</pre>" if measured.install else ""
        reason = f"<pre>{escape(measured.reason.strip())}</pre>"
        return f'<div class="card">{name}<div class="versions">{measured.status}</div>{reason}{install}</div>'
    versions = escape(", ".join(f"{key} {value}" for key, value in measured.versions.items()))
    items = "".join(
        f'<div><dt class="{kind}">{escape(dt)}</dt><dd>{escape(dd)}</dd></div>' for kind, dt, dd in _facts(measured)
    )
    return f'<div class="card">{name}<div class="versions">{versions}</div><dl>{items}</dl></div>'


def _facts(measured: Measured) -> Iterator[tuple[str, str, str]]:
    """What stands on a card: the kind, the number, what it is."""
    flat = summary.flat(measured, "compiled", "forward")
    if flat:
        count = f"{flat.low:,}" if flat.low == flat.high else f"{flat.low:,}–{flat.high:,}"
        unit = measured.units.get("compiled", "operations")
        yield "rolled", count, f"{unit}, from {flat.first} layers to {flat.last:,}"
    for row in bench_facts.steps(measured)[:1]:
        said = f"time of a training step, rolled against unrolled: {row.layer}, {row.N} layers"
        yield "", wording.times(bench_facts.against(row, "unrolled").median), said
    compiled, ran = (summary.compared(measured, key) for key in ("compile_seconds", "run_seconds"))
    if compiled:
        gain = wording.times(1 / compiled.ratio.median)
        yield "unrolled", gain, f"compile time, unrolled against rolled, {compiled.n} layers"
    if ran:
        yield "", wording.times(ran.ratio.median), f"run time, rolled against unrolled, {ran.n} layers"
    near = bench_facts.nearest_memory(measured)
    if near:
        yield "", wording.times(near[1].median), f"the time of reading the weights once: {near[0].name}"
    worst = summary.worst(measured.numerics)
    if worst:
        said = f"standard deviations allowed: worst error ({worst.quantity}, {worst.dtype})"
        yield "", f"{wording.number(worst.ratio)} of {worst.allowed:g}", said


def _table(table: Table) -> str:
    def cell(text: str, align: str) -> str:
        kinds = ["r"] if align == "r" else []
        kinds += ["bad"] if text.endswith(BAD) else ["no"] if text.startswith("no [") else []
        kinds += ["none"] if text in (NONE, "not run", "failed") else []
        attribute = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<td{attribute}>{escape(text)}</td>"

    grouped = not table.name.startswith(("provenance", "capabilities", "devices"))  # else the first column names rows
    head = ""
    if any(table.columns):
        cells = (
            f'<th scope="col"{" class=r" if align == "r" else ""}>{escape(column).replace(chr(10), "<br>")}</th>'
            for column, align in list(zip(table.columns, table.align, strict=True))[grouped:]
        )
        head = f"<thead><tr>{''.join(cells)}</tr></thead>"
    body = ""
    for name, group in groupby(table.rows, key=lambda row: row[0]):
        title = f'<th scope="rowgroup" colspan="{len(table.columns) - 1}">{escape(name)}</th>'
        body += f"<tbody><tr>{title}</tr>" if grouped else "<tbody>"
        for row in group:
            first = "" if grouped else f'<th scope="row">{escape(name)}</th>'
            cells = (cell(text, align) for text, align in zip(row[1:], table.align[1:], strict=True))
            body += f"<tr>{first}{''.join(cells)}</tr>"
        body += "</tbody>"
    kind = {"provenance": ' class="wrap"', "capabilities": ' class="matrix"'}.get(table.name, "")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note and table.name != "capabilities" else ""
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
    return f"{region}<table{kind}>{head}{body}</table></div>{note}"


def _figure(figure: Figure) -> str:
    legend = ""
    if any("unrolled" in panel for panel in figure.panels):
        legend = (
            ' <span class="swatch" style="color:var(--rolled)">Rolled</span> is the scan, '
            '<span class="swatch" style="color:var(--unrolled)">unrolled</span> the Python loop.'
        )
    return (
        f"<figure><figcaption>{escape(figure.caption)}{legend}</figcaption>"
        f'<div class="panels" style="--columns:{figure.columns}">{"".join(figure.panels)}</div></figure>'
    )


def _notes(results: Results) -> str:
    items = ""
    for note in results.capabilities.notes:
        link = f' (<a href="{escape(note.link)}">upstream</a>)' if note.link else ""
        items += f"<li>{escape(note.text)}{link}</li>"
    return f'<ol class="note">{items}</ol>' if items else ""


def _limits(results: Results) -> str:
    said = [
        "Other machines. Every number here is of the one machine named above; only the sizes carry over.",
        "Whether a framework is faster than another. Ratios are to the twin in the same framework.",
        "The first execution after compiling.",
        "The memory of the compiler itself while it compiles.",
    ]
    if {measured.settings.get("device", "").lower() for measured in results.ran} == {"cpu"}:
        said.insert(1, "Accelerators: this run was on the CPU.")
    for measured in results.implementations:
        if measured.status != "ok":
            said.append(f"{measured.name}: {measured.status}.")
        elif summary.reports_no_memory(measured):
            said.append(f"Temporary memory of {measured.name}, which reports none.")
    return "".join(f"<li>{escape(text)}</li>" for text in said)
