"""Graph size at three levels: what JAX captures, what it hands to XLA, what XLA makes of it.

A sub-program (the body of a scan) counts once, as often as it runs.
Source: https://docs.jax.dev/en/latest/aot.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from jax_scan import stack
from jax_scan.autodiff import Apply, gradient
from jax_scan.edges import cold

UNITS = {"captured": "jaxpr equations", "lowered": "StableHLO ops", "compiled": "optimised HLO instructions"}


def graph_size(apply: Apply, *args: Any, cotangent: Any = None, memory: bool = True) -> dict[str, int]:
    """Count `apply(*args)`, or with `cotangent` its gradient program, at each level, and what the compiled one needs.

    "loops" are those the compiler leaves; "temp_bytes" is what XLA assigns beside arguments and results.
    Without `memory` it is left out, as in PyTorch, where it costs time.
    """
    captured = traced(apply, args, cotangent)
    lowered = captured.lower()
    program = lowered.compile()
    hlo = program.as_text()
    counts = {
        "captured": equations(captured.jaxpr.jaxpr),
        "lowered": _assignments(lowered.as_text()),
        "compiled": _assignments(hlo),
        "loops": hlo.count(" while("),
    }
    return counts | {"temp_bytes": program.memory_analysis().temp_size_in_bytes} if memory else counts


def compile_seconds(apply: Apply, *args: Any, cotangent: Any = None, times: int = 1) -> list[float]:
    """Seconds to trace and compile: from cold, then again with what JAX keeps in memory."""
    seconds = []
    with cold():
        for _ in range(times):
            start = time.perf_counter()
            traced(apply, args, cotangent).lower().compile()
            seconds.append(time.perf_counter() - start)
    return seconds


def program_count() -> int:
    """Programs compiled so far for `scan_apply_layers` called as it stands: one for each N, d and dtype."""
    return stack._scan_dense._cache_size()  # type: ignore[attr-defined]


def traced(apply: Callable[..., Any], args: tuple[Any, ...], cotangent: Any) -> Any:
    if cotangent is not None:
        apply, args = gradient(apply), (*args, cotangent)
    # A function of its own each time, so that nothing traced before is found again.
    return jax.jit(lambda *args: apply(*args)).trace(*args)


def equations(jaxpr: core.Jaxpr) -> int:
    return len(jaxpr.eqns) + sum(equations(sub) for eqn in jaxpr.eqns for sub in _subjaxprs(eqn.params.values()))


def _subjaxprs(values: Any) -> list[core.Jaxpr]:
    found = []
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _subjaxprs(value)
    return found


def _assignments(text: str) -> int:
    return sum(" = " in line for line in text.splitlines())
