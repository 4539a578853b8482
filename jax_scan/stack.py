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

from jax_scan import loops
from jax_scan.checks import prepare
from jax_scan.edges import as_leaf
from jax_scan.layers import dense
from jax_scan.loops import Layer
from jax_scan.programs import kept
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
    return _scan_dense(weights, x)


@jax.jit
def _scan_dense(weights: jax.Array, x: jax.Array) -> jax.Array:
    # The three things to get right, in the order in which they go wrong:
    # - scan runs over axis 0, so layers must be stacked along axis 0: weights[i] is layer i;
    # - the body is called as body(carry, x_i): the carry is the activation, x_i the layer's weights;
    # - the body returns a pair (new_carry, y) even when there is no per-layer output: `dense` returns y = None.
    if weights.shape[0] == 0:  # under jax.disable_jit lax.scan does not know what ys would be
        return x.copy()
    with jax.named_scope("scan_layers"):  # the name of the stack in a profile
        y, _ = lax.scan(dense, x, weights)
    return y


@kept
def scan_layers(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
    remat: bool | int = False,
) -> tuple[Any, Any]:
    """Apply N layers of any kind, one after the other, with a program whose size does not depend on N.

    Equivalent loop:
        carry, ys = init, [None] * N
        for i in reversed(range(N)) if reverse else range(N):
            carry, ys[i] = layer(carry, params[i]) if xs is None else layer(carry, params[i], xs[i])

    Args:
        layer: `layer(carry, params)`, or with xs `layer(carry, params, x)`, returns `(new_carry, y)`; y may be None.
        stacked_params: nested dicts, tuples and lists of arrays [N, ...]: the parameters of layer i are at index i.
        init: the first carry, nested likewise. Every new carry has its structure, shapes and dtypes.
        xs: per-layer inputs, nested likewise, arrays [N, ...].
        reverse: the last layer comes first. ys stay in the order of the layers.
        unroll: how many layers the body of the loop holds; any number.
        remat: what is kept for the backward pass. False: what the layers need; True: one carry a layer; k: one carry
            every k layers, and the carries of k layers at a time.

    Returns: (carry, ys), every y stacked along axis 0.

    Raises:
        TypeError, ValueError: before the loop is built, naming argument, leaf, expected and got (words:
            reference/arguments.py).

    Graph: unroll=1, remat False or True: exactly the same number of operations for every N >= 2. Else not more than
        some number, whatever N is.
    Limits: what `layer` closes over is shared by all layers and receives its gradient. A remainder of unroll=k copies
        what is kept for the backward pass. What `layer` reads is that of each call, but within an object of an
        installed package it is, as for `jax.jit`, what it was when the program was traced.
    """
    num_layers = prepare(layer, stacked_params, init, xs, reverse, unroll, remat)
    stacked = (stacked_params,) if xs is None else (stacked_params, xs)
    with jax.named_scope("scan_layers"):
        return loops.scan(layer, stacked, init, num_layers, reverse, unroll, remat)


def unroll_apply_layers(weights: jax.Array, x: jax.Array) -> jax.Array:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_apply_layers`."""
    _check(weights, x)
    return unroll_layers(dense, weights, x.copy())[0]


def unroll_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> tuple[Any, Any]:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_layers`."""
    num_layers = prepare(layer, stacked_params, init, xs, reverse)
    return loops.unrolled(layer, (stacked_params,) if xs is None else (stacked_params, xs), init, num_layers, reverse)


def _check(weights: Any, x: Any) -> None:
    arguments.check_dense_stack(arguments.leaf(as_leaf, "weights", weights), arguments.leaf(as_leaf, "x", x))
