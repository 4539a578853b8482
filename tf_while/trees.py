"""Trees to flat lists and back.

Source: https://www.tensorflow.org/api_docs/python/tf/nest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while.edges import as_leaf, compiled_by_xla, fenced, operations, writes_where_it_reads

Layer = Callable[..., tuple[Any, Any]]
Arrays = list[Any]  # the arrays of a tree, flat
FlatLayer = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (carry, slices) -> (new_carry, ys)
Size = Any  # of an axis: an int, or a tensor where trace time does not know it


def flat(layer: Layer, stacked: tuple[Any, ...], init: Any) -> tuple[FlatLayer, Arrays, Arrays, Any, Any]:
    """`layer` between flat lists, and what goes in and comes out of it."""
    (arrays, pack_slices), (carry, pack_carry) = flatten(stacked), flatten(init)
    pack_ys: list[Any] = []

    def flat_layer(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = layer(pack_carry(carry), *pack_slices(slices))
        ys, pack = flatten(y)
        pack_ys[:] = [pack]
        return flatten(new_carry)[0], ys

    return flat_layer, arrays, carry, pack_carry, lambda ys: pack_ys[0](ys)


def tangents_like(name: str, given: Any, primals: tuple[Any, ...], of: tuple[str, ...]) -> tuple[Any, ...]:
    """`given` checked against `primals`, with zeros for a tree that is None, and None for what has no derivative."""
    arguments.check_tangents(as_leaf, name, given, primals, of)
    filled = []
    for primal, tangent in zip(primals, given, strict=True):
        arrays, pack = flatten(primal)
        values = [*map(tf.zeros_like, floats(arrays))] if tangent is None else flatten(tangent)[0]
        filled.append(pack(nones(values, arrays)))
    return tuple(filled)


def nones(values: Sequence[Any], arrays: Sequence[Any]) -> Arrays:
    """One of `values` for each of `arrays` for which derivatives exist, None for the others."""
    rest = iter(values)
    return [next(rest) if is_float(a) else None for a in arrays]


def filled(grads: Sequence[Any], like: Sequence[Any]) -> Arrays:
    """`grads` of `like`, with zeros for None, and an array where a gather left its indices."""
    return [tf.zeros_like(a) if g is None else tf.convert_to_tensor(g) for g, a in zip(grads, like, strict=True)]


def pulled(outputs: Arrays, wrt: Arrays, cotangents: Any, stop_gradients: Any = None) -> Arrays:
    """`tf.gradients` for the body of a loop: what it adds up is fenced, and added up two at a time.

    With colocation it would ignore device functions, and so `fenced`. Of a sum of three arrays the graph optimiser
    makes a variable where a program needs 200 MB, and in a loop makes it twice: "AlreadyExistsError".
    Source: https://github.com/tensorflow/tensorflow/issues/23780
    """
    with fenced():
        grads = tf.compat.v1.gradients(
            outputs,
            wrt,
            cotangents,
            colocate_gradients_with_ops=False,
            aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE,
            stop_gradients=stop_gradients,
        )
    graph = tf.compat.v1.get_default_graph()
    if not compiled_by_xla() and any(map(writes_where_it_reads, operations(graph))):
        raise arguments.wrong_twice("max_pool of stride 1 with padding SAME")
    return grads


def flatten(tree: Any) -> tuple[Arrays, Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and what puts others in their places. None, and whatever is no array, stays."""
    hole = object()
    arrays = [a for a in tf.nest.flatten(tree) if as_leaf(a) is not None]
    holes = tf.nest.map_structure(lambda a: a if as_leaf(a) is None else hole, tree)

    def pack(arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        return tf.nest.map_structure(lambda a: next(rest) if a is hole else a, holes)

    return [*map(tf.convert_to_tensor, arrays)], pack


def apart(tree: Any) -> tuple[list[tf.Tensor], Callable[..., Any]]:
    """`flatten`, with an array that stands in two places taken for two."""
    arrays, pack = flatten(tree)
    return [*map(tf.identity, arrays)], pack


def map_arrays(function: Callable[[tf.Tensor], tf.Tensor], tree: Any) -> Any:
    arrays, pack = flatten(tree)
    return pack([*map(function, arrays)])


def member(tree: Any, axis: int | None, to: int) -> Any:
    return tree if axis is None else map_arrays(lambda a: tf.gather(a, 0, axis=to), tree)


def moved(tree: Any, axis: int | None, to: int) -> Any:
    if axis is None:
        return tree

    def move(array: tf.Tensor) -> tf.Tensor:
        order = [*range(array.shape.rank)]
        order.insert(to, order.pop(axis))
        return array if order == sorted(order) else tf.transpose(array, order)

    return map_arrays(move, tree)


def is_float(array: Any) -> bool:
    """Whether derivatives exist for it."""
    return array.dtype.is_floating or array.dtype.is_complex


def floats(arrays: Sequence[Any]) -> Arrays:
    """Those of `arrays` for which derivatives exist."""
    return [a for a in arrays if is_float(a)]


def split(arrays: Sequence[Any], *counts: int) -> list[Arrays]:
    """`arrays` cut into lists of so many, and one of the rest."""
    parts, arrays = [], list(arrays)
    for count in counts:
        parts.append(arrays[:count])
        arrays = arrays[count:]
    return [*parts, arrays]


def depth(stacked: Arrays) -> Size:
    known = stacked[0].shape.rank is not None and stacked[0].shape[0] is not None
    return stacked[0].shape[0] if known else tf.shape(stacked[0])[0]
