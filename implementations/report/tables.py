"""The tables of the comparison, as plain text cells: one definition for the terminal and for the page.

A cell that ends with BAD is not as declared; a dash means that this was not measured.
"""

from __future__ import annotations

from implementations import wording
from implementations.report import tables_bench, tables_devices, tables_sizes, tables_times, tables_trained
from implementations.report.table import NONE, Table, flag
from implementations.results import summary
from implementations.results.records import Results
from reference.releases import TESTED


def tables(results: Results) -> list[Table]:
    """Provenance first: no number stands before what it depends on. Tables without a row are left out."""
    made = (
        provenance(results),
        numerics(results),
        tables_sizes.sizes(results),
        tables_sizes.programs(results),
        tables_bench.steps(results),
        tables_times.compile_times(results),
        tables_times.run_times(results),
        tables_bench.worth_it(results),
        tables_bench.bench(results),
        tables_bench.alternatives(results),
        tables_bench.compiling(results),
        tables_bench.peaks(results),
        tables_sizes.memory(results),
        tables_sizes.remat(results),
        tables_trained.checkpoint(results),
        tables_trained.checkpoint_pairs(results),
        tables_trained.checkpoint_sizes(results),
        tables_trained.training(results),
        tables_times.alternatives(results),
        recompiles(results),
        *tables_devices.tables(results.devices),
        *([] if results.mode == "bench" else [capabilities(results)]),  # nothing of it was tried
    )
    return [_without_empty_columns(table) for table in made if table.rows]


def _without_empty_columns(table: Table) -> Table:
    """A quick run has no gradients: a column of dashes says no more than no column."""
    empty = {i for i in range(len(table.columns)) if all(row[i] in ("", NONE) for row in table.rows)}
    kept = [i for i, column in enumerate(table.columns) if i not in empty or "\n" not in column]
    columns, align = tuple(table.columns[i] for i in kept), "".join(table.align[i] for i in kept)
    return table._replace(columns=columns, align=align, rows=[[row[i] for i in kept] for row in table.rows])


def provenance(results: Results) -> Table:
    rows = [[key, value] for key, value in results.provenance.items()]
    for measured in results.implementations:
        if measured.status == "ok":
            parts = [f"{key} {value}{_untested(key, value)}" for key, value in measured.versions.items()]
            parts += [f"{key}: {value or 'unset'}" for key, value in measured.settings.items()]
            rows.append([measured.name, " · ".join(parts)])
        else:
            advice = f"\ninstall: {measured.install}" if measured.install else ""
            rows.append([measured.name, f"{measured.status}: {measured.reason.strip()}{advice}"])
    return Table("provenance", "What these numbers depend on", ("", ""), "ll", rows)


def _untested(package: str, version: str) -> str:
    """Words for a release with which none of this is tested. It is not refused."""
    tested = TESTED.get(package, (version.partition("+")[0],))
    return "" if version.partition("+")[0] in tested else f" (tested: {', '.join(tested)})"


def numerics(results: Results) -> Table:
    ran = results.ran
    records = [record for measured in ran for record in measured.numerics]
    rows = []
    for dtype in dict.fromkeys(record.dtype for record in records):
        here = [[r for r in measured.numerics if r.dtype == dtype] for measured in ran]
        for quantity in dict.fromkeys(r.quantity for own in here for r in own if not r.exact):
            judged = [[r for r in own if r.quantity == quantity and not r.exact] for own in here]
            tops = [summary.worst(own) for own in judged]
            cells = [
                flag(wording.number(top.ratio), all(r.ok for r in own)) if top else NONE
                for top, own in zip(tops, judged, strict=True)
            ]
            rows.append([dtype, quantity, *cells, next((f"{top.allowed:g}" for top in tops if top), NONE)])
        exact = [[r.ok for r in own if r.exact] for own in here]
        if any(exact):
            rows.append([dtype, "exact data", *(_equal(own) for own in exact), "all equal"])
    worst = summary.worst(records)
    note = "Largest |error| over all cases, in standard deviations of the rounding error, derived for each case."
    if worst:
        note += (
            f" The worst of all: {wording.number(worst.ratio)}, {worst.quantity} of {worst.case} "
            f"(N = {worst.N}, d = {worst.d}, {worst.dtype}). {len(records):,} comparisons."
        )
    columns = ("dtype", "quantity", *(measured.name for measured in ran), "allowed")
    return Table("numerics", "Numerics: error against NumPy float64", columns, "ll" + "r" * (len(ran) + 1), rows, note)


def _equal(oks: list[bool]) -> str:
    return flag(f"{sum(oks)} of {len(oks)}", all(oks)) if oks else NONE


def recompiles(results: Results) -> Table:
    rows = [
        [measured.name, record.what, flag(str(record.programs), record.ok), str(record.declared)]
        for measured in results.ran
        for record in measured.recompiles
    ]
    return Table("recompiles", "Programs compiled", ("implementation", "what", "programs", "declared"), "llrr", rows)


def capabilities(results: Results) -> Table:
    matrix = results.capabilities
    rows = [[row.capability, *row.states] for row in matrix.rows]
    note = "\n".join(f"[{number}] {note.text}" for number, note in enumerate(matrix.notes, 1))
    return Table("capabilities", "Capabilities", ("", *matrix.names), "l" * (len(matrix.names) + 1), rows, note)
