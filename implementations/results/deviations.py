"""The verdict: the law of graph size, and all else that the results must be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from implementations.results import summary
from implementations.results.laws import broken_laws, broken_on_devices
from implementations.results.records import Checkpoint, Measured, Results


def deviations(results: Results) -> list[str]:
    """Everything observed that is not as declared, in words; an empty list is exit status 0."""
    found = [f"{measured.name}: {text}" for measured in results.implementations for text in _of(results, measured)]
    found += [f"{one.name}, on devices: {text}" for one in results.devices for text in broken_on_devices(one)]
    return found if results.ran else [*found, "no implementation ran"]


def _of(results: Results, measured: Measured) -> Iterator[str]:
    if measured.status == "failed":
        yield f"failed: {'; '.join(measured.reason.strip().splitlines()[-2:])}"
    elif measured.status == "not run" and measured.asked_for:
        yield f"asked for by name and not run: {measured.reason}"
    elif measured.status == "ok":
        yield from measured.problems
        yield from _numerics(measured)
        checkpoint = summary.checkpoint(measured)
        if checkpoint:
            yield from _checkpoint(checkpoint)
        for each in measured.recompiles:
            if not each.ok:
                yield f"{each.what}: {each.programs} programs, declared {each.declared}"
        yield from broken_laws([*measured.sizes, *measured.programs, *(checkpoint.sizes if checkpoint else ())])
        yield from _training(results, measured)


def _numerics(measured: Measured) -> Iterator[str]:
    for one in measured.numerics:
        if not one.ok:
            said = "not equal" if one.exact else f"error {one.ratio}, allowed {one.allowed}"
            yield f"{one.quantity} of case {one.case} (N = {one.N}, d = {one.d}, {one.dtype}): {said}"


def _checkpoint(checkpoint: Checkpoint) -> Iterator[str]:
    """The hidden states and embeddings of real sentences."""
    model, embeddings = checkpoint.model, checkpoint.embeddings
    for one in checkpoint.hidden:
        if not one.ok:
            error = f"error {one.ulps} ulps, allowed {one.allowed:.3g}"
            yield f"hidden states of {model} after layer {one.layer}: {error}"
    if embeddings and not embeddings.ok:
        allowed = f"allowed {embeddings.allowed} and more"
        yield f"embeddings of {model}: cosine with the right ones {embeddings.cosine}, {allowed}"


def _training(results: Results, measured: Measured) -> Iterator[str]:
    run = summary.trained(results, measured)
    if run and run.broken:
        off, allowed = run.off[run.broken - 1], run.allowed[run.broken - 1]
        said = f"off by {off:.2g}, allowed {allowed:.2g}" if np.isfinite(off) else "not finite"
        yield f"loss at step {run.broken} of training: {said}"
