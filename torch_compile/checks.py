"""The checks of a stack's arguments, and of its layer by one run without values, before any loop is built.

Source: https://docs.pytorch.org/docs/2.13/torch.compiler_fake_tensor.html
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from reference import arguments
from torch_compile.edges import as_leaf
from torch_compile.loops import Arrays, Layer, Stack, Step
from torch_compile.trees import Structure, flatten, flatten_like, unflatten


class Flat(NamedTuple):
    """A stack as flat lists, and the structures to go back."""

    stack: Stack
    stacked: Arrays
    init: Arrays
    carry: Structure
    slices: Structure
    ys: Structure

    def outputs(self, carry: Arrays, ys: Arrays) -> tuple[Any, Any]:
        return unflatten(self.carry, carry), unflatten(self.ys, ys)


def prepare(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any,
    reverse: bool = False,
    unroll: int = 1,
    remat: bool | int = False,
) -> Flat:
    """Check the arguments of a stack, running the layer once on arrays without values, and flatten them.

    Raises:
        TypeError, ValueError: words in reference/arguments.py
        RuntimeError: torch.autocast is on: it would change the dtype of the carry, in the forward pass alone
    """
    arguments.check_scan(as_leaf, stacked_params, init, xs, reverse, unroll, remat)
    stacked, slices = flatten((stacked_params, xs))
    carry_arrays, carry = flatten(init)
    device = stacked[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # meta has none
        raise RuntimeError("autocast: expected it off around a stack of layers, got on; cast_params casts in the layer")
    y = _run_once(layer, carry, slices, carry_arrays, stacked)
    y_arrays, ys = flatten(y)
    y_floats, num_params = tuple(a.is_floating_point() for a in y_arrays), len(flatten(stacked_params)[0])
    stack = Stack(_step(layer, carry, slices, ys), y_floats, num_params, reverse, unroll, int(remat) or 1)
    return Flat(stack, stacked, carry_arrays, carry, slices, ys)


def call(layer: Layer, carry: Any, slices: tuple[Any, Any]) -> tuple[Any, Any]:
    """`layer` of what a step reads: (params, x), where x is None without xs."""
    params, x = slices
    return layer(carry, params) if x is None else layer(carry, params, x)


def _run_once(layer: Layer, carry: Structure, slices: Structure, init: Arrays, stacked: Arrays) -> Any:
    def run() -> Any:
        empty = [torch.empty(c.shape, dtype=c.dtype, device=c.device) for c in init]
        read = [torch.empty(a.shape[1:], dtype=a.dtype, device=a.device) for a in stacked]
        first = unflatten(carry, empty)
        output = call(layer, first, unflatten(slices, read))
        arguments.check_layer(as_leaf, first, output)
        if any(array.requires_grad for array in pytree.tree_leaves(output) if array is not None):
            raise arguments.closed_over()  # nothing it was given requires a gradient
        return output[1]

    if torch.compiler.is_compiling():  # Dynamo's tensors have no values already
        return run()
    with FakeTensorMode(allow_non_fake_inputs=True):
        return run()


def _step(layer: Layer, carry: Structure, slices: Structure, ys: Structure) -> Step:
    """`layer` on flat lists."""

    def step(carry_arrays: Arrays, slice_arrays: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = call(layer, unflatten(carry, carry_arrays), unflatten(slices, slice_arrays))
        return flatten_like(carry, new_carry), flatten_like(ys, y)

    return step
