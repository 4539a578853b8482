"""Trees to flat lists and back. In the lists, complex arrays [...] are real ones [..., 2], which loops can carry.

Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/utils/_pytree.py (not a public name yet)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from reference import arguments
from torch_compile.edges import as_leaf, plain
from torch_compile.primitive import Arrays
from torch_compile.private import pytree

Layer = Callable[..., tuple[Any, Any]]


class Structure(NamedTuple):
    """How a tree holds its arrays; hashable. None holds none: to torch's pytree it is a leaf."""

    spec: pytree.TreeSpec
    is_array: tuple[bool, ...]
    is_complex: tuple[bool, ...]  # of each array


def tangents_like(name: str, given: Any, primals: tuple[Any, ...], of: tuple[str, ...]) -> tuple[Any, ...]:
    """`given` checked against `primals`, with zeros for a tree that is None, and None for what has no derivative."""
    arguments.check_tangents(as_leaf, name, given, primals, of)

    def zeros(primal: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(primal) if primal.is_floating_point() or primal.is_complex() else None

    return tuple(
        map_arrays(zeros, primal) if tangent is None else tangent
        for primal, tangent in zip(primals, given, strict=True)
    )


def nones(arrays: Arrays, values: Any) -> list[torch.Tensor | None]:
    """`values` for what is of floating point among `arrays`, None for the others."""
    rest = iter(values)
    return [next(rest) if array.is_floating_point() else None for array in arrays]


def with_floats(arrays: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Arrays:
    """`arrays`, those of floating point replaced by `values`."""
    rest = iter(values)
    return [next(rest) if array.is_floating_point() else array for array in arrays]


def flatten(tree: Any) -> tuple[list[torch.Tensor], Structure]:
    leaves, spec = pytree.tree_flatten(_known(tree))
    arrays = [leaf for leaf in leaves if leaf is not None]
    structure = Structure(spec, tuple(leaf is not None for leaf in leaves), tuple(a.is_complex() for a in arrays))
    return [*map(real, arrays)], structure if torch.compiler.is_dynamo_compiling() else one(structure)


@functools.lru_cache(maxsize=1024)
def one(structure: Structure) -> Structure:
    """One object for what is equal: programs are kept by it."""
    return structure


def unflatten(structure: Structure, arrays: Sequence[Any]) -> Any:
    values = zip(arrays, structure.is_complex, strict=True)
    rest = (torch.view_as_complex(a) if is_complex and a is not None else a for a, is_complex in values)
    return pytree.tree_unflatten([next(rest) if is_array else None for is_array in structure.is_array], structure.spec)


def flatten_like(structure: Structure, tree: Any) -> list[Any]:
    """The leaves of `tree` in the order of `structure`, whose arrays may be None here: a dict keeps no order."""
    leaves = structure.spec.flatten_up_to(_known(tree))
    arrays = [leaf for leaf, is_array in zip(leaves, structure.is_array, strict=True) if is_array]
    return [a if a is None else real(a) for a in arrays]


def real(array: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(array.resolve_conj()) if array.is_complex() else array


def _known(tree: Any) -> Any:
    """`tree` of containers that torch's pytree knows."""
    return pytree.tree_map(lambda leaf: leaf if plain(leaf) is leaf else _known(plain(leaf)), tree)


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
