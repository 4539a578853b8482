"""Trees to flat lists and back, and the checks of a stack's arguments, before any loop is built.

Source: https://www.tensorflow.org/api_docs/python/tf/nest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from reference import arguments, made_of
from tf_while.edges import as_leaf, fenced, stateful

Layer = Callable[..., tuple[Any, Any]]
Arrays = list[Any]  # the arrays of a tree, flat
FlatLayer = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (carry, slices) -> (new_carry, ys)
Size = Any  # of an axis: an int, or a tensor where trace time does not know it


def prepare(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any,
    reverse: bool = False,
    unroll: int = 1,
    remat: bool | int = False,
) -> Any:
    """Check the arguments of a stack, running the layer once on arrays without values; the number of layers.

    Raises:
        TypeError, ValueError: words in reference/arguments.py
    """
    num_layers = arguments.check_scan(as_leaf, stacked_params, init, xs, reverse, unroll, remat)
    (arrays, pack_slices), (carry_arrays, pack_carry) = flatten((stacked_params, xs)), flatten(init)

    def run_once(carry_arrays: Arrays, slice_arrays: Arrays) -> tuple[Any, Arrays]:
        carry, (params, x) = pack_carry(carry_arrays), pack_slices(slice_arrays)
        output = layer(carry, params) if xs is None else layer(carry, params, x)
        arguments.check_layer(as_leaf, carry, output)
        return [], []

    trace_flat(run_once, arrays, carry_arrays)
    return num_layers


class Traced(NamedTuple):
    like_ys: Arrays  # shapes and dtypes
    closed_over: list[tuple[Any, Any]]  # arrays of floating point: (what the layer captures, value)
    captures: Arrays  # all that it captures
    state: str | None  # the first operation in it that draws or writes something whenever it runs
    graph: Any  # of the layer, from [*carry, *slices, *captures] to (new_carry, ys)


def trace_flat(layer: FlatLayer, stacked: Arrays, carry: Arrays) -> Traced:
    """`layer` traced once, on arrays without values."""
    slices = [tf.TensorSpec(a.shape[1:], a.dtype) for a in stacked]
    carry = [tf.TensorSpec(a.shape, a.dtype) for a in carry]
    with fenced():
        traced = tf.function(layer, autograph=False).get_concrete_function(carry, slices)
    variables = {id(v.handle): v for v in traced.graph.variables}
    captures = [(c, variables.get(id(c), c)) for c in traced.graph.external_captures]
    closed_over = [(c, tf.convert_to_tensor(value)) for c, value in captures if is_float(value)]
    like_ys = [tf.TensorSpec(y.shape, y.dtype) for y in traced.graph.structured_outputs[1]]
    return Traced(
        like_ys, closed_over, traced.graph.external_captures, next(stateful(traced.graph), None), traced.graph
    )


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

    tf.gradients itself ignores device functions, and so `fenced`. Of a sum of three arrays the graph optimiser makes a
    variable where a program needs 200 MB, and in a loop makes it twice: "AlreadyExistsError".
    Source: https://github.com/tensorflow/tensorflow/issues/23780
    """
    return tf.compat.v1.gradients(
        outputs,
        wrt,
        cotangents,
        colocate_gradients_with_ops=False,
        aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE,
        stop_gradients=stop_gradients,
    )


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


def one_size(arrays: Arrays, num_layers: int | None) -> Arrays:
    """`arrays` of one N; the graph asserts what trace time does not know. XLA drops assertions."""
    if len(arrays) == 1 or all(a.shape.rank is not None and a.shape[0] is not None for a in arrays):
        return arrays
    sizes = tf.stack([tf.shape(a)[0] for a in arrays])
    check = tf.debugging.Assert(tf.reduce_all(sizes == sizes[0]), ["expected one leading axis of layers, got", sizes])
    with tf.control_dependencies([check]):
        arrays = [*map(tf.identity, arrays)]
    for a in arrays:
        a.set_shape([num_layers, *a.shape[1:]] if a.shape.rank is not None else None)
    return arrays


def assert_dense_stack(weights: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Let the graph assert the sizes that trace time does not know, and know them afterwards. XLA drops assertions."""
    sizes = [None, None, None] if weights.shape.rank is None or x.shape.rank is None else [*weights.shape[1:], *x.shape]
    if None not in sizes:
        return weights, x
    w, v = tf.shape(weights), tf.shape(x)
    square = (tf.size(w) == 3) & tf.reduce_all(w[1:2] == w[2:3])
    fits = (tf.size(v) == 1) & tf.reduce_all(v[:1] == w[1:2])
    checks = [
        tf.debugging.Assert(square, ["weights: expected shape (N, d, d), got", w]),
        tf.debugging.Assert(fits, ["x: expected shape", w[1:2], "got", v]),
    ]
    with tf.control_dependencies(checks):
        weights, x = tf.identity(weights), tf.identity(x)
    d = next((size for size in sizes if size is not None), None)
    weights.set_shape([None, d, d])
    x.set_shape([d])
    return weights, x


def as_program(
    run: Callable[..., Any], static: tuple[Any, ...], trees: tuple[Any, ...], deep: tuple[int, ...] = ()
) -> Any:
    """`run(*static, *trees)`: part of the program that is being traced, or else a program of its own, which is kept by
    what `static` is made of: a layer that does the same finds it, one that reads a value that has changed does not.

    Arrays of the trees at the indices `deep` may have any N in that program."""
    if tf.inside_function():
        return run(*static, *trees)
    arrays, pack = flatten(trees)
    any_depth = [i in deep for i, tree in enumerate(trees) for _ in flatten(tree)[0]]
    shapes = [[None, *a.shape[1:]] if any_n else a.shape for a, any_n in zip(arrays, any_depth, strict=True)]
    specs = [tf.TensorSpec(shape, a.dtype) for shape, a in zip(shapes, arrays, strict=True)]
    key = run, made_of.made_of(static), arguments.structure(as_leaf, trees), repr(specs)
    if key not in _PROGRAMS:
        program = tf.function(lambda *arrays: run(*static, *pack(arrays)), input_signature=specs, autograph=False)
        # traced here and now: where functions are to run eagerly this is a graph still, and has its derivatives
        traced = program.get_concrete_function()
        while len(_PROGRAMS) >= MAX_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
        _PROGRAMS[key] = traced
    return _PROGRAMS[key](*arrays)


_PROGRAMS: dict[Any, Any] = {}


MAX_PROGRAMS = 256
