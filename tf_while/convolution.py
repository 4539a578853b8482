"""The gradient of a convolution, so written that XLA makes it fast within a loop on the CPU.

XLA has fast convolutions of arrays in one order alone, [B, H, W, c] with [h, w, c, f]. It brings others into that
order, but not within a loop: there a gradient, which sums over B or f, takes 20 times as long. Here all are in order.
Source: https://github.com/jax-ml/jax/issues/12868
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Padding = list[list[int]]  # before and after each axis of [B, H, W, c]


def is_slow_in_a_loop(operation: tf.Operation) -> bool:
    """Whether `gradient` is for it: as most are, of stride 1 and without groups."""
    if operation.type != "Conv2D" or tf.config.list_physical_devices("GPU"):
        return False
    x, w = operation.inputs
    ones = all({*operation.get_attr(name)} == {1} for name in ("strides", "dilations"))
    in_order = operation.get_attr("data_format") == b"NHWC" and w.shape.is_fully_defined()
    return ones and in_order and x.shape.rank == 4 and x.shape[3] == w.shape[2] and _turned(operation) is not None


def gradient(operation: tf.Operation, dy: tf.Tensor) -> list[tf.Tensor]:
    """(dx, dw) of the convolution of x [B, H, W, c] by w [h, w, c, f], for dy [B, H', W', f]."""
    x, w = operation.inputs
    dx = tf.nn.conv2d(dy, tf.transpose(tf.reverse(w, [0, 1]), [0, 1, 3, 2]), 1, _turned(operation))
    # a convolution of the images of one channel, of which there are B, by dy
    dw = tf.nn.conv2d(tf.transpose(x, [3, 1, 2, 0]), tf.transpose(dy, [1, 2, 0, 3]), 1, _padding(operation))
    return [dx, tf.transpose(dw, [1, 2, 0, 3])]


def _padding(operation: tf.Operation) -> Padding:
    kind, sizes = operation.get_attr("padding"), operation.inputs[1].shape[:2]
    if kind == b"EXPLICIT":
        flat = operation.get_attr("explicit_paddings")
        return [flat[i : i + 2] for i in range(0, 8, 2)]
    both = [[0, 0] if kind == b"VALID" else [(size - 1) // 2, size // 2] for size in sizes]
    return [[0, 0], *both, [0, 0]]


def _turned(operation: tf.Operation) -> Padding | None:
    """That of dy; None where an array is padded by more than the kernel reaches."""
    sizes: Any = operation.inputs[1].shape[:2]
    both = [[size - 1 - a, size - 1 - b] for size, (a, b) in zip(sizes, _padding(operation)[1:3], strict=True)]
    return [[0, 0], *both, [0, 0]] if min(map(min, both)) >= 0 else None
