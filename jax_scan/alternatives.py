"""What JAX users write today instead of a scan, measured beside it.

Each entry is how such a program is written, and how it is compiled: ALTERNATIVES has (apply, compiler) of the dense
stack, LAYER_FORMS (stack, compiler) of any layer, the scan and its twin among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jax_scan.edges import compile
from jax_scan.layers import dense
from jax_scan.stack import scan_layers, unroll_layers

Layer = Callable[..., tuple[Any, Any]]
Stack = Callable[[Any, Any], Any]  # (stacked_params, init) -> the last carry


def rolled(layer: Layer) -> Stack:
    """The scan."""
    return lambda params, init: scan_layers(layer, params, init)[0]


def unrolled(layer: Layer) -> Stack:
    """Its twin."""
    return lambda params, init: unroll_layers(layer, params, init)[0]


def raw_scan(weights: jax.Array, x: jax.Array) -> jax.Array:
    """The scan as first written: no checks, and the product as the formula has it."""
    return lax.scan(lambda y, w: (w @ y, None), x, weights)[0]


def fori_loop(layer: Layer) -> Stack:
    """A counted loop that reads `params[i]`: what scan does, with the reading left to the user."""

    def stack(params: Any, init: Any) -> Any:
        num_layers = jax.tree.leaves(params)[0].shape[0]
        return lax.fori_loop(
            0, num_layers, lambda i, carry: layer(carry, jax.tree.map(lambda a: a[i], params))[0], init
        )

    return stack


def compiled_layer(layer: Layer) -> Stack:
    """One compiled layer, called N times from Python: constant compile time, N dispatches."""
    compiled = compile(lambda carry, params: layer(carry, params)[0])

    def stack(params: Any, init: Any) -> Any:
        arrays, tree = jax.tree.flatten(params)
        carry = init
        for parts in zip(*(lax.split(a, (1,) * a.shape[0]) for a in arrays), strict=True):  # [1, ...]
            carry = compiled(carry, jax.tree.unflatten(tree, [part[0] for part in parts]))
        return carry

    return stack


ALTERNATIVES = {
    "raw scan": (raw_scan, compile),
    "fori_loop": (fori_loop(dense), compile),
    "compiled layer": (compiled_layer(dense), None),
}
LAYER_FORMS = {
    "rolled": (rolled, compile),
    "unrolled": (unrolled, compile),
    "fori_loop": (fori_loop, compile),
    "compiled layer": (compiled_layer, None),
}
