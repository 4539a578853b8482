"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

Line-parallel with `reference/layers.py` and with the other frameworks' `layers.py`. What frameworks choose differently
by default (precision, eps, flavours) is explicit in every layer, or said where it is a global switch.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf


def dense(carry: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    # TF32 is a global switch here, on by default on GPUs: tf.config.experimental.enable_tensor_float_32_execution.
    return tf.linalg.matvec(w, carry), None  # [d]


def mlp(carry: tf.Tensor, params: dict[str, Any]) -> tuple[tf.Tensor, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    norm, up, down = params["norm"], params["up"], params["down"]
    centred = carry - tf.reduce_mean(carry, -1, keepdims=True)
    variance = tf.reduce_mean(centred**2, -1, keepdims=True)
    h = centred * tf.math.rsqrt(variance + EPS) * norm["scale"] + norm["bias"]  # [..., d]
    h = tf.tensordot(h, up["w"], 1) + up["bias"]  # [..., f]; tf.matmul takes no vectors
    # gelu in the tanh form. That of tf.nn has a constant rounded to float32 in it, in float64 too.
    h = 0.5 * h * (1 + tf.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h)))
    h = tf.tensordot(h, down["w"], 1) + down["bias"]  # [..., d]
    return carry + h, None


EPS = 1e-5  # of the norm; frameworks' defaults differ
LAYERS = {"dense": dense, "mlp": mlp}
