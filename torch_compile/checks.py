"""The checks of a stack's arguments, and of its layer by one look at it (looks.py), before any loop is built."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from reference import arguments, meshes
from torch_compile.edges import as_leaf
from torch_compile.looks import call, look
from torch_compile.loops import Plan
from torch_compile.primitive import Arrays, Step
from torch_compile.trees import Layer, Structure, flatten, flatten_like, unflatten


class Flat(NamedTuple):
    """A stack as flat lists, and the structures to go back."""

    plan: Plan
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
    check_loop(*stacked, *carry_arrays)
    ys, seen = look(layer, carry, slices, carry_arrays, stacked)
    num_params = len(stacked) - len(flatten(xs)[0])
    plan = Plan(_step(layer, carry, slices, ys), reverse, unroll, int(remat), num_params, seen)
    return Flat(plan, stacked, carry_arrays, carry, slices, ys)


def check_loop(*arrays: torch.Tensor) -> None:
    """What torch's loops do not take: autocast or torch.jit.trace around them, and arrays that lie on many devices."""
    if torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace: expected none around a stack of layers; torch.export.export holds one")
    # by name: to import it takes longer than all of this folder (https://github.com/pytorch/pytorch/issues/172568)
    if any(type(a).__name__ == "DTensor" for a in arrays):
        raise meshes.no_loop("DTensor")
    device = arrays[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # meta has none
        raise RuntimeError("autocast: expected it off around a stack of layers, got on; cast_params casts in the layer")


def _step(layer: Layer, carry: Structure, slices: Structure, ys: Structure) -> Step:
    """`layer` on flat lists."""

    def step(carry_arrays: Arrays, slice_arrays: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = call(layer, unflatten(carry, carry_arrays), unflatten(slices, slice_arrays))
        return flatten_like(carry, new_carry), flatten_like(ys, y)

    return step
