"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

Line-parallel with `reference/layers.py` and with the other frameworks' `layers.py`. What frameworks choose differently
by default (precision, eps, flavours) is explicit in every layer, or said where it is a global switch.
"""

from __future__ import annotations

import tensorflow as tf


def dense(carry: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    # TF32 is a global switch here, on by default on GPUs: tf.config.experimental.enable_tensor_float_32_execution.
    return tf.linalg.matvec(w, carry), None  # [d]


LAYERS = {"dense": dense}
