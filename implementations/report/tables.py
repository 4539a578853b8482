"""The tables of the comparison, as plain text cells: one definition for the terminal and for the page.

A cell that ends with BAD is not as declared; a dash means that this was not measured.
"""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from implementations import wording
from implementations.interface import LEVELS
from implementations.report import tables_bench, tables_trained
from implementations.report.table import BAD, NONE, PLUS_MINUS, Table, comma, constant, flag, growing, spanned, twice
from implementations.results import summary
from implementations.results.summary import FORMS, PROGRAMS, Measured, Results, Setting


def tables(results: Results) -> list[Table]:
    """Provenance first: no number stands before what it depends on. Tables without a row are left out."""
    made = (
        provenance(results),
        numerics(results),
        sizes(results),
        programs(results),
        tables_bench.steps(results),
        compile_times(results),
        run_times(results),
        tables_bench.worth_it(results),
        tables_bench.bench(results),
        tables_bench.alternatives(results),
        tables_bench.compiling(results),
        tables_bench.peaks(results),
        memory(results),
        remat(results),
        tables_trained.checkpoint(results),
        tables_trained.checkpoint_pairs(results),
        tables_trained.checkpoint_sizes(results),
        tables_trained.training(results),
        alternatives(results),
        recompiles(results),
        *([] if results.get("mode") == "bench" else [capabilities(results)]),  # nothing of it was tried
    )
    return [_without_empty_columns(table) for table in made if table.rows]


def _without_empty_columns(table: Table) -> Table:
    """A quick run has no gradients: a column of dashes says no more than no column."""
    empty = {i for i in range(len(table.columns)) if all(row[i] in ("", NONE) for row in table.rows)}
    kept = [i for i, column in enumerate(table.columns) if i not in empty or "\n" not in column]
    columns, align = tuple(table.columns[i] for i in kept), "".join(table.align[i] for i in kept)
    return table._replace(columns=columns, align=align, rows=[[row[i] for i in kept] for row in table.rows])


def provenance(results: Results) -> Table:
    rows = [[key, str(value)] for key, value in results.get("provenance", {}).items()]
    for measured in summary.implementations(results):
        if measured.get("status") == "ok":
            parts = [f"{key} {value}" for key, value in measured.get("versions", {}).items()]
            parts += [f"{key}: {value or 'unset'}" for key, value in measured.get("settings", {}).items()]
            rows.append([measured["name"], " · ".join(parts)])
        else:
            reason = str(measured.get("reason", "")).strip()
            advice = f"\ninstall: {measured['install']}" if measured.get("install") else ""
            rows.append([measured["name"], f"{measured.get('status', 'no status')}: {reason}{advice}"])
    return Table("provenance", "What these numbers depend on", ("", ""), "ll", rows)


def numerics(results: Results) -> Table:
    ran = summary.ran(results)
    records = [record for measured in ran for record in measured.get("numerics", ())]
    rows = []
    for dtype in dict.fromkeys(record["dtype"] for record in records):
        here = [[r for r in measured.get("numerics", ()) if r["dtype"] == dtype] for measured in ran]
        for quantity in dict.fromkeys(r["quantity"] for own in here for r in own if not r.get("exact")):
            judged = [[r for r in own if r["quantity"] == quantity and not r.get("exact")] for own in here]
            tops = [summary.worst(own) for own in judged]
            cells = [
                flag(wording.number(top.get("ratio")), all(r["ok"] for r in own)) if top else NONE
                for top, own in zip(tops, judged, strict=True)
            ]
            rows.append([dtype, quantity, *cells, next((f"{top['allowed']:g}" for top in tops if top), NONE)])
        exact = [[r["ok"] for r in own if r.get("exact")] for own in here]
        if any(exact):
            rows.append([dtype, "exact data", *(_equal(own) for own in exact), "all equal"])
    worst = summary.worst(records)
    note = "Largest |error| over all cases, in standard deviations of the rounding error, derived for each case."
    if worst:
        note += (
            f" The worst of all: {wording.number(worst.get('ratio'))}, {worst['quantity']} of {worst['case']} "
            f"(N = {worst['N']}, d = {worst['d']}, {worst['dtype']}). {len(records):,} comparisons."
        )
    columns = ("dtype", "quantity", *(measured["name"] for measured in ran), "allowed")
    return Table("numerics", "Numerics: error against NumPy float64", columns, "ll" + "r" * (len(ran) + 1), rows, note)


def _equal(oks: list[bool]) -> str:
    return flag(f"{sum(oks)} of {len(oks)}", all(oks)) if oks else NONE


