"""A small language model, trained: 50 steps of AdamW on the text of LICENSE, in each framework's own idiom.

Rolled, compiled and in float32, as a user trains. What is right is NumPy's run in float64; its run in float32 says how
far rounding alone leads in as many steps. Nothing here judges: `implementations/results/deviations.py` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from implementations.interface import Implementation
from implementations.results.records import Trained, Training
from reference import training
from reference.stack import tree_map


def check(implementation: Implementation, slow: bool, step: Callable[[str], None]) -> Training:
    """The training of one implementation; where it is slow to compile, only if that is asked for."""
    step(f"{training.STEPS} steps of training")
    if not slow:
        reason = "its compilation takes half a minute, which the full run takes"
        return Training(status="not run", reason=reason, install="python -m implementations --full")
    start = time.perf_counter()
    inputs = tree_map(implementation.from_numpy, (training.init_params(), training.batches()))
    try:
        losses, params = implementation.train(*inputs, **training.OPTIONS)
    except ModuleNotFoundError as error:  # a folder is of use without what only its optimizer needs
        install = f"pip install --constraint constraints.txt {error.name}"
        return Training(status="not run", reason=str(error), install=install)
    return Training(
        losses=tuple(implementation.to_numpy(losses).tolist()),
        weight_norms=tuple(implementation.to_numpy(implementation.layer_norms(params["layers"])).tolist()),
        seconds=time.perf_counter() - start,
    )


def right() -> Trained:
    """The same by NumPy, in float64 and float32; once for all implementations."""

    def run(dtype: str) -> Training:
        losses, _, weight_norms = training.train(dtype)
        return Training(losses=tuple(losses.tolist()), weight_norms=tuple(weight_norms.tolist()))

    sizes = {"N": training.N, **training.SIZES, "B": training.B, "T": training.T}
    return Trained(sizes=sizes, float64=run("float64"), float32=run("float32"))
