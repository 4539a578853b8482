"""The checks of a stack's arguments, and of its layer by one run without values, before any loop is built.

What trace time does not know, the graph asserts; XLA drops assertions.
Source: https://www.tensorflow.org/api_docs/python/tf/debugging/Assert
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from reference import arguments
from tf_while.edges import as_leaf, fenced, stateful
from tf_while.trees import Arrays, FlatLayer, Layer, flatten, is_float


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


def one_size(arrays: Arrays, num_layers: int | None) -> Arrays:
    """`arrays` of one N, asserted where trace time does not know it."""
    if len(arrays) == 1 or all(a.shape.rank is not None and a.shape[0] is not None for a in arrays):
        return arrays
    sizes = tf.stack([tf.shape(a)[0] for a in arrays])
    check = tf.debugging.Assert(
        tf.reduce_all(tf.equal(sizes, sizes[0])), ["expected one leading axis of layers, got", sizes]
    )
    with tf.control_dependencies([check]):
        arrays = [*map(tf.identity, arrays)]
    for a in arrays:
        a.set_shape([num_layers, *a.shape[1:]] if a.shape.rank is not None else None)
    return arrays


def assert_dense_stack(weights: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The sizes that trace time does not know asserted, and known afterwards."""
    sizes = [None, None, None] if weights.shape.rank is None or x.shape.rank is None else [*weights.shape[1:], *x.shape]
    if None not in sizes:
        return weights, x
    w, v = tf.shape(weights), tf.shape(x)
    square = tf.equal(tf.size(w), 3) & tf.reduce_all(tf.equal(w[1:2], w[2:3]))
    fits = tf.equal(tf.size(v), 1) & tf.reduce_all(tf.equal(v[:1], w[1:2]))
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
