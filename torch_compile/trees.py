"""Trees to flat lists and back, and the checks of a stack's arguments, before any loop is built.

Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/utils/_pytree.py (not a public name yet)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from reference import arguments
from torch_compile.edges import as_leaf, cached, plain
from torch_compile.loops import Arrays, Layer, Stack, Step


class Structure(NamedTuple):
    """How a tree holds its arrays; hashable. None holds none: to torch's pytree it is a leaf."""

    spec: pytree.TreeSpec
    is_array: tuple[bool, ...]


class Flat(NamedTuple):
    """A stack as flat lists, and the structures to go back."""

    stack: Stack
    stacked: Arrays
    init: Arrays
    carry: Structure
    slices: Structure
    ys: Structure


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
    stack = Stack(
        _step(layer, carry, slices, ys),
        tuple(a.is_floating_point() for a in y_arrays),
        reverse,
        unroll,
        int(remat) or 1,
    )
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


@cached
def _step(layer: Layer, carry: Structure, slices: Structure, ys: Structure) -> Step:
    """`layer` on flat lists."""

    def step(carry_arrays: Arrays, slice_arrays: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = call(layer, unflatten(carry, carry_arrays), unflatten(slices, slice_arrays))
        return flatten_like(carry, new_carry), flatten_like(ys, y)

    return step


def tangents_like(name: str, given: Any, primals: tuple[Any, ...], of: tuple[str, ...]) -> tuple[Any, ...]:
    """`given` checked against `primals`, with zeros for a tree that is None, and None for what has no derivative."""
    arguments.check_tangents(as_leaf, name, given, primals, of)

    def zeros(primal: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(primal) if primal.is_floating_point() else None

    return tuple(
        map_arrays(zeros, primal) if tangent is None else tangent
        for primal, tangent in zip(primals, given, strict=True)
    )


def nones(arrays: Arrays, values: Any) -> list[torch.Tensor | None]:
    """`values` for what is of floating point among `arrays`, None for the others."""
    rest = iter(values)
    return [next(rest) if array.is_floating_point() else None for array in arrays]


def flatten(tree: Any) -> tuple[list[torch.Tensor], Structure]:
    leaves, spec = pytree.tree_flatten(_known(tree))
    return [leaf for leaf in leaves if leaf is not None], Structure(spec, tuple(leaf is not None for leaf in leaves))


def unflatten(structure: Structure, arrays: Sequence[Any]) -> Any:
    rest = iter(arrays)
    return pytree.tree_unflatten([next(rest) if is_array else None for is_array in structure.is_array], structure.spec)


def flatten_like(structure: Structure, tree: Any) -> list[Any]:
    """The leaves of `tree` in the order of `structure`, whose arrays may be None here: a dict keeps no order."""
    leaves = structure.spec.flatten_up_to(_known(tree))
    return [leaf for leaf, is_array in zip(leaves, structure.is_array, strict=True) if is_array]


def _known(tree: Any) -> Any:
    """`tree` of containers that torch's pytree knows."""
    return pytree.tree_map(lambda leaf: leaf if plain(leaf) is leaf else _known(plain(leaf)), tree)


def outputs(flat: Flat, carry: Arrays, ys: Arrays) -> tuple[Any, Any]:
    return unflatten(flat.carry, carry), unflatten(flat.ys, ys)


def map_arrays(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: None if leaf is None else function(leaf), _known(tree))


def member(tree: Any, axis: int | None) -> Any:
    """One member of a batch."""
    return tree if axis is None else map_arrays(lambda a: a.select(axis, 0), tree)


def batched(tree: Any, axis: int | None, to: int, size: int, every: bool) -> list[tuple[torch.Tensor, bool]]:
    """The arrays of `tree`, their batch moved to axis `to`, and whether they have one; with `every`, all have."""
    arrays, _ = flatten(tree)
    if axis is not None:
        return [(a.movedim(axis, to), True) for a in arrays]
    return [(a.unsqueeze(to).expand(*a.shape[:to], size, *a.shape[to:]) if every else a, every) for a in arrays]


def swap_axes(tree: Any) -> Any:
    return map_arrays(lambda a: a.transpose(0, 1), tree)
