"""The tables of a real checkpoint, and the one of training."""

from __future__ import annotations

import textwrap

import numpy as np

from implementations import wording
from implementations.interface import LEVELS
from implementations.report.table import NONE, Table, comma, constant, flag, growing, twice
from implementations.results import summary
from implementations.results.summary import FORMS, PROGRAMS, Results


def checkpoint(results: Results) -> Table:
    blocks = {m["name"]: m["checkpoint"] for m in summary.ran(results) if m.get("checkpoint")}
    found = [block for m in summary.ran(results) if (block := summary.checkpoint(m))]
    model, num_layers = next((b["model"] for b in blocks.values()), ""), len(found[0]["hidden"]) if found else 0
    rows = []
    for name, block in blocks.items():
        if block["status"] != "ok":
            rows.append([name, block["status"], *[NONE] * (num_layers + 2)])
            continue
        cells = [
            flag(_over(r["ulps"], r["numpy_ulps"]), summary.within(r["ulps"], r["allowed"])) for r in block["hidden"]
        ]
        difference, cosine, allowed = (block["embeddings"][key] for key in ("difference", "cosine", "allowed"))
        short = None if cosine is None else max(0.0, 1 - cosine)
        cells += [_power(difference), flag(_power(short), summary.at_least(cosine, allowed))]
        rows.append([name, f"{block['tokens']:,}", *cells])
    note = ""
    if found:
        one = found[0]
        times = min(record["allowed"] / record["numpy_ulps"] for record in one["hidden"])
        note = (
            f"{one['sentences']} sentences in float32, one scan. Hidden states after each layer: the largest error "
            f"against NumPy float64 in errors of NumPy float32; {times:.3g} are allowed, and a few ulps always. Their "
            f"embeddings: the largest difference of a number, and 1 - cosine with the right one, at most "
            f"{_power(1 - one['embeddings']['allowed'])}."
        )
    reasons = {f"{block['reason']}: {block['install']}" for block in blocks.values() if block["status"] != "ok"}
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
    blocks = [(m["name"], block) for m in summary.ran(results) if (block := summary.checkpoint(m))]
    listed = [list(zip(*(block["pairs"] for _, block in blocks), strict=True))] if blocks else []
    order = {pair[0]["one"]: i for i, pair in reversed(list(enumerate(listed[0])))} if listed else {}
    rows = []
    for pair in sorted(listed[0] if listed else (), key=lambda pair: (order[pair[0]["one"]], -pair[0]["reference"])):
        texts = [textwrap.shorten(pair[0][key], 60, placeholder=" ...") or "(empty)" for key in ("one", "other")]
        rows.append([*texts, f"{pair[0]['reference']:.4f}", *(_similarity(own["similarity"]) for own in pair)])
    columns = ("sentence", "another", "reference", *(name for name, _ in blocks))
    note = "Cosine of their embeddings. The model was trained on English; of others it knows some words."
    return Table("checkpoint-pairs", "Sentences near and far", columns, "ll" + "r" * (len(columns) - 2), rows, note)


def _similarity(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def checkpoint_sizes(results: Results) -> Table:
    rows, depths, later = [], set(), []
    for measured in summary.ran(results):
        found = summary.checkpoint(measured)
        later += [measured["name"]] if found and not any(record["gradient"] for record in found["sizes"]) else []
        for level in LEVELS if found else ():
            cells = []
            for gradient in PROGRAMS:
                rolled, unrolled = (summary.checkpoint_counts(measured, level, form, gradient) for form in FORMS)
                depths |= set(rolled)
                cells += [constant(rolled), growing(unrolled)]
            rows.append([measured["name"], f"{level}: {measured.get('units', {}).get(level, 'no unit given')}", *cells])
    columns = ("implementation", "level: unit", *twice("rolled", "unrolled"))
    note = f"Rolled: the count at all of N = {comma(depths)}, the layers over and over. Unrolled: the count at [N]."
    note += f" In a full run only: the gradient of {', '.join(later)}." if later else ""
    return Table("checkpoint-sizes", "Its graph size", columns, "llrrrr", rows, note)


def training(results: Results) -> Table:
    rows, reasons = [], set()
    for measured in summary.ran(results):
        run, block = summary.trained(results, measured), measured.get("training") or {}
        if run:
            first, last, off, numpy_off, allowed, norms = (
                float(value) if np.isfinite(value) else None
                for value in (*run.losses[[0, -1]], run.off[-1], run.numpy_off[-1], run.allowed[-1], run.norms_off)
            )
            losses = ["not finite" if loss is None else f"{loss:.4f}" for loss in (first, last)]
            cells = [flag(_power(off), not run.broken), _power(numpy_off), _power(allowed), _power(norms)]
            rows.append([measured["name"], str(len(run.losses)), *losses, *cells])
        elif block.get("status") == "not run":
            rows.append([measured["name"], "not run", *[NONE] * 6])
            reasons.add(f" Not run: {block['reason']}: {block['install']}")
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
