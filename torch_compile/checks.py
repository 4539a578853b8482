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
        RuntimeError: by `check_loop`
    """
    arguments.check_scan(as_leaf, stacked_params, init, xs, reverse, unroll, remat)
    stacked, slices = flatten((stacked_params, xs))
    carry_arrays, carry = flatten(init)
    check_loop(*stacked, *carry_arrays)
    layer = _as_around(layer, carry_arrays or stacked)
    ys, seen = look(layer, carry, slices, carry_arrays, stacked)
    num_params = len(stacked) - len(flatten(xs)[0])
    plan = Plan(_step(layer, carry, slices, ys), reverse, unroll, int(remat), num_params, seen)
    return Flat(plan, stacked, carry_arrays, carry, slices, ys)


def check_loop(*arrays: torch.Tensor) -> None:
    """What torch's loops do not take: torch.jit.trace around them, and arrays that lie on many devices."""
    if torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace: expected none around a stack of layers; torch.export.export holds one")
    # by name: to import it takes longer than all of this folder (https://github.com/pytorch/pytorch/issues/172568)
    if any(type(a).__name__ == "DTensor" for a in arrays):
        raise meshes.no_loop("DTensor")


def autocast_around(arrays: Arrays) -> torch.dtype | None:
    """The dtype of an autocast around a stack of such arrays."""
    device = arrays[0].device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # meta has none
    return torch.get_autocast_dtype(device) if is_on else None


def _as_around(layer: Layer, arrays: Arrays) -> Layer:
    """`layer` under the autocast that is around its stack: loops are made without (primitive.py)."""
    dtype, device = autocast_around(arrays), arrays[0].device.type
    if dtype is None:
        return layer

    def run(*args: Any) -> Any:
        with torch.autocast(device, dtype, cache_enabled=False):  # what it would keep is one layer's
            return layer(*args)

    return run


def _step(layer: Layer, carry: Structure, slices: Structure, ys: Structure) -> Step:
    """`layer` on flat lists."""

    def step(carry_arrays: Arrays, slice_arrays: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = call(layer, unflatten(carry, carry_arrays), unflatten(slices, slice_arrays))
        return flatten_like(carry, new_carry), flatten_like(ys, y)

    return step
