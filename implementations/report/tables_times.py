"""The tables of what was timed at each N, and of what users do today."""

from __future__ import annotations

from implementations import wording
from implementations.report.table import NONE, PLUS_MINUS, Table, by_depth, groups, largest, twice
from implementations.results import laws, summary
from implementations.results.records import FORMS, LIMIT, PROGRAMS, Measured, Results, Setting


def compile_times(results: Results) -> Table:
    def cells(measured: Measured, program: str, setting: Setting, n: int) -> list[str]:
        rolled, unrolled = (
            summary.series(measured, "compile_seconds", form, program, setting).get(n) for form in FORMS
        )
        return [
            wording.seconds(summary.spread(rolled).median) if rolled else NONE,
            wording.seconds(summary.spread(unrolled).median) if unrolled else NONE,
            wording.spread(summary.ratio(unrolled, rolled)) if rolled and unrolled else NONE,
        ]

    rows = []
    for name, measured, setting in groups(results, "times"):
        rows += by_depth(name, measured, "compile_seconds", setting, cells)
        grown = [summary.compile_growth(measured, program, setting) for program in PROGRAMS]
        known = next((fact for fact in grown if fact), None)
        if known:
            ratios = [[f"{fact.ratio.median:.2f}" if fact else NONE, "", ""] for fact in grown]
            rows.append([name, f"{known.high} / {known.low}", *ratios[0], *ratios[1]])
    columns = ("implementation", "N", *twice("rolled", "unrolled", "ratio"))
    note = (
        "Trace and compile from cold, without the first execution. Medians; ratio: unrolled / rolled. Last row: the "
        f"time at the largest N over the time at the smallest. {PLUS_MINUS}"
    )
    return Table("compile", "Compile time", columns, "lr" + "r" * 6, rows, note)


def run_times(results: Results) -> Table:
    def cells(measured: Measured, program: str, setting: Setting, n: int) -> list[str]:
        rolled, unrolled, read = (
            summary.series(measured, "run_seconds", form, program, setting).get(n) for form in (*FORMS, LIMIT)
        )
        shown = [
            wording.seconds(summary.spread(rolled).median / max(n, 1)) if rolled else NONE,
            wording.spread(summary.ratio(rolled, unrolled)) if rolled and unrolled else NONE,
            wording.spread(summary.ratio(rolled, read)) if rolled and read else NONE,
        ]
        return shown if program == "forward" else shown[:2]

    rows = []
    for name, measured, setting in groups(results, "times"):
        rows += by_depth(name, measured, "run_seconds", setting, cells)
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


def alternatives(results: Results) -> Table:
    rows = []
    for name, measured, setting in groups(results, "sizes", "times"):
        for form in summary.alternatives(measured):
            for program in PROGRAMS:
                counts = laws.program(measured.sizes, form, program, setting).counts("compiled")
                added = summary.growth(counts)
                cells = [
                    largest(counts),
                    NONE if added is None else f"{added:+.3g}" if added else "0",
                    _against_rolled(measured, "compile_seconds", form, program, setting),
                    _against_rolled(measured, "run_seconds", form, program, setting),
                ]
                if set(cells) != {NONE}:
                    rows.append([name, form if program == "forward" else f"{form}, {program}", *cells])
    columns = ("implementation", "form", "compiled\nsize", "\na layer", "compile\n/ rolled", "run\n/ rolled")
    note = "At [N], the largest that both were measured at. Above 1 the alternative is slower than the rolled stack."
    return Table("alternatives", "What users of each framework do today", columns, "llrrrr", rows, note)


def _against_rolled(measured: Measured, key: str, form: str, program: str, setting: Setting) -> str:
    other, rolled = (summary.series(measured, key, which, program, setting) for which in (form, "rolled"))
    n = max((n for n in other if n in rolled), default=None)
    return NONE if n is None else f"{wording.times(summary.ratio(other[n], rolled[n]).median)} [{n}]"
