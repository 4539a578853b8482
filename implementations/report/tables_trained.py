"""The tables of a real checkpoint, and the one of training."""

from __future__ import annotations

import textwrap

import numpy as np

from implementations import wording
from implementations.interface import LEVELS
from implementations.report.table import NONE, Table, comma, constant, flag, growing, twice
from implementations.results import laws, summary
from implementations.results.records import FORMS, PROGRAMS, Results


def checkpoint(results: Results) -> Table:
    blocks = {m.name: m.checkpoint for m in results.ran if m.checkpoint}
    found = [block for block in blocks.values() if block.status == "ok"]
    model, num_layers = next((b.model for b in blocks.values()), ""), len(found[0].hidden) if found else 0
    rows = []
    for name, block in blocks.items():
        if not block.embeddings:
            rows.append([name, block.status, *[NONE] * (num_layers + 2)])
            continue
        cells = [flag(_over(one.ulps, one.numpy_ulps), one.ok) for one in block.hidden]
        cosine = block.embeddings.cosine
        cells.append(_power(block.embeddings.difference))
        cells.append(flag(_power(None if cosine is None else max(0.0, 1 - cosine)), block.embeddings.ok))
        rows.append([name, f"{block.tokens:,}", *cells])
    note = ""
    for one in found[:1]:
        times = min(hidden.allowed / hidden.numpy_ulps for hidden in one.hidden)
        short = _power(1 - one.embeddings.allowed) if one.embeddings else NONE
        note = (
            f"{one.sentences} sentences in float32, one scan. Hidden states after each layer: the largest error "
            f"against NumPy float64 in errors of NumPy float32; {times:.3g} are allowed, and a few ulps always. Their "
            f"embeddings: the largest difference of a number, and 1 - cosine with the right one, at most {short}."
        )
    reasons = {f"{block.reason}: {block.install}" for block in blocks.values() if block.status != "ok"}
    note = " ".join([note, *(f"Not run: {reason}" for reason in sorted(reasons))]).strip()
    layers = (f"layer\n{i}" for i in range(num_layers))
    columns = ("implementation", "tokens", *layers, "embeddings\noff by", "embeddings\n1 - cosine")
    return Table("checkpoint", f"A real checkpoint: {model}", columns, "l" + "r" * (len(columns) - 1), rows, note)


def _over(value: float | None, unit: float) -> str:
    return wording.number(value if value is None or not unit else value / unit)


def _power(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def checkpoint_pairs(results: Results) -> Table:
    """Of each sentence the others, the nearest first."""
    blocks = [(m.name, block) for m in results.ran if (block := summary.checkpoint(m))]
    listed = list(zip(*(block.pairs for _, block in blocks), strict=True))
    order = {pair[0].one: i for i, pair in reversed(list(enumerate(listed)))}
    rows = []
    for pair in sorted(listed, key=lambda pair: (order[pair[0].one], -pair[0].reference)):
        texts = [textwrap.shorten(text, 60, placeholder=" ...") or "(empty)" for text in (pair[0].one, pair[0].other)]
        rows.append([*texts, f"{pair[0].reference:.4f}", *(_decimal(own.similarity) for own in pair)])
    columns = ("sentence", "another", "reference", *(name for name, _ in blocks))
    note = "Cosine of their embeddings. The model was trained on English; of others it knows some words."
    return Table("checkpoint-pairs", "Sentences near and far", columns, "ll" + "r" * (len(columns) - 2), rows, note)


def _decimal(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def checkpoint_sizes(results: Results) -> Table:
    rows, depths, later = [], set(), []
    for measured in results.ran:
        found = summary.checkpoint(measured)
        if not found:
            continue
        later += [] if any(size.program == "gradient" for size in found.sizes) else [measured.name]
        for level in LEVELS:
            cells = []
            for program in PROGRAMS:
                rolled, unrolled = (laws.program(found.sizes, form, program) for form in FORMS)
                depths |= set(rolled.sizes)
                cells += [constant(rolled, level), growing(unrolled, level)]
            rows.append([measured.name, f"{level}: {measured.units.get(level, 'no unit given')}", *cells])
    columns = ("implementation", "level: unit", *twice("rolled", "unrolled"))
    note = f"Rolled: the count at all of N = {comma(depths)}, the layers over and over. Unrolled: the count at [N]."
    note += f" In a full run only: the gradient of {', '.join(later)}." if later else ""
    return Table("checkpoint-sizes", "Its graph size", columns, "llrrrr", rows, note)


def training(results: Results) -> Table:
    rows, reasons = [], set()
    for measured in results.ran:
        run, own = summary.trained(results, measured), measured.training
        if run:
            first, last, off, numpy_off, allowed, norms = (
                float(value) if np.isfinite(value) else None
                for value in (*run.losses[[0, -1]], run.off[-1], run.numpy_off[-1], run.allowed[-1], run.norms_off)
            )
            cells = [flag(_power(off), not run.broken), _power(numpy_off), _power(allowed), _power(norms)]
            rows.append([measured.name, str(len(run.losses)), _decimal(first), _decimal(last), *cells])
        elif own and own.status == "not run":
            rows.append([measured.name, "not run", *[NONE] * 6])
            reasons.add(f" Not run: {own.reason}: {own.install}")
    note = (
        "A language model of the characters in LICENSE: AdamW, gradients clipped layer by layer; rolled, compiled, "
        "float32. Off by: the largest relative difference from NumPy float64 so far, at the last step; every step is "
        "judged. Weight norms of the layers: at the end, not judged." + "".join(sorted(reasons))
    )
    columns = (
        *("implementation", "steps", "first\nloss", "last\nloss", "losses\noff by", "NumPy float32\noff by"),
        *("allowed", "weight norms\noff by"),
    )
    return Table("training", "Training parity", columns, "lrrrrrrr", rows, note)
