"""What torch users write today instead of a scan with its own gradient, measured beside it.

Each entry is (apply, compiler): how such a program is written, and how it is compiled.
"""

from __future__ import annotations

from functools import partial

import torch
from torch._higher_order_ops.scan import scan

from torch_compile.edges import compile, compile_with
from torch_compile.layers import dense

as_it_comes = partial(compile_with, {})  # as users call `torch.compile`


def raw_scan(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The scan operator as first written, with its own gradient."""

    def body(carry: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return dense(carry, w)[0], carry.new_zeros(())

    return scan(body, x, weights)[0]


def while_loop(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`torch.while_loop` with a counter that reads `weights[i]`."""

    def body(i: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return i + 1, dense(y, weights.index_select(0, i)[0])[0]

    first = torch.zeros(1, dtype=torch.int64, device=x.device)
    return torch.while_loop(lambda i, y: (i < weights.shape[0]).all(), body, (first, x))[1]


_region = torch.compiler.nested_compile_region(lambda y, w: dense(y, w)[0])


def nested_compile_region(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One layer marked as a region: traced and compiled once, called N times in the graph."""
    y = x
    for w in weights.unbind():
        y = _region(y, w)
    return y


_compiled_layer = compile(lambda y, w: dense(y, w)[0])


def compiled_layer(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One compiled layer, called N times from Python: constant compile time, N calls."""
    y = x
    for w in weights.unbind():
        y = _compiled_layer(y, w)
    return y


ALTERNATIVES = {
    "raw scan": (raw_scan, as_it_comes),
    "while_loop": (while_loop, as_it_comes),
    "nested_compile_region": (nested_compile_region, as_it_comes),
    "compiled layer": (compiled_layer, None),
}
