"""The tables of the bench, and the one that says when a scan is worth it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from implementations import wording
from implementations.report.table import NONE, Table
from implementations.results import bench_facts, worth
from implementations.results.bench_facts import NOISY, RAW
from implementations.results.records import FORMS, LIMIT, PROGRAMS, Results, Time

TOO_NOISY = "too noisy"


def steps(results: Results) -> Table:
    """A training step of real layers: the rolled form, its twin, and what users do instead, each compiled from cold."""
    rows, sizes, timed = [], {}, [(m.name, row) for m in results.ran for row in bench_facts.steps(m)]
    for name, row in timed:
        said = ", ".join(f"{symbol} {size}" for symbol, size in {"N": row.N, **row.sizes}.items())
        sizes[row.layer] = f"{said}, batch {row.batch}"
        for form, seconds in row.run_seconds.items():
            layer, ratios = row.layer.replace("_", " "), [NONE, NONE]
            compiled, rolled = (row.compile_seconds[of][0] for of in (form, "rolled"))
            if form != "rolled":
                layer, ratios = "", [wording.spread(bench_facts.against(row, form)), f"{rolled / compiled:.2f}"]
            times = wording.seconds(median(seconds)), wording.seconds(compiled)
            rows.append([name, layer, form, times[0], ratios[0], times[1], ratios[1]])
    note = (
        "A step: gradient and update of all parameters, median time; forms are timed in rounds of a random order, "
        "compiled as users call the compiler, without options of ours. "
        "Compile: what the first call of the gradient takes beyond the second, from cold. Ratios: rolled over the form "
        "of the row, below 1 the scan takes less. ±: half the distance between the quartiles. "
        f"Sizes: {'; '.join(f'{layer} {said}' for layer, said in sizes.items())}; float32."
    )
    note += _not_run(timed, lambda row: row.layer)
    columns = ("implementation", "layer", "form", "a step", "rolled\nover it", "compile", "rolled\nover it")
    return Table("steps", "A training step, and what users do instead of a scan", columns, "lllrrrr", rows, note)


def bench(results: Results) -> Table:
    """Program and layer stand in one cell, batch and dtype beside the sizes: else the table is too wide to print."""
    rows, timed = [], _beside_their_limit(results)
    for name, row in timed:
        raw = next((form for form in row.run_seconds if form.startswith(RAW)), "")
        noisy, seconds = bench_facts.is_noisy(row, "rolled"), median(row.run_seconds["rolled"])
        a_layer = TOO_NOISY if noisy else wording.seconds(seconds / row.N)
        ratios = [_over(row, "rolled", other) for other in (LIMIT, "unrolled", raw)]
        rows.append([name, f"{row.layer.replace('_', ' ')} {row.program}", _sizes(row), a_layer, *ratios])
    note = (
        "Median time of the rolled form a layer, and its ratio to that of the limit, of the unrolled twin and of the "
        "raw primitive, timed in rounds of a random order. The limit of a single vector: reading the weights once; of "
        "a batch (×B): one product of it with as many numbers. Gradients and training steps, which need more, have the "
        "limit of their forward program. A training step is a gradient and an update, two compiled functions. float32 "
        f"where no dtype is named. ±: half the distance between the extremes of five parts of the rounds. {TOO_NOISY}: "
        f"above {NOISY:.0%}, for one of the two or their ratio, in the quietest of up to three tries."
    )
    note += _not_run(timed, lambda row: row.name)
    columns = ("implementation", "program", "d, N", "a layer", "over\nlimit", "over\nunrolled", "over\nraw")
    return Table("bench", "As fast as memory allows", columns, "llrrrrr", rows, note)


def _beside_their_limit(results: Results) -> list[tuple[str, Time]]:
    return [(measured.name, row) for measured in results.ran for row in bench_facts.rows(measured)]


def _not_run(timed: list[tuple[str, Time]], case: Callable[[Time], str]) -> str:
    said = [f"{name}, {case(row)}, {form}: {why}" for name, row in timed for form, why in row.skipped.items()]
    return f" Not run: {'; '.join(said)}." if said else ""


def _sizes(row: Time) -> str:
    said = f"{row.width[1]}, {row.N}" + (f" ×{row.batch}" if row.batch else "")
    return said if row.dtype == "float32" else f"{said} {row.dtype}"


def _over(row: Time, form: str, other: str) -> str:
    ratio = bench_facts.over(row, form, other)
    return NONE if ratio is None else TOO_NOISY if bench_facts.is_noisy(row, form, other) else wording.spread(ratio)


def alternatives(results: Results) -> Table:
    """What users do today at the sizes of the bench: a row for each, a column for each size."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, row in _beside_their_limit(results):
        for form in (*bench_facts.others(row), *(form for form in row.skipped if form not in FORMS)):
            said = form if row.program == "forward" else f"{form}, {row.program}"
            found.setdefault((name, said), {})[_sizes(row)] = _over(row, form, "rolled")
    sizes = list(dict.fromkeys(size for cells in found.values() for size in cells))
    rows = [[name, form, *(cells.get(size, NONE) for size in sizes)] for (name, form), cells in found.items()]
    note = "Time over that of the rolled form, at d, N. Above 1 the alternative is slower. Not run: the table above."
    columns = ("implementation", "form", *sizes)
    title = "What users of each framework do today, beside the rolled form"
    return Table("bench-alternatives", title, columns, "ll" + "r" * len(sizes), rows, note)


