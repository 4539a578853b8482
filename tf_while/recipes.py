"""What users of layer stacks ask for, each a few lines around a layer or around `scan_layers`: gates, dropout, mixed
precision, the layer where NaN begins.

A recipe that wraps a layer returns a layer, so recipes nest, and go rolled and unrolled through every transform.
Source: https://www.tensorflow.org/guide/random_numbers
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while.edges import as_leaf
from tf_while.layers import wide
from tf_while.stack import scan_layers
from tf_while.trees import Layer, flatten, floats, is_float, map_arrays


def gated(layer: Layer) -> Layer:
    """`gate * new_carry + (1 - gate) * carry`: xs are gates [N], or (gates, xs of layer). Differentiable in the gate.

    Gates of 0 and 1 leave before the last layer, or pad stacks of several depths to one, and so to one program. A layer
    whose gate is 0 is still computed: where it is not finite, neither is the result. Its y stays as it is."""

    def step(carry: Any, params: Any, x: Any) -> tuple[Any, Any]:
        gate, *rest = x if isinstance(x, tuple) else (x,)
        new_carry, y = layer(carry, params, *rest)

        def mix(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            if not is_float(old):
                return tf.where(tf.equal(gate, 0), old, new)
            g = tf.cast(gate, old.dtype)
            return g * new + (1 - g) * old

        olds, pack = flatten(carry)
        return pack([mix(old, new) for old, new in zip(olds, flatten(new_carry)[0], strict=True)]), y

    return step


def layer_keys(seed: int, num_layers: int, shape: tuple[int, ...]) -> tf.Tensor:
    """One key a layer, as xs for layers that call `dropout` on arrays of `shape`: equal seeds, equal keys."""
    # [N, 2]: a seed of the stateless kind knows no shape.
    return tf.random.stateless_uniform([num_layers, 2], [seed, 0], None, None, tf.int32, alg="philox")


def dropout(array: tf.Tensor, key: tf.Tensor, rate: float) -> tf.Tensor:
    """Zero each element with probability `rate`, divide the others by 1 - rate. The mask depends on the key alone.

    XLA draws other numbers from a key than TensorFlow's own kernels: one mask in each."""
    arguments.check_rate(as_leaf, rate)
    kept = tf.random.stateless_uniform(tf.shape(array), key, alg="philox") < 1 - rate
    return tf.where(kept, tf.math.divide_no_nan(array, tf.cast(1 - rate, array.dtype)), tf.zeros_like(array))


def cast_params(layer: Layer, dtype: Any) -> Layer:
    """Mixed precision: floating-point params stay in their dtype outside and are cast to `dtype` inside the layer.

    Complex ones are not cast: no half precision holds them."""

    def cast(params: Any) -> Any:
        arrays, pack = flatten(params)
        return pack([tf.cast(a, dtype) if a.dtype.is_floating else a for a in arrays])

    return lambda carry, params, *x: layer(carry, cast(params), *x)


def locate_nonfinite(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> tf.Tensor:
    """The first layer, in the order in which they run, that makes a NaN or an infinity: its index, or -1 for none."""

    def step(carry: Any, params: Any, *x: Any) -> tuple[Any, tf.Tensor]:
        new_carry, y = layer(carry, params, *x)
        parts = [part(a) for a in floats(flatten((new_carry, y))[0]) for part in (tf.math.real, tf.math.imag)]
        return new_carry, tf.reduce_all(tf.stack([True, *(tf.reduce_all(tf.math.is_finite(a)) for a in parts)]))

    _, finite = scan_layers(step, stacked_params, init, xs, reverse=reverse)  # [N]
    order = tf.reverse(finite, [0]) if reverse else finite
    first = tf.argmin(tf.cast(order, tf.int32), output_type=tf.int32) if order.shape[0] != 0 else 0
    return tf.where(tf.reduce_all(finite), -1, tf.size(order) - 1 - first if reverse else first)


def cycled(*layers: Layer) -> Layer:
    """Layers of several kinds as one, whose params and y are tuples, one for each; xs too where there are xs."""

    def step(carry: Any, params: tuple[Any, ...], x: Any = None) -> tuple[Any, tuple[Any, ...]]:
        ys = []
        for i, layer in enumerate(layers):
            carry, y = layer(carry, params[i]) if x is None else layer(carry, params[i], x[i])
            ys.append(y)
        return carry, tuple(ys)

    return step


def scan_cycle(
    cycle: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    prefix: Sequence[tuple[Layer, Any]] = (),
    suffix: Sequence[tuple[Layer, Any]] = (),
    **options: Any,
) -> tuple[Any, tuple[list[Any], Any, list[Any]]]:
    """A stack that is not the same all the way: `scan_layers(cycle, ...)` between single layers.

    cycle: one layer, or `cycled(...)` of those that come in turn. prefix, suffix: (layer, params) of the layers before
    it, and of those after it that make no whole cycle: they are in the graph one by one, the cycles once.
    Returns (carry, (ys of the prefix, ys of scan_layers, ys of the suffix))."""
    carry, before = _in_turn(prefix, init)
    carry, ys = scan_layers(cycle, stacked_params, carry, xs, **options)
    carry, after = _in_turn(suffix, carry)
    return carry, (before, ys, after)


def _in_turn(layers: Sequence[tuple[Layer, Any]], carry: Any) -> tuple[Any, list[Any]]:
    ys = []
    for layer, params in layers:
        carry, y = layer(carry, params)
        ys.append(y)
    return carry, ys


def layer_norms(stacked: Any) -> tf.Tensor:
    """The Euclidean norm of each layer, [N], over all its floating-point arrays: one that is stacked is N arrays.

    In float32 or wider; of complex numbers the absolute values count."""
    largest, norms = _scaled_norms(stacked)
    return largest * norms


def clip_layers(gradients: Any, max_norm: float) -> Any:
    """Gradients [N, ...], those of a layer scaled down together where their norm is above max_norm."""
    largest, norms = _scaled_norms(gradients)

    def clip(g: tf.Tensor) -> tf.Tensor:
        if not is_float(g):
            return g
        scale, norm = (tf.reshape(a, [-1, *[1] * (g.shape.rank - 1)]) for a in (largest, norms))  # [N, ...]
        by, to = (tf.cast(a, wide(g).dtype) for a in (scale, max_norm / tf.maximum(norm, 1)))
        return tf.where(scale * norm <= max_norm, g, tf.cast(wide(g) / by * to, g.dtype))

    return map_arrays(clip, gradients)


def _scaled_norms(stacked: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Of each layer, [N], about the largest absolute value, and the norm divided by it: no square can overflow."""
    arrays, _ = flatten(stacked)
    rows = [*map(wide, floats(arrays))]
    rows = [tf.reshape(tf.abs(a), [tf.shape(a)[0], tf.reduce_prod(tf.shape(a)[1:])]) for a in rows]  # [N, size]
    rows = [tf.zeros([tf.shape(arrays[0])[0], 1]), *rows]  # where there are none
    rows = [tf.cast(row, max((row.dtype for row in rows), key=lambda dtype: dtype.size)) for row in rows]
    largest = functools.reduce(tf.maximum, [tf.reduce_max(row, 1) for row in rows])
    limit = largest.dtype.max / 16  # between it and its inverse, so that 1 / largest is a number too
    largest = tf.stop_gradient(tf.clip_by_value(largest, 1 / limit, limit))
    return largest, tf.sqrt(tf.add_n([tf.reduce_sum((row / largest[:, None]) ** 2, 1) for row in rows]))
