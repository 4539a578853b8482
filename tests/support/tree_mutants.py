"""Wrong stacks of `make_cell`, each wrong in one way, in NumPy: what the comparison of trees must not let pass.

Functions of (inputs, cotangents, reverse) that return Results, in the dtype they are given.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from reference.stack import run_layers_vjp, tree_map
from tests.support.dialect import layer_of
from tests.support.problems import Results, cell_vjp, make_cell

CELL = layer_of(make_cell, "numpy")
K = 2  # layers in a group


def right(inputs, cotangents, reverse, layer=CELL, vjp=cell_vjp):
    outputs, gradients = run_layers_vjp(layer, vjp, *inputs, cotangents=cotangents, reverse=reverse)
    return Results(*outputs, *gradients)


def _reordered(tree, order):
    return tree_map(lambda a: a[order], tree)


# The wrong layer, or the right one in the wrong place.


def reverse_ignored(inputs, cotangents, reverse):
    return right(inputs, cotangents, not reverse)


def ys_in_the_other_order(inputs, cotangents, reverse):
    """As the loop makes them when it runs backwards."""
    results = right(inputs, cotangents, reverse)
    return results._replace(ys=_reordered(results.ys, slice(None, None, -1)))


def gradients_in_the_other_order(inputs, cotangents, reverse):
    """As the backward pass makes them."""
    results = right(inputs, cotangents, reverse)
    return results._replace(dparams=_reordered(results.dparams, slice(None, None, -1)))


def xs_in_the_other_order(inputs, cotangents, reverse):
    params, init, xs = inputs
    return right((params, init, _reordered(xs, slice(None, None, -1))), cotangents, reverse)


def cotangents_of_ys_in_the_other_order(inputs, cotangents, reverse):
    dcarry, dys = cotangents
    return right(inputs, (dcarry, _reordered(dys, slice(None, None, -1))), reverse)


def next_layer_clamped(inputs, cotangents, reverse):
    """An index off by one, which XLA clamps to the last layer."""
    params, init, xs = inputs
    order = np.minimum(np.arange(len(params["w"])) + 1, len(params["w"]) - 1)
    return right((_reordered(params, order), init, xs), cotangents, reverse)


def remainder_dropped(inputs, cotangents, reverse):
    """Whole groups of K only. Of one layer, no group is whole."""
    params, init, xs = inputs
    N = len(params["w"])
    whole = slice(0, N - (N % K or K))
    dcarry, dys = cotangents
    results = right((_reordered(params, whole), init, _reordered(xs, whole)), (dcarry, _reordered(dys, whole)), reverse)

    def padded(a):
        return np.concatenate([a, np.zeros((N - len(a), *a.shape[1:]), a.dtype)])

    return results._replace(**{name: tree_map(padded, getattr(results, name)) for name in ("ys", "dparams", "dxs")})


def last_layer_repeated(inputs, cotangents, reverse):
    """The last group begins within the one before it, and what both hold runs twice."""
    results = right(inputs, cotangents, reverse)
    params, _, xs = inputs
    carry, _ = CELL(results.carry, *_reordered((params, xs), 0 if reverse else -1))
    return results._replace(carry=carry)


# Right values, wrong gradients.


def carries_of_the_group_before(inputs, cotangents, reverse):
    """What the backward pass recomputes starts from the carry of another group."""
    params, init, xs = inputs
    entered, carry = [], init
    order = range(len(params["w"]))[:: -1 if reverse else 1]
    for i in order:
        entered.append(carry)
        carry, _ = CELL(carry, *_reordered((params, xs), i))
    wrong = {}
    for step, i in enumerate(order):
        if step % K == 0:
            carry = entered[max(step - K, 0)]
        wrong[i] = carry
        carry, _ = CELL(carry, *_reordered((params, xs), i))
    todo = iter([wrong[i] for i in reversed(order)])
    return right(inputs, cotangents, reverse, vjp=lambda carry, *args: cell_vjp(next(todo), *args))


def ys_detached(inputs, cotangents, reverse):
    dcarry, dys = cotangents
    return right(inputs, (dcarry, tree_map(np.zeros_like, dys)), reverse)


def carry_detached(inputs, cotangents, reverse):
    """No gradient passes from a layer to the one before it."""

    def vjp(*args):
        dcarry, *rest = cell_vjp(*args)
        return tree_map(np.zeros_like, dcarry), *rest

    return right(inputs, cotangents, reverse, vjp=vjp)


def gradient_counted_twice(inputs, cotangents, reverse):
    """Of one parameter, as if the stack had run twice."""
    results = right(inputs, cotangents, reverse)
    dparams = {**results.dparams, "rest": [2 * results.dparams["rest"][0], None]}
    return results._replace(dparams=dparams)


def gradient_of_the_last_layer_missing(inputs, cotangents, reverse):
    results = right(inputs, cotangents, reverse)
    dxs = tree_map(np.copy, results.dxs)
    dxs[0][-1] = 0
    return results._replace(dxs=dxs)


# Right layers, less precision than the dtype has.


def one_bfloat16_layer(inputs, cotangents, reverse):
    """The carry that leaves the first layer passes through bfloat16."""

    def cell(carry, params, x):
        new, y = CELL(carry, params, x)
        if carry["count"] == 1:
            new = {**new, "h": new["h"].astype(ml_dtypes.bfloat16).astype(new["h"].dtype)}
        return new, y

    return right(inputs, cotangents, reverse, layer=cell)


def float32_throughout(inputs, cotangents, reverse):
    """float32 sold as float64."""

    def narrow(a):
        return a.astype(np.float32) if a.dtype == np.float64 else a

    inputs, cotangents = tree_map(narrow, (inputs, cotangents))
    results = right(inputs, cotangents, reverse)
    return Results(*tree_map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, tuple(results)))


WRONG = (
    reverse_ignored,
    ys_in_the_other_order,
    gradients_in_the_other_order,
    xs_in_the_other_order,
    cotangents_of_ys_in_the_other_order,
    next_layer_clamped,
    remainder_dropped,
    last_layer_repeated,
    carries_of_the_group_before,
    ys_detached,
    carry_detached,
    gradient_counted_twice,
    gradient_of_the_last_layer_missing,
    one_bfloat16_layer,
)
