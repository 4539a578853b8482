"""N layers for the graph of one, by `tf.while_loop`, after `jax_scan/stack.py`.

    y = x
    for w in weights:
        y = w @ y

The loop above traces N products into the graph; the while loop traces one, whatever N is, forward and backward.
TensorFlow has the loop but not the scan, so the counter, the read `weights[i]` and the list of carries are written
out. One graph serves every N; under XLA, `tf.function(scan_apply_layers, jit_compile=True)`, there is one for each N.
Source: https://www.tensorflow.org/api_docs/python/tf/while_loop
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while.layers import dense
from tf_while.transforms import Layer, differentiable


def scan_apply_layers(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Apply N dense layers, one after the other, with a program whose size does not depend on N.

    Equivalent loop:
        y = x
        for w in weights:
            y = w @ y

    Args:
        weights: [N, d, d], weights[i] is layer i; float16, bfloat16, float32 or float64. N = 0 returns x.
        x: [d], of the same dtype.

    Returns: y [d], of the same dtype. It never shares memory with an argument.

    Raises:
        TypeError: weights or x is no array of this framework, or the dtypes are wrong (words: reference/arguments.py).
        ValueError: "weights: expected shape (N, d, d), got ...", "x: expected shape (d,), got ..."

    Graph: exactly the same number of operations for every N >= 2, forward and gradient, with one loop each way.
    Limits: called as it stands it is a graph, not XLA. Under `tf.function(jit_compile=True)` N = 0 needs a static N and
        sizes unknown at trace time go unchecked.
    """
    _check(weights, x)
    weights, x = _check_at_run_time(tf.convert_to_tensor(weights), tf.convert_to_tensor(x))
    if tf.inside_function():  # the caller's own program: become part of it
        return _stack(weights, x)
    return _program(x.shape[0], x.dtype)(weights, x)


def unroll_apply_layers(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_apply_layers`."""
    _check(weights, x)
    weights, x = _check_at_run_time(tf.convert_to_tensor(weights), tf.convert_to_tensor(x))
    # Split once: the gradient of `weights[i]` would be a stack of zeros around each layer's, N times.
    y = tf.identity(x)
    for w in tf.unstack(weights):  # [d, d]
        y, _ = dense(y, w)
    return y


def _stack(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    if weights.shape[0] == 0:  # XLA refuses to trace a read from an empty stack
        return tf.identity(x)
    if x.shape[0] is None:  # an empty list of carries of unknown width cannot be stacked
        any_layer = tf.shape(weights)[0] > 0
        return tf.cond(any_layer, lambda: differentiable(_scan, dense, weights, x), lambda: tf.identity(x))
    return differentiable(_scan, dense, weights, x)


def _scan(layer: Layer, weights: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    num_layers = tf.shape(weights)[0]

    # The three things to get right, in the order in which they go wrong:
    # - scan runs over axis 0, so layers must be stacked along axis 0: weights[i] is layer i;
    # - the body is called as body(carry, x_i): the carry is the activation, x_i the layer's weights;
    # - the body returns a pair (new_carry, y) even when there is no per-layer output: `dense` returns y = None.
    def body(i: tf.Tensor, carry: tf.Tensor, carries: tf.TensorArray) -> tuple[Any, ...]:
        new_carry, _ = layer(carry, weights[i])
        return i + 1, new_carry, carries.write(i, carry)

    carries = tf.TensorArray(x.dtype, num_layers, element_shape=x.shape)
    start = (tf.constant(0), x, carries)
    # maximum_iterations: without it XLA cannot size the list of carries
    _, y, carries = tf.while_loop(lambda i, *_: i < num_layers, body, start, maximum_iterations=num_layers)
    return y, carries.stack()


_PROGRAMS: dict[tuple[int, tf.DType], tf.types.experimental.PolymorphicFunction] = {}


def _program(d: int, dtype: tf.DType) -> tf.types.experimental.PolymorphicFunction:
    """The graph for all N at one width and dtype, traced once."""
    if (d, dtype) not in _PROGRAMS:
        signature = [tf.TensorSpec([None, d, d], dtype), tf.TensorSpec([d], dtype)]
        _PROGRAMS[d, dtype] = tf.function(_stack, input_signature=signature, autograph=False)
    return _PROGRAMS[d, dtype]


def _check(weights: Any, x: Any) -> None:
    for name, value in (("weights", weights), ("x", x)):
        if not isinstance(value, (tf.Tensor, tf.Variable)):
            raise arguments.not_an_array(name, value)
    arguments.check_dense_stack(_leaf(weights), _leaf(x))


def _check_at_run_time(weights: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
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


def _leaf(array: tf.Tensor | tf.Variable) -> arguments.Leaf:
    return arguments.Leaf(None if array.shape.rank is None else tuple(array.shape), array.dtype.name)
