"""A small language model and its training, through the scanned stack of `transformer_decoder`.

One step is a gradient, clipped layer by layer, and AdamW: the gradient of a scanned stack is stacked like its params,
so an optimizer takes it as it is, and only what is meant for each layer by itself (`clip`) has to know.
Steps as in `reference/training.py`. The optimizer is written out: that of Keras adds eps before it corrects the second
moment, so that in the first steps its eps is larger, by (1 - b2 ** step) ** -0.5.
Source: https://www.tensorflow.org/guide/core/optimizers_core
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while.edges import compile
from tf_while.layers import LAYERS, rms_norm
from tf_while.recipes import clip_layers
from tf_while.stack import scan_layers, unroll_layers
from tf_while.trees import filled, flatten, map_arrays


def loss(
    params: dict[str, Any],
    batch: tf.Tensor,
    *,
    layer: Any = LAYERS["transformer_decoder"],
    unroll: bool = False,
    remat: bool | int = False,
) -> tf.Tensor:
    """Mean cross entropy, in nats, of each next token of a batch [B, T + 1] of integers.

    params: embedding [V, d], layers (stacked params of transformer_decoder), norm {scale [d]}, head [d, V]. layer:
    transformer_decoder, as devices.py makes it one of many devices."""
    stack: Callable[..., Any] = unroll_layers if unroll else partial(scan_layers, remat=remat)
    x = tf.gather(params["embedding"], batch[:, :-1])  # [B, T, d]
    x, _ = stack(layer, params["layers"], x)
    logits = tf.tensordot(rms_norm(x, params["norm"]), params["head"], 1)  # [B, T, V]
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[:, 1:], logits))


def train(
    params: dict[str, Any],
    batches: Iterable[Any],
    *,
    form: str = "scan",
    remat: bool | int = False,
    learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    max_norm: float = 0.5,
) -> tuple[tf.Tensor, dict[str, Any]]:
    """One step of AdamW for each of batches [steps, B, T + 1]: the losses before each, [steps], and the last params.

    form: "scan" or "unroll", a Python loop over the layers. remat: as in `scan_layers`. max_norm: of `clip`.

    Raises:
        ValueError: "form: expected scan or unroll, got 'loop'", "remat: expected False without a scan, got 2"
    """
    arguments.check_form(form, remat)

    @compile
    def step(params: Any, m: Any, v: Any, batch: Any, corrections: tf.Tensor) -> tuple[Any, Any, Any, tf.Tensor]:
        arrays, pack = flatten(params)
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = loss(params, batch, unroll=form == "unroll", remat=remat)
        gradients = clip(pack(filled(tape.gradient(value, arrays), arrays)), max_norm)
        m = tf.nest.map_structure(lambda m, g: b1 * m + (1 - b1) * g, m, gradients)
        v = tf.nest.map_structure(lambda v, g: b2 * v + (1 - b2) * g**2, v, gradients)

        def stepped(p: tf.Tensor, m: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            correction1, correction2 = tf.unstack(tf.cast(corrections, p.dtype))
            direction = (m / correction1) / (tf.sqrt(v / correction2) + eps)
            return p - learning_rate * (direction + weight_decay * p)

        return tf.nest.map_structure(stepped, params, m, v), m, v, value

    m, v, losses = map_arrays(tf.zeros_like, params), map_arrays(tf.zeros_like, params), []
    for i, batch in enumerate(batches, 1):
        # arguments, not constants, which would be another program for each step; in float32 1 - 0.95 has lost digits
        corrections = tf.constant([1 - b1**i, 1 - b2**i], tf.float64)
        params, m, v, value = step(params, m, v, batch, corrections)
        losses.append(value)
    return tf.stack(losses), params


def clip(gradients: dict[str, Any], max_norm: float) -> dict[str, Any]:
    """Each layer's gradients scaled down where their norm is above max_norm; what is not stacked as one more layer."""
    others = map_arrays(lambda g: g[None], {name: g for name, g in gradients.items() if name != "layers"})
    clipped = map_arrays(lambda g: g[0], clip_layers(others, max_norm))
    return {"layers": clip_layers(gradients["layers"], max_norm), **clipped}
