"""A mesh of devices, and arrays that lie on it in parts. JAX needs none of this: it has both.

Source: https://www.tensorflow.org/guide/gpu#manual_device_placement
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from reference import arguments, meshes
from tf_while import edges


class Mesh(NamedTuple):
    """Devices, of which the next along the last axis is the next in the list."""

    shape: dict[str, int]
    devices: list[str]
    groups: dict[str, list[int]]  # along each axis, the number of the group that each device is in
    tokens: dict[int, tf.Variable]  # of each device of this process; with it, collectives run one after the other

    def places(self, i: int) -> dict[str, int]:
        """Where device i is along each axis."""
        at = np.unravel_index(i, [*self.shape.values()])
        return {name: int(place) for name, place in zip(self.shape, at, strict=True)}


@dataclass(frozen=True)
class Parts:
    """An array that is cut: the part of each device, None where that is another process's."""

    parts: list[Any]
    cut: dict[str, int]  # {axis of the mesh: axis of the array}
    mesh: Mesh

    @property
    def shape(self) -> tf.TensorShape:
        """That of the whole."""
        times = {axis: self.mesh.shape[name] for name, axis in self.cut.items()}
        return tf.TensorShape([size * times.get(axis, 1) for axis, size in enumerate(self._own.shape)])

    @property
    def dtype(self) -> tf.DType:
        return self._own.dtype

    @property
    def _own(self) -> tf.Tensor:
        return next(part for part in self.parts if part is not None)

    def numpy(self) -> np.ndarray:
        """The whole, which no device holds; to be had where no other process has a part."""
        whole = np.empty(self.shape, self.dtype.as_numpy_dtype)
        for i, part in enumerate(self.parts):
            whole[_slices(self.shape, self.cut, self.mesh, i)] = part.numpy()
        return whole

    def whole(self) -> tf.Tensor:
        """The same, as an array of TensorFlow."""
        return tf.constant(self.numpy())


def as_leaf(value: Any) -> Any:
    return arguments.Leaf(tuple(value.shape), value.dtype.name) if isinstance(value, Parts) else edges.as_leaf(value)


def cut_up(name: str, tree: Any, mesh: Mesh, axes: dict[str, Any]) -> list[Parts]:
    """The arrays of `tree`, called `name`, each in its parts; what is in parts has to be cut so.

    Raises:
        ValueError: that of `meshes.check_cuts`, "args[0]['w']: expected an array cut along data = 1, got data = 0"
    """
    for path, array in arguments.leaves(name, tree, as_leaf):
        arguments.leaf(as_leaf, path, array)
    cuts = cuts_of(tree, axes)
    meshes.check_cuts(as_leaf, name, tree, cuts, mesh.shape)
    paths = {id(array): path for path, array in arguments.leaves(name, tree, as_leaf)}
    cut_arrays = []
    for array, cut in cuts:
        if isinstance(array, Parts):
            meshes.check_same_cut(paths[id(array)], cut, array.cut)
            cut_arrays.append(array)
            continue
        parts: list[Any] = [None] * len(mesh.devices)
        for i in mesh.tokens:
            with tf.device(mesh.devices[i]):
                parts[i] = tf.identity(array[_slices(array.shape, cut, mesh, i)])
        cut_arrays.append(Parts(parts, cut, mesh))
    return cut_arrays


def joined(results: dict[int, Any], mesh: Mesh, axes: dict[str, Any]) -> Any:
    """Of what each device returned: Parts of what is cut, of all else that of one device, which all have alike."""
    first = next(iter(results.values()))
    columns = [arrays_of(results[i]) if i in results else None for i in range(len(mesh.devices))]
    whole = []
    for j, (array, cut) in enumerate(cuts_of(first, axes)):
        parts = [None if column is None else column[j] for column in columns]
        whole.append(Parts(parts, cut, mesh) if cut else array)
    return packed(first, whole)


def cuts_of(tree: Any, axes: dict[str, Any]) -> list[tuple[Any, dict[str, int]]]:
    """Each array of `tree`, and which of its axes are cut by which of the mesh."""

    def along(axis: Any, part: Any) -> list[int | None]:
        if isinstance(axis, dict):
            return [found for name in sorted(axis) for found in along(axis[name], part[name])]
        if isinstance(axis, (tuple, list)):
            return [found for one, of in zip(axis, part, strict=True) for found in along(one, of)]
        return [axis] * len(arrays_of(part))

    columns = [along(axis, tree) for axis in axes.values()]
    rows = zip(*columns, strict=True) if columns else [()] * len(arrays_of(tree))
    named = [{n: axis for n, axis in zip(axes, row, strict=True) if axis is not None} for row in rows]
    return list(zip(arrays_of(tree), named, strict=True))


def packed(tree: Any, arrays: Sequence[Any]) -> Any:
    """`tree` with these in the places of its arrays."""
    rest = iter(arrays)
    return tf.nest.map_structure(lambda a: a if as_leaf(a) is None else next(rest), tree)


def arrays_of(tree: Any) -> list[Any]:
    return [a for a in tf.nest.flatten(tree) if as_leaf(a) is not None]


def _slices(shape: Any, cut: dict[str, int], mesh: Mesh, i: int) -> tuple[slice, ...]:
    """Where in an array of that shape the part of device i is."""
    slices, places = [slice(None)] * len(shape), mesh.places(i)
    for name, axis in cut.items():
        size = shape[axis] // mesh.shape[name]
        slices[axis] = slice(places[name] * size, (places[name] + 1) * size)
    return tuple(slices)
