"""N layers for the graph of one, by `jax.lax.scan`: the form the other two frameworks are written after.

    y = x
    for w in weights:
        y = w @ y

The loop above traces N products into the program; the scan traces one, whatever N is, forward and backward. JAX
compiles one program for each N: shapes are static, but their sizes do not enter the size of the program.
Source: https://docs.jax.dev/en/latest/_autosummary/jax.lax.scan.html
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from jax_scan.layers import dense
from reference import arguments


def scan_apply_layers(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Apply N dense layers, one after the other, with a program whose size does not depend on N.

    Equivalent loop:
        y = x
        for w in weights:
            y = w @ y

    Args:
        weights: [N, d, d], weights[i] is layer i; float16, bfloat16, float32 or float64. N = 0 returns x.
        x: [d], of the same dtype.

    Returns: y [d], of the same dtype. It never shares memory with an argument.

    Raises:
        TypeError: weights or x is no array of this framework, or the dtypes are wrong (words: reference/arguments.py).
        ValueError: "weights: expected shape (N, d, d), got ...", "x: expected shape (d,), got ..."

    Graph: exactly the same number of operations for every N >= 2, forward and gradient, with one loop each way.
    Limits: one compilation for each N.
    """
    _check(weights, x)
    return _scan(weights, x)


def unroll_apply_layers(weights: jax.Array, x: jax.Array) -> jax.Array:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_apply_layers`."""
    _check(weights, x)
    # Split once: the gradient of `weights[i]` would be a stack of zeros around each layer's, N times.
    y = x.copy()
    for w in lax.split(weights, (1,) * weights.shape[0]):  # [1, d, d]
        y, _ = dense(y, w[0])
    return y


@jax.jit
def _scan(weights: jax.Array, x: jax.Array) -> jax.Array:
    # The three things to get right, in the order in which they go wrong:
    # - scan runs over axis 0, so layers must be stacked along axis 0: weights[i] is layer i;
    # - the body is called as body(carry, x_i): the carry is the activation, x_i the layer's weights;
    # - the body returns a pair (new_carry, y) even when there is no per-layer output: `dense` returns y = None.
    y, _ = lax.scan(dense, x, weights)
    return y


def _check(weights: Any, x: Any) -> None:
    for name, value in (("weights", weights), ("x", x)):
        if not isinstance(value, jax.Array):
            raise arguments.not_an_array(name, value)
    arguments.check_dense_stack(_leaf(weights), _leaf(x))


def _leaf(array: jax.Array) -> arguments.Leaf:
    return arguments.Leaf(array.shape, array.dtype.name)