def peaks(results: Results) -> Table:
    rows = []
    for name, row in _beside_their_limit(results):
        if row.peak_bytes is not None:
            cells = [wording.size(row.weights_bytes), wording.size(row.peak_bytes)]
            ratio = f"{row.peak_bytes / row.weights_bytes:.2f}"
            rows.append([name, f"{row.layer} {row.program}", _sizes(row), *cells, ratio])
    note = (
        "What the process holds at most during one call of the rolled form, beside what it held before: the weights "
        "are not in it, results are. The gradient of the weights is once their size. Nothing where the framework kept "
        "what an earlier call had freed."
    )
    columns = ("implementation", "program", "d, N", "weights", "peak", "peak / weights")
    return Table("bench-memory", "Peak memory of the process", columns, "llrrrr", rows, note)


def compiling(results: Results) -> Table:
    rows = []
    for name, row in _beside_their_limit(results):
        if row.compile_seconds:
            pairs = [row.compile_seconds.get(form) for form in FORMS]
            cells = [said for pair in pairs for said in (map(wording.seconds, pair) if pair else (NONE, NONE))]
            rows.append([name, f"{row.layer} {row.program}", _sizes(row), *cells])
    note = (
        "Seconds to trace and compile, once each: cold, and then the same program again in the same process, with what "
        "the framework keeps by itself: PyTorch files of what it compiled, JAX and TensorFlow nothing of the compiler."
    )
    forms = [f"{form}\n{state}" for form in FORMS for state in ("cold", "warm")]
    columns = ("implementation", "program", "d, N", *forms)
    return Table("bench-compile", "Compile time, cold and warm", columns, "llrrrrr", rows, note)


def worth_it(results: Results) -> Table:
    rows, depths = [], set()
    for measured in results.ran:
        for program in PROGRAMS:
            facts = [worth.worth(measured, program, calls) for calls in worth.CALLS]
            depths |= {n for fact in facts if fact for n in fact.depths}
            if any(facts):
                rows.append([measured.name, program, *(str(fact) if fact else NONE for fact in facts)])
    note = (
        "Cost: compiling once from cold, and so many calls; medians. From which N on the rolled form costs less than "
        "the unrolled one, there and at every deeper N at which both were measured, of N = "
        f"{', '.join(map(str, sorted(depths)))}."
    )
    columns = ("implementation", "program", *map(wording.calls, worth.CALLS))
    return Table("worth", "When is a scan worth it?", columns, "ll" + "r" * len(worth.CALLS), rows, note)
