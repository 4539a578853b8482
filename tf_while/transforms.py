"""Derivatives of a whole stack, by the framework's ordinary autodiff from outside.

TensorFlow differentiates `tf.while_loop` by itself, but its gradient of the read `weights[i]` adds a whole stack of
zeros for each layer: time N * N. What JAX does behind `jax.grad` is written out here instead: a loop forwards that
keeps the carries, then a loop backwards that takes the cotangent from the last layer to the first.
Source: https://www.tensorflow.org/api_docs/python/tf/custom_gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_while.edges import compile

Apply = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Layer = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, Any]]
Scan = Callable[[Layer, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def gradient(apply: Apply) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Reverse mode: `(weights, x, cotangent) -> (y, dweights, dx)`, shapes as in `scan_apply_layers`, cotangent [d]."""

    def run(weights: tf.Tensor, x: tf.Tensor, cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((weights, x))
            y = apply(weights, x)
        zero = tf.UnconnectedGradients.ZERO
        return y, *tape.gradient(y, (weights, x), cotangent, unconnected_gradients=zero)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[tf.Tensor, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))


def differentiable(scan_forward: Scan, layer: Layer, weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The stack y = scan_forward(layer, weights, x)[0] with a gradient of its own."""

    @tf.custom_gradient
    def stack(weights: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        y, carries = scan_forward(layer, weights, x)
        return y, lambda cotangent: _scan_vjp(layer, weights, carries, cotangent)

    return stack(weights, x)


def _scan_vjp(
    layer: Layer, weights: tf.Tensor, carries: tf.Tensor, cotangent: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    num_layers = tf.shape(weights)[0]
    dweights = tf.TensorArray(weights.dtype, num_layers, element_shape=weights.shape[1:])

    def body(i: tf.Tensor, cotangent: tf.Tensor, dweights: tf.TensorArray) -> tuple[Any, ...]:
        carry, w = carries[i], weights[i]
        # tf.gradients, not a tape: a tape in here would stop forward mode from passing through
        dcarry, dw = tf.gradients(layer(carry, w)[0], (carry, w), cotangent)
        return i - 1, dcarry, dweights.write(i, dw)

    start = (num_layers - 1, cotangent, dweights)
    _, dx, dweights = tf.while_loop(lambda i, *_: i >= 0, body, start, maximum_iterations=num_layers)
    return dweights.stack(), dx
