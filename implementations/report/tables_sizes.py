"""The tables of what was counted: graph size and temporary memory."""

from __future__ import annotations

from implementations import wording
from implementations.interface import LEVELS
from implementations.report.table import NONE, Table, by_depth, comma, constant, growing, spanned, twice
from implementations.results import laws, summary
from implementations.results.records import FORMS, PROGRAMS, Results


def sizes(results: Results) -> Table:
    rows, depths = [], set()
    for measured in results.ran:
        for level in LEVELS if measured.sizes else ():
            cells = []
            for program in PROGRAMS:
                rolled, unrolled = (laws.program(measured.sizes, form, program) for form in FORMS)
                depths |= set(rolled.counts(level))
                added = summary.growth(unrolled.counts(level))
                a_layer = NONE if added is None else f"{added:+.3g}"
                cells += [constant(rolled, level), growing(unrolled, level), a_layer]
            rows.append([measured.name, f"{level}: {measured.units.get(level, 'no unit given')}", *cells])
    columns = ("implementation", "level: unit", *twice("rolled", "unrolled", "a layer"))
    note = (
        f"Rolled: the count at all of N = {comma(depths)}. Unrolled: the count at [N], and what "
        "a layer adds. Units differ between implementations: compare what a layer adds, never two absolute counts."
    )
    return Table("sizes", "Graph size: the same at every N, or growing", columns, "ll" + "r" * 6, rows, note)


def programs(results: Results) -> Table:
    rows, depths, steps = [], set(), set()
    for measured in results.ran:
        for program in summary.programs(measured):
            rolled = program.of.form == "rolled"
            cells = [(constant if rolled else growing)(program, level) for level in LEVELS]
            if rolled:
                depths |= set(program.sizes)
                steps |= {program.k} - {1}
            loops = spanned(program.counts(laws.LOOPS))
            rows.append([measured.name, program.of.name, program.of.layer, *cells, loops])
    note = f"One count for all of N = {comma(depths)}. Unrolled: the count at [N]."
    if steps:
        note += (
            f" With k = {comma(steps)} layers a step or a group the range over N: the remainder counts. Marked where "
            "a count is above the one at the largest remainder."
        )
    columns = ("implementation", "program", "layer", *LEVELS, "loops")
    return Table("programs", "Programs of the general stack", columns, "lllrrrr", rows, note)


def memory(results: Results) -> Table:
    def cells(n: int, *forms: int | None) -> list[str]:
        return [NONE if value is None else wording.size(value) for value in forms[:2]]

    rows = [row for measured in results.ran for row in by_depth(measured, "temp_bytes", cells)]
    note = "As the compiler reports it, arguments and results excluded."
    silent = [measured.name for measured in results.ran if summary.reports_no_memory(measured)]
    if silent:
        note += f" Not reported by {', '.join(silent)}."
    columns = ("implementation", "N", *twice("rolled", "unrolled"))
    return Table("memory", "Temporary memory", columns, "lr" + "r" * 4, rows, note)


def remat(results: Results) -> Table:
    rows, layer = [], summary.main_layer(results, remat=True)
    for measured in results.ran:
        for program in summary.gradients(measured, layer):
            added, found = summary.memory_a_layer(program), program.counts("temp_bytes")
            if found:
                ends = [f"{wording.size(found[n])} [{n}]" for n in (min(found), max(found))]
                carries = NONE if added is None else f"{added / program.of.carry_bytes:.3g}"
                a_layer = NONE if added is None else wording.size(added)
                rows.append([measured.name, program.of.name, *ends, a_layer, carries])
    note = (
        f"Layer: {layer}. Temporary memory of the gradient at [N], arguments and results excluded, and what a layer "
        "adds, between depths of one remainder by k. One carry every k layers would be 1/k."
    )
    columns = ("implementation", "program", "few layers", "many", "a layer", "in carries")
    return Table("remat", "Memory of each choice of remat", columns, "llrrrr", rows, note)
