"""Many devices: which axis of an array is cut along which axis of a mesh, and the words of errors about it.

A mesh is {name: size}. Axes are {name of the mesh's axis: axis of an array, or None}. No framework, so that all agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from reference.arguments import AsLeaf, leaf, leaves


def check_mesh(sizes: Mapping[str, Any], available: int) -> None:
    """Check the axes of a mesh.

    Raises:
        TypeError: "data: expected a number of devices, got '8'"
        ValueError: "sizes: expected 1 to 8 devices, got 16 (data = 2, tensor = 8)"
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: expected a number of devices, got {size!r}")
    if not sizes or min(sizes.values()) < 1 or math.prod(sizes.values()) > available:
        raise ValueError(f"sizes: expected 1 to {available} devices, got {math.prod(sizes.values())} ({_shown(sizes)})")


def check_name(mesh: Mapping[str, int], name: Any) -> None:
    """Check that the mesh has an axis of that name.

    Raises:
        ValueError: "name: expected an axis of the mesh (data = 2, tensor = 4), got 'model'"
    """
    if name not in mesh:
        raise ValueError(f"name: expected an axis of the mesh ({_shown(mesh)}), got {name!r}")


def outside() -> ValueError:
    """The error for a collective where no device runs."""
    return ValueError("mesh: expected a call within on_mesh, got one outside")


def check_same_cut(path: str, cut: Mapping[str, int], had: Mapping[str, int]) -> None:
    """Check that an array that is in parts is cut as it is to be, where the framework does not cut it anew.

    Raises:
        ValueError: "args[0]['w']: expected an array cut along data = 1, got data = 0"
    """
    if cut != had:
        raise ValueError(f"{path}: expected an array cut along {_shown(cut)}, got {_shown(had)}")


def check_cuts(
    as_leaf: AsLeaf, of: str, tree: Any, cuts: Iterable[tuple[Any, dict[str, int]]], mesh: Mapping[str, int]
) -> None:
    """Check `cuts`, (array, its axes) for each array of `tree`; of stacked_params, that no layer is apart from others.

    Raises:
        ValueError: that of `check_name`, "stacked_params['up']['w']: expected an axis from 1 to 2 to be cut, got 0",
            "stacked_params: expected one cut along an axis, got data = 1, tensor = 1", "stacked_params: expected a size
            along axis 1 that 8 devices divide, got shape (2, 12)"
    """
    paths = {id(value): path for path, value in leaves(of, tree, as_leaf)}
    first = int(of == "stacked_params")
    for array, axes in cuts:
        path = paths[id(array)]
        shape = leaf(as_leaf, path, array).shape or ()
        for name, axis in axes.items():
            check_name(mesh, name)
            if not first <= axis < len(shape):
                raise ValueError(f"{path}: expected an axis from {first} to {len(shape) - 1} to be cut, got {axis}")
            if list(axes.values()).count(axis) > 1:
                raise ValueError(f"{path}: expected one cut along an axis, got {_shown(axes)}")
            size = shape[axis]
            if size is not None and size % mesh[name]:
                expected = f"a size along axis {axis} that {mesh[name]} devices divide"
                raise ValueError(f"{path}: expected {expected}, got shape {shape}")


def no_loop(kind: str) -> TypeError:
    """What a stack raises that is given arrays which are cut, where loops take none."""
    return TypeError(f"stacked_params, init, xs: expected parts of arrays, as within on_mesh, got {kind}")


def _shown(mesh: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in mesh.items())
