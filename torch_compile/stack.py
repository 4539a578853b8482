"""N layers for the graph of one, by torch's scan operator, after `jax_scan/stack.py`.

    y = x
    for w in weights:
        y = w @ y

The loop above traces N products into the program; the scan traces one, whatever N is, forward and backward. torch
compiles one program for all N >= 2, and one each for N = 0 and N = 1. The operator does not compose with `torch.func`
from outside, and its own gradient is silently wrong for a loss as common as `.sum()`, so `transforms.py` gives the
stack a gradient of its own: a second scan, of the transformed layer.
Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_higher_order_ops/scan.py (not a public name yet)
"""

from __future__ import annotations

from typing import Any

import torch
from torch._higher_order_ops.scan import scan

from reference import arguments
from torch_compile.layers import dense
from torch_compile.transforms import Layer, differentiable, own


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
    return differentiable(_scan, dense, weights, x)


def unroll_apply_layers(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_apply_layers`."""
    _check(weights, x)
    # Split once: the gradient of `weights[i]` would be a stack of zeros around each layer's, N times.
    y = x.clone()
    for w in weights.unbind():  # [d, d]
        y, _ = dense(y, w)
    return y


def _scan(
    layer: Layer, weights: torch.Tensor, x: torch.Tensor, keep_carries: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    # The three things to get right, in the order in which they go wrong:
    # - scan runs over axis 0, so layers must be stacked along axis 0: weights[i] is layer i;
    # - the body is called as body(carry, x_i): the carry is the activation, x_i the layer's weights;
    # - the body returns a pair (new_carry, y) even when there is no per-layer output: here y must be a tensor, so an
    #   empty one stands in for None, unless a gradient will need what entered the layer.
    def body(carry: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new_carry, _ = layer(carry, w)
        return own(new_carry), own(carry) if keep_carries else carry.new_empty(0)

    if weights.numel() == 0:  # the operator refuses an empty stack
        return x.clone(), x.new_empty((weights.shape[0], *x.shape))
    return scan(body, own(x), weights)  # own: the carry comes back contiguous, so it must start so


def _check(weights: Any, x: Any) -> None:
    for name, value in (("weights", weights), ("x", x)):
        if not isinstance(value, torch.Tensor):
            raise arguments.not_an_array(name, value)
    arguments.check_dense_stack(_leaf(weights), _leaf(x))


def _leaf(array: torch.Tensor) -> arguments.Leaf:
    return arguments.Leaf(tuple(array.shape), str(array.dtype).removeprefix("torch."))
