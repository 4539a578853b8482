"""The tables of the bench, and the one that says when a scan is worth it."""

from __future__ import annotations

from statistics import median

from implementations import wording
from implementations.report.table import NONE, Table
from implementations.results import bench_facts, summary, worth
from implementations.results.bench_facts import LIMIT, NOISY, Row
from implementations.results.summary import PROGRAMS, Results

TOO_NOISY = "too noisy"


def steps(results: Results) -> Table:
    """A training step of real layers: the rolled form, its twin, and what users do instead, each compiled from cold."""
    rows, left_out, sizes = [], [], {}
    for measured in summary.ran(results):
        for row in bench_facts.steps(measured):
            seconds = row["run_seconds"]
            sizes[row["layer"]] = ", ".join(f"{k} {v}" for k, v in [("N", row["N"]), *row["sizes"].items()])
            sizes[row["layer"]] += f", batch {row['batch']}"
            for form in seconds:
                name = row["layer"].replace("_", " ") if form == "rolled" else ""
                time = wording.seconds(median(seconds[form]))
                compiled, rolled = (row["compile_seconds"][of][0] for of in (form, "rolled"))
                ratios = wording.spread(bench_facts.against(row, form)), f"{rolled / compiled:.2f}"
                shown = (NONE, NONE) if form == "rolled" else ratios
                rows.append([measured["name"], name, form, time, shown[0], wording.seconds(compiled), shown[1]])
            left_out += [f"{measured['name']}, {row['layer']}, {form}: {why}" for form, why in row["skipped"].items()]
    note = (
        "A step: gradient and update of all parameters, median time; forms are timed in rounds of a random order, "
        "compiled as users call the compiler, without options of ours. "
        "Compile: what the first call of the gradient takes beyond the second, from cold. Ratios: rolled over the form "
        "of the row, below 1 the scan takes less. ±: half the distance between the quartiles. "
        f"Sizes: {'; '.join(f'{layer} {said}' for layer, said in sizes.items())}; float32."
    )
    note += f" Not run: {'; '.join(left_out)}." if left_out else ""
    columns = ("implementation", "layer", "form", "a step", "rolled\nover it", "compile", "rolled\nover it")
    return Table("steps", "A training step, and what users do instead of a scan", columns, "lllrrrr", rows, note)


def bench(results: Results) -> Table:
    """Program and layer stand in one cell, batch and dtype beside the sizes: else the table is too wide to print."""
    rows, left_out = [], []
    for measured in summary.ran(results):
        for row in bench_facts.rows(measured):
            seconds, raw = bench_facts.layer_seconds(row), bench_facts.raw(row)
            noisy = bench_facts.is_noisy(row, "rolled")
            a_layer = NONE if seconds is None else TOO_NOISY if noisy else wording.seconds(seconds)
            ratios = [_over(row, "rolled", other) for other in (LIMIT, "unrolled", raw or "")]
            said = f"{row['layer'].replace('_', ' ')} {row['program']}"
            rows.append([measured["name"], said, _sizes(row), a_layer, *ratios])
            reasons = (f"{form}: {reason}" for form, reason in row["skipped"].items())
            left_out += [f"{measured['name']}, {bench_facts.name(row)}, {reason}" for reason in reasons]
    note = (
        "Median time of the rolled form a layer, and its ratio to that of the limit, of the unrolled twin and of the "
        "raw primitive, timed in rounds of a random order. The limit of a single vector: reading the weights once; of "
        "a batch (×B): one product of it with as many numbers. Gradients and training steps, which need more, have the "
        "limit of their forward program. A training step is a gradient and an update, two compiled functions. float32 "
        f"where no dtype is named. ±: half the distance between the extremes of five parts of the rounds. {TOO_NOISY}: "
        f"above {NOISY:.0%}, for one of the two or their ratio, in the quietest of up to three tries."
    )
    note += f" Not run: {'; '.join(left_out)}." if left_out else ""
    columns = ("implementation", "program", "d, N", "a layer", "over\nlimit", "over\nunrolled", "over\nraw")
    return Table("bench", "As fast as memory allows", columns, "llrrrrr", rows, note)


