"""The tables of what was timed at each N, and of what users do today."""

from __future__ import annotations

from implementations import wording
from implementations.report.table import NONE, PLUS_MINUS, Table, by_depth, largest, over, seconds, twice
from implementations.results import laws, summary
from implementations.results.records import PROGRAMS, Measured, Results


def compile_times(results: Results) -> Table:
    rows = []
    for measured in results.ran:
        rows += by_depth(
            measured,
            "compile_seconds",
            lambda n, rolled, unrolled, _: [seconds(rolled), seconds(unrolled), over(unrolled, rolled)],
        )
        grown = [summary.compile_growth(measured, program) for program in PROGRAMS]
        known = next((fact for fact in grown if fact), None)
        if known:
            ratios = [[f"{fact.ratio.median:.2f}" if fact else NONE, "", ""] for fact in grown]
            rows.append([measured.name, f"{known.high} / {known.low}", *ratios[0], *ratios[1]])
    columns = ("implementation", "N", *twice("rolled", "unrolled", "ratio"))
    note = (
        "Trace and compile from cold, without the first execution. Medians; ratio: unrolled / rolled. Last row: the "
        f"time at the largest N over the time at the smallest. {PLUS_MINUS}"
    )
    return Table("compile", "Compile time", columns, "lr" + "r" * 6, rows, note)


def run_times(results: Results) -> Table:
    rows = []
    for measured in results.ran:
        found = by_depth(
            measured,
            "run_seconds",
            lambda n, rolled, unrolled, read: [seconds(rolled, max(n, 1)), over(rolled, unrolled), over(rolled, read)],
        )
        rows += [row[:-1] for row in found]  # a gradient needs more than reading the weights
        grown = summary.linear(measured)
        if grown:
            rows.append(
                [measured.name, f"{grown.high} / {grown.low}", NONE, NONE, NONE, wording.spread(grown.ratio), NONE]
            )
    columns = ("implementation", "N", *twice("a layer", "/ unrolled", "/ reading")[:5])
    note = (
        "Median time of the rolled form a layer, and its ratio to the unrolled twin and to reading the weights once "
        "from memory, each timed in the same run, interleaved. Below 1 the rolled form is faster. Last row: time of "
        f"the whole gradient at one N over another, in turn; linear in N is the ratio of the two. {PLUS_MINUS}"
    )
    return Table("run", "Run time", columns, "lr" + "r" * 5, rows, note)


def alternatives(results: Results) -> Table:
    rows = []
    for measured in results.ran:
        for form in summary.alternatives(measured):
            for program in PROGRAMS:
                counts = laws.program(measured.sizes, form, program).counts("compiled")
                added = summary.growth(counts)
                cells = [
                    largest(counts),
                    NONE if added is None else f"{added:+.3g}" if added else "0",
                    _against_rolled(measured, "compile_seconds", form, program),
                    _against_rolled(measured, "run_seconds", form, program),
                ]
                if set(cells) != {NONE}:
                    rows.append([measured.name, form if program == "forward" else f"{form}, {program}", *cells])
    columns = ("implementation", "form", "compiled\nsize", "\na layer", "compile\n/ rolled", "run\n/ rolled")
    note = "At [N], the largest that both were measured at. Above 1 the alternative is slower than the rolled stack."
    return Table("alternatives", "What users of each framework do today", columns, "llrrrr", rows, note)


def _against_rolled(measured: Measured, key: str, form: str, program: str) -> str:
    found = summary.against(measured, key, form, "rolled", program)
    return f"{wording.times(found.ratio.median)} [{found.n}]" if found else NONE