def sizes(results: Results) -> Table:
    rows, depths = [], set()
    for name, measured, setting in _groups(results, "sizes"):
        for level in LEVELS:
            cells = []
            for gradient in PROGRAMS:
                rolled, unrolled = (
                    summary.deep(summary.series(measured, level, form, gradient, setting)) for form in FORMS
                )
                depths |= set(rolled)
                added = summary.growth(unrolled)
                cells += [
                    constant(rolled),
                    f"{unrolled[max(unrolled)]:,} [{max(unrolled)}]" if unrolled else NONE,
                    NONE if added is None else flag(f"{added:+.3g}", added > 0),
                ]
            rows.append([name, f"{level}: {measured.get('units', {}).get(level, 'no unit given')}", *cells])
    columns = ("implementation", "level: unit", *twice("rolled", "unrolled", "a layer"))
    note = (
        f"Rolled: the count at all of N = {', '.join(map(str, sorted(depths)))}. Unrolled: the count at [N], and what "
        "a layer adds. Units differ between implementations: compare what a layer adds, never two absolute counts."
    )
    return Table("sizes", "Graph size: the same at every N, or growing", columns, "ll" + "r" * 6, rows, note)


def programs(results: Results) -> Table:
    rows, depths, steps = [], set(), set()
    for measured in summary.ran(results):
        for program in summary.programs(measured):
            if program.form == "unrolled":
                cells = [growing(program.counts(level)) for level in LEVELS]
            else:
                cells = [constant(program.counts(level), program.holds(level)) for level in LEVELS]
                depths |= set(program.sizes)
                steps |= {program.k} - {1}
            rows.append([measured["name"], program.name, program.layer, *cells, spanned(program.counts("loops"))])
    note = f"One count for all of N = {comma(depths)}. Unrolled: the count at [N]."
    if steps:
        note += (
            f" With k = {comma(steps)} layers a step or a group the range over N: the remainder counts. Marked where "
            "a count is above the one at the largest remainder."
        )
    columns = ("implementation", "program", "layer", *LEVELS, "loops")
    return Table("programs", "Programs of the general stack", columns, "lllrrrr", rows, note)


def compile_times(results: Results) -> Table:
    def cells(measured: Measured, gradient: bool, setting: Setting, n: int) -> list[str]:
        rolled, unrolled = (
            summary.series(measured, "compile_seconds", form, gradient, setting).get(n) for form in FORMS
        )
        return [
            wording.seconds(summary.spread(rolled).median) if rolled else NONE,
            wording.seconds(summary.spread(unrolled).median) if unrolled else NONE,
            wording.spread(summary.ratio(unrolled, rolled)) if rolled and unrolled else NONE,
        ]

    rows = []
    for name, measured, setting in _groups(results, "times"):
        rows += _by_depth(name, measured, "compile_seconds", setting, cells)
        grown = [summary.compile_growth(measured, "rolled", gradient, setting) for gradient in PROGRAMS]
        known = next((fact for fact in grown if fact), None)
        if known:
            ratios = [[f"{fact.ratio:.2f}" if fact else NONE, "", ""] for fact in grown]
            rows.append([name, f"{known.high} / {known.low}", *(cell for cells_ in ratios for cell in cells_)])
    columns = ("implementation", "N", *twice("rolled", "unrolled", "ratio"))
    note = (
        "Trace and compile from cold, without the first execution. Medians; ratio: unrolled / rolled. Last row: the "
        f"time at the largest N over the time at the smallest. {PLUS_MINUS}"
    )
    return Table("compile", "Compile time", columns, "lr" + "r" * 6, rows, note)


def run_times(results: Results) -> Table:
    def cells(measured: Measured, gradient: bool, setting: Setting, n: int) -> list[str]:
        rolled, unrolled = (summary.series(measured, "run_seconds", form, gradient, setting).get(n) for form in FORMS)
        read = summary.series(measured, "read_seconds", "rolled", gradient, setting).get(n)
        shown = [
            wording.seconds(summary.spread(rolled).median / max(n, 1)) if rolled else NONE,
            wording.spread(summary.ratio(rolled, unrolled)) if rolled and unrolled else NONE,
        ]
        return shown if gradient else [*shown, wording.spread(summary.ratio(rolled, read)) if rolled and read else NONE]

    rows = []
    for name, measured, setting in _groups(results, "times"):
        rows += _by_depth(name, measured, "run_seconds", setting, cells)
        grown = summary.linear(measured)
        if grown:
            rows.append([name, f"{grown.high} / {grown.low}", NONE, NONE, NONE, wording.spread(grown.ratio), NONE])
    columns = ("implementation", "N", *twice("a layer", "/ unrolled", "/ reading")[:5])
    note = (
        "Median time of the rolled form a layer, and its ratio to the unrolled twin and to reading the weights once "
        "from memory, each timed in the same run, interleaved. Below 1 the rolled form is faster. Last row: time of "
        f"the whole gradient at one N over another, in turn; linear in N is the ratio of the two. {PLUS_MINUS}"
    )
    return Table("run", "Run time", columns, "lr" + "r" * 5, rows, note)