def _sizes(row: Row) -> str:
    said = f"{bench_facts.width(row['sizes'])[1]}, {row['N']}" + (f" ×{row['batch']}" if row["batch"] else "")
    return said if row["dtype"] == "float32" else f"{said} {row['dtype']}"


def _over(row: Row, form: str, other: str) -> str:
    ratio = bench_facts.over(row, form, other)
    return NONE if ratio is None else TOO_NOISY if bench_facts.is_noisy(row, form, other) else wording.spread(ratio)


def alternatives(results: Results) -> Table:
    """What users do today at the sizes of the bench: a row for each, a column for each size."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for measured in summary.ran(results):
        for row in bench_facts.rows(measured):
            for form in (*bench_facts.others(row), *(f for f in row["skipped"] if f not in summary.FORMS)):
                said = form if row["program"] == "forward" else f"{form}, {row['program']}"
                found.setdefault((measured["name"], said), {})[_sizes(row)] = _over(row, form, "rolled")
    sizes = list(dict.fromkeys(size for cells in found.values() for size in cells))
    rows = [[name, form, *(cells.get(size, NONE) for size in sizes)] for (name, form), cells in found.items()]
    note = "Time over that of the rolled form, at d, N. Above 1 the alternative is slower. Not run: the table above."
    columns = ("implementation", "form", *sizes)
    title = "What users of each framework do today, beside the rolled form"
    return Table("bench-alternatives", title, columns, "ll" + "r" * len(sizes), rows, note)


def peaks(results: Results) -> Table:
    rows = []
    for measured in summary.ran(results):
        for row in bench_facts.rows(measured):
            weights = bench_facts.in_weights(row)
            if weights is not None:
                said = f"{row['layer']} {row['program']}"
                cells = [wording.size(row["weights_bytes"]), wording.size(row["peak_bytes"]), f"{weights:.2f}"]
                rows.append([measured["name"], said, _sizes(row), *cells])
    note = (
        "What the process holds at most during one call of the rolled form, beside what it held before: the weights "
        "are not in it, results are. The gradient of the weights is once their size. Nothing where the framework kept "
        "what an earlier call had freed."
    )
    columns = ("implementation", "program", "d, N", "weights", "peak", "peak / weights")
    return Table("bench-memory", "Peak memory of the process", columns, "llrrrr", rows, note)


def compiling(results: Results) -> Table:
    rows = []
    for measured in summary.ran(results):
        for row in bench_facts.rows(measured):
            if row["compile_seconds"]:
                pairs = [row["compile_seconds"].get(form) for form in summary.FORMS]
                cells = [said for pair in pairs for said in (map(wording.seconds, pair) if pair else (NONE, NONE))]
                rows.append([measured["name"], f"{row['layer']} {row['program']}", _sizes(row), *cells])
    note = (
        "Seconds to trace and compile, once each: cold, and then the same program again in the same process, with what "
        "the framework keeps by itself: PyTorch files of what it compiled, JAX and TensorFlow nothing of the compiler."
    )
    forms = [f"{form}\n{state}" for form in summary.FORMS for state in ("cold", "warm")]
    columns = ("implementation", "program", "d, N", *forms)
    return Table("bench-compile", "Compile time, cold and warm", columns, "llrrrrr", rows, note)


def worth_it(results: Results) -> Table:
    rows, depths = [], set()
    for measured in summary.ran(results):
        for gradient, program in PROGRAMS.items():
            facts = [worth.worth(measured, gradient, calls) for calls in worth.CALLS]
            depths |= {n for fact in facts if fact for n in fact.depths}
            if any(facts):
                rows.append([measured["name"], program, *(worth.said(fact) or NONE for fact in facts)])
    note = (
        "Cost: compiling once from cold, and so many calls; medians. From which N on the rolled form costs less than "
        "the unrolled one, there and at every deeper N at which both were measured, of N = "
        f"{', '.join(map(str, sorted(depths)))}."
    )
    columns = ("implementation", "program", *(f"{n:,} call{'s' * (n > 1)}" for n in worth.CALLS))
    return Table("worth", "When is a scan worth it?", columns, "ll" + "r" * len(worth.CALLS), rows, note)
