"""What torch users write today instead of a scan with its own gradient, measured beside it.

Each entry is how such a program is written, and how it is compiled: ALTERNATIVES has (apply, compiler) of the dense
stack, LAYER_FORMS (stack, compiler) of any layer, the scan and its twin among them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from torch_compile.edges import compile_with
from torch_compile.layers import dense
from torch_compile.private import pytree, scan
from torch_compile.stack import scan_layers, unroll_layers

Layer = Callable[..., tuple[Any, Any]]
Stack = Callable[[Any, Any], Any]  # (stacked_params, init) -> the last carry

as_it_comes = partial(compile_with, {})  # as users call `torch.compile`


def rolled(layer: Layer) -> Stack:
    """The scan."""
    return lambda params, init: scan_layers(layer, params, init)[0]


def unrolled(layer: Layer) -> Stack:
    """Its twin."""
    return lambda params, init: unroll_layers(layer, params, init)[0]


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


def nested_compile_region(layer: Layer) -> Stack:
    """One layer marked as a region: traced and compiled once, called N times in the graph."""
    return _loop(torch.compiler.nested_compile_region(lambda carry, params: layer(carry, params)[0]))


def compiled_layer(layer: Layer) -> Stack:
    """One compiled layer, called N times from Python: constant compile time, N calls."""
    return _loop(as_it_comes(lambda carry, params: layer(carry, params)[0]))


def _loop(called: Callable[[Any, Any], Any]) -> Stack:
    def stack(params: Any, init: Any) -> Any:
        arrays, tree = pytree.tree_flatten(params)
        carry = init
        for parts in zip(*(a.unbind() for a in arrays), strict=True):
            carry = called(carry, pytree.tree_unflatten(parts, tree))
        return carry

    return stack


ALTERNATIVES = {
    "raw scan": (raw_scan, as_it_comes),
    "while_loop": (while_loop, as_it_comes),
    "nested_compile_region": (nested_compile_region(dense), as_it_comes),
    "compiled layer": (compiled_layer(dense), None),
}
LAYER_FORMS = {
    "rolled": (rolled, as_it_comes),
    "unrolled": (unrolled, as_it_comes),
    "nested_compile_region": (nested_compile_region, as_it_comes),
    "compiled layer": (compiled_layer, None),
}
