"""What JAX users write today instead of a scan, measured beside it.

Each entry is (apply, compiler): how such a program is written, and how it is compiled.
"""

from __future__ import annotations

import jax
from jax import lax

from jax_scan.edges import compile
from jax_scan.layers import dense


def raw_scan(weights: jax.Array, x: jax.Array) -> jax.Array:
    """The scan as first written: no checks, and the product as the formula has it."""
    return lax.scan(lambda y, w: (w @ y, None), x, weights)[0]


def fori_loop(weights: jax.Array, x: jax.Array) -> jax.Array:
    """A counted loop that reads `weights[i]`: what scan does, with the reading left to the user."""
    return lax.fori_loop(0, weights.shape[0], lambda i, y: dense(y, weights[i])[0], x)


_compiled_layer = compile(lambda y, w: dense(y, w)[0])


def compiled_layer(weights: jax.Array, x: jax.Array) -> jax.Array:
    """One compiled layer, called N times from Python: constant compile time, N dispatches."""
    y = x
    for w in lax.split(weights, (1,) * weights.shape[0]):  # [1, d, d]
        y = _compiled_layer(y, w[0])
    return y


ALTERNATIVES = {
    "raw scan": (raw_scan, compile),
    "fori_loop": (fori_loop, compile),
    "compiled layer": (compiled_layer, None),
}
