"""N layers for the graph of one, by the operator of `torch.while_loop`, after `jax_scan/stack.py`.

    y = x
    for w in weights:
        y = w @ y

The loop above traces N products into the program; the scan traces one, whatever N is, forward and backward. torch
compiles one program for all N >= 2, and one for N = 1. Its scan operator is private, and its gradient silently wrong:
here a scan is a `while_loop` that reads row i of the stacks, and its gradient a second one (autodiff.py).
Source: https://docs.pytorch.org/docs/2.13/higher_order_ops/while_loop.html
"""

from __future__ import annotations

from typing import Any

import torch

from reference import arguments
from torch_compile import loops
from torch_compile.autodiff import differentiable
from torch_compile.checks import autocast_around, check_loop, prepare
from torch_compile.edges import as_leaf, named_scope
from torch_compile.layers import dense
from torch_compile.looks import looked_at_once
from torch_compile.loops import Plan
from torch_compile.primitive import Arrays
from torch_compile.trees import Layer, unflatten


def scan_apply_layers(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
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
    Limits: weights that are not contiguous are copied once. Forward mode and second derivatives run layer by layer.
    """
    _check(weights, x)
    check_loop(weights, x)
    if autocast_around([weights]):
        prepare(dense, weights, x, None)  # which refuses a carry that changes its dtype

    # The three things to get right, in the order in which they go wrong:
    # - scan runs over axis 0, so layers must be stacked along axis 0: weights[i] is layer i;
    # - the body is called as body(carry, x_i): the carry is the activation, x_i the layer's weights;
    # - the body returns a pair (new_carry, y) even when there is no per-layer output: no ys.
    def body(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        (y,), (w,) = carry, slices
        return [torch.matmul(w, y)], []

    with named_scope("scan_layers"):  # the name of the stack in a profile
        # The while loop itself: primitive.py; one each way: loops.py.
        (y,), _ = differentiable(Plan(body, num_params=1), [weights], [x])
    return y


@looked_at_once
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
    Limits: with remat layers run again, so that a gradient refuses one that draws random numbers. What `layer` closes
        over is shared by all layers and receives its gradient; it is refused if it is written to, or is complex and
        requires one. Forward mode and second derivatives run layer by layer. Called as it stands it is compiled once
        for all layers that are made of the same (reference/made_of.py).
    """
    flat = prepare(layer, stacked_params, init, xs, reverse, unroll, remat)
    with named_scope("scan_layers"):
        carry, ys = differentiable(flat.plan, flat.stacked, flat.init)
    return unflatten(flat.carry, carry), unflatten(flat.ys, ys)


def unroll_apply_layers(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_apply_layers`."""
    _check(weights, x)
    return unroll_layers(dense, weights, x.clone())[0]


def unroll_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> tuple[Any, Any]:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_layers`."""
    flat = prepare(layer, stacked_params, init, xs, reverse)
    carry, ys = loops.unrolled(flat.plan.step, flat.stacked, flat.init, reverse)
    return unflatten(flat.carry, carry), unflatten(flat.ys, ys)


def _check(weights: Any, x: Any) -> None:
    arguments.check_dense_stack(arguments.leaf(as_leaf, "weights", weights), arguments.leaf(as_leaf, "x", x))