def memory(results: Results) -> Table:
    def cells(measured: Measured, gradient: bool, setting: Setting, n: int) -> list[str]:
        found = (summary.series(measured, "temp_bytes", form, gradient, setting).get(n) for form in FORMS)
        return [NONE if value is None else wording.size(value) for value in found]

    rows = []
    for name, measured, setting in _groups(results, "sizes"):
        rows += _by_depth(name, measured, "temp_bytes", setting, cells)
    note = "As the compiler reports it, arguments and results excluded."
    silent = [measured["name"] for measured in summary.ran(results) if summary.reports_no_memory(measured)]
    if silent:
        note += f" Not reported by {', '.join(silent)}."
    columns = ("implementation", "N", *twice("rolled", "unrolled"))
    return Table("memory", "Temporary memory", columns, "lr" + "r" * 4, rows, note)


def remat(results: Results) -> Table:
    rows, layer = [], summary.main_layer(results, remat=True)
    for measured in summary.ran(results):
        for program in summary.programs(measured, layer):
            added, found = program.memory_a_layer(), program.counts("temp_bytes")
            if program.name.startswith("gradient") and found:
                ends = [f"{wording.size(found[n])} [{n}]" for n in (min(found), max(found))]
                carries = NONE if added is None else f"{added / program.carry_bytes:.3g}"
                a_layer = NONE if added is None else wording.size(added)
                rows.append([measured["name"], program.name, *ends, a_layer, carries])
    note = (
        f"Layer: {layer}. Temporary memory of the gradient at [N], arguments and results excluded, and what a layer "
        "adds, between depths of one remainder by k. One carry every k layers would be 1/k."
    )
    columns = ("implementation", "program", "few layers", "many", "a layer", "in carries")
    return Table("remat", "Memory of each choice of remat", columns, "llrrrr", rows, note)


def alternatives(results: Results) -> Table:
    rows = []
    for name, measured, setting in _groups(results, "sizes", "times"):
        for form in summary.alternatives(measured):
            for gradient in PROGRAMS:
                counts = summary.deep(summary.series(measured, "compiled", form, gradient, setting))
                added = summary.growth(counts)
                cells = [
                    f"{counts[max(counts)]:,} [{max(counts)}]" if counts else NONE,
                    NONE if added is None else f"{added:+.3g}" if added else "0",
                    _against_rolled(measured, "compile_seconds", form, gradient, setting),
                    _against_rolled(measured, "run_seconds", form, gradient, setting),
                ]
                if set(cells) != {NONE}:
                    rows.append([name, f"{form}, gradient" if gradient else form, *cells])
    columns = ("implementation", "form", "compiled\nsize", "\na layer", "compile\n/ rolled", "run\n/ rolled")
    note = "At [N], the largest that both were measured at. Above 1 the alternative is slower than the rolled stack."
    return Table("alternatives", "What users of each framework do today", columns, "llrrrr", rows, note)


def _against_rolled(measured: Measured, key: str, form: str, gradient: bool, setting: Setting) -> str:
    other, rolled = (summary.series(measured, key, which, gradient, setting) for which in (form, "rolled"))
    n = max((n for n in other if n in rolled), default=None)
    return NONE if n is None else f"{wording.times(summary.ratio(other[n], rolled[n]).median)} [{n}]"


def recompiles(results: Results) -> Table:
    rows = [
        [measured["name"], record["what"], flag(str(record["programs"]), record["ok"]), str(record["declared"])]
        for measured in summary.ran(results)
        for record in measured.get("recompiles", ())
    ]
    return Table("recompiles", "Programs compiled", ("implementation", "what", "programs", "declared"), "llrr", rows)


def capabilities(results: Results) -> Table:
    plain = results.get("capabilities") or {"names": [], "rows": []}
    rows = [[row["capability"], *row["states"]] for row in plain["rows"]]
    note = "\n".join(f"[{number}] {note['text']}" for number, note in enumerate(plain.get("notes", ()), 1))
    return Table("capabilities", "Capabilities", ("", *plain["names"]), "l" * (len(plain["names"]) + 1), rows, note)


def _groups(results: Results, *blocks: str) -> list[tuple[str, Measured, Setting]]:
    """What a group of rows is about; its name says the setting where there are several."""
    several = len({setting for block in blocks for setting in summary.settings(results, block)}) > 1
    return [
        (f"{measured['name']}\n{setting}" if several else measured["name"], measured, setting)
        for measured in summary.ran(results)
        for setting in dict.fromkeys(setting for block in blocks for setting in summary.own_settings(measured, block))
    ]


def _by_depth(
    name: str,
    measured: Measured,
    key: str,
    setting: Setting,
    cells: Callable[[Measured, bool, Setting, int], list[str]],
) -> list[list[str]]:
    """One row for each N at which `key` was measured: the cells of the forward program, then of the gradient."""
    depths = {n for f in FORMS for g in PROGRAMS for n in summary.series(measured, key, f, g, setting)}
    rows = [
        [name, str(n), *(cell for gradient in PROGRAMS for cell in cells(measured, gradient, setting, n))]
        for n in sorted(depths)
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
