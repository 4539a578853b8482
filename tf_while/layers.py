"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

The same layers in the same order as in the other frameworks' `layers.py`; right is what `reference/layers.py` says.
What frameworks choose differently by default (precision, eps, flavours) is explicit in every layer. Shapes are checked,
in the words of `reference/shapes.py`; those of `dense` by its stack.
Source: https://www.tensorflow.org/api_docs/python/tf/einsum (of attention; TensorFlow itself has no fused one)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from reference import shapes
from tf_while.edges import as_leaf

# TF32 is a global switch here, on by default on GPUs: tf.config.experimental.enable_tensor_float_32_execution.


# What tensor parallelism puts before and after the products that it cuts (devices.py).
Hook = Callable[[tf.Tensor], tf.Tensor]


def same(x: tf.Tensor) -> tf.Tensor:
    return x


def dense(carry: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    return tf.cast(tf.linalg.matvec(whole(w), whole(carry)), carry.dtype), None  # [d]


def mlp(carry: tf.Tensor, params: dict[str, Any], *, enter: Hook = same, leave: Hook = same) -> tuple[tf.Tensor, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    shapes.check(as_leaf, "mlp", carry, params)
    h = enter(_layer_norm(carry, params["norm"], EPS))  # [..., d]
    h = _product(h, params["up"]["w"]) + params["up"]["bias"]  # [..., f]
    # gelu in the tanh form. That of tf.nn has a constant rounded to float32 in it, in float64 too.
    h = wide(h)
    h = tf.cast(0.5 * h * (1 + tf.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h))), carry.dtype)
    h = leave(_product(h, params["down"]["w"])) + params["down"]["bias"]  # [..., d]
    return carry + h, None


def transformer_encoder(
    carry: dict[str, tf.Tensor], params: dict[str, Any], *, enter: Hook = same, leave: Hook = same
) -> tuple[dict[str, tf.Tensor], None]:
    """Post-norm block of BERT: x = norm1(x + attention(x)), then norm2(x + down(gelu(up(x)))); no per-layer output.

    carry: x [B, T, d], mask [B, T] of bool, True where there is a token: others are not attended to.
    params: query, key, value {w [d, h, e], bias [h, e]}, out {w [h, e, d], bias [d]}, norm1 and norm2 {scale [d],
        bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    shapes.check(as_leaf, "transformer_encoder", carry, params)
    x, mask = carry["x"], carry["mask"]
    n = enter(x)
    q, k, v = (_product(n, params[name]["w"]) + params[name]["bias"] for name in ("query", "key", "value"))
    a = attend(q, (k, v, mask[:, None, None, None, :]))  # [B, T, h, e]
    x = _layer_norm(x + leave(_product(a, params["out"]["w"], 2)) + params["out"]["bias"], params["norm1"], EPS_BERT)
    h = _product(enter(x), params["up"]["w"]) + params["up"]["bias"]  # [B, T, f]
    # gelu in the exact form. Of 1 + erf the last bits alone are left where h is negative, and XLA's erf has wrong ones.
    h = tf.cast(0.5 * wide(h) * tf.math.erfc(-wide(h) / math.sqrt(2)), x.dtype)
    h = leave(_product(h, params["down"]["w"])) + params["down"]["bias"]  # [B, T, d]
    return {"x": _layer_norm(x + h, params["norm2"], EPS_BERT), "mask": mask}, None


def transformer_decoder(
    carry: tf.Tensor,
    params: dict[str, Any],
    window: tf.Tensor | None = None,
    *,
    enter: Hook = same,
    leave: Hook = same,
) -> tuple[tf.Tensor, None]:
    """Pre-norm block: x + attention(norm1(x)), then x + down(silu(gate(h)) * up(h)), h = norm2(x).

    RMS norms, rotary positions, causal attention with g heads of keys and values for h heads of queries: query head i
    reads head i // (h / g). Nothing has a bias. carry x [B, T, d]; window [], integer: how far back a position sees,
    itself included; no per-layer output.
    params: norm1 and norm2 {scale [d]}, query {w [d, h, e]}, key and value {w [d, g, e]}, out {w [h, e, d]}, gate and
        up {w [d, f]}, down {w [f, d]}.
    """
    positions = tf.range(tf.shape(carry)[1])
    q, k, v = queries_keys_values(carry, params, positions, enter)
    return finish(carry, params, attend(q, (k, v, causal(positions, positions, window))), enter, leave), None


def residual_conv(carry: tf.Tensor, params: dict[str, Any]) -> tuple[tf.Tensor, dict[str, Any]]:
    """Basic block of ResNet v2: x + conv2(relu(norm2(conv1(relu(norm1(x)))))), a zero of padding around each image.

    carry [B, y, x, c]. The norms are batch norms: y has what each saw, {mean [c], variance [c]}, for running averages,
    in at least float32, since float16 ends at 65504.
    params: norm1 and norm2 {scale [c], bias [c]}, conv1 and conv2 {w [3, 3, c, c]}.
    """
    shapes.check(as_leaf, "residual_conv", carry, params)
    h, seen1 = _batch_norm(carry, params["norm1"])
    h = _conv(tf.nn.relu(h), params["conv1"]["w"])
    h, seen2 = _batch_norm(h, params["norm2"])
    h = _conv(tf.nn.relu(h), params["conv2"]["w"])
    return carry + h, {"norm1": seen1, "norm2": seen2}


LAYERS = {
    "dense": dense,
    "mlp": mlp,
    "transformer_encoder": transformer_encoder,
    "transformer_decoder": transformer_decoder,
    "residual_conv": residual_conv,
}

# Constants for which frameworks have other defaults.
EPS = 1e-5  # of norms
EPS_BERT = 1e-12  # of the norms of transformer_encoder
BASE = 10_000.0  # of rotary positions


def init_layers(layer: str, seed: int, num_layers: int, dtype: str = "float32", **sizes: int) -> Any:
    """Stacked params of that layer: equal to num_layers inits with the seeds of `stateless_split`.

    sizes: of the symbols in `reference/shapes.py`, as d=64, f=256. Weights are normal with a standard deviation of
    fan-in ** -0.5, scales 1, biases 0."""
    keys = tf.random.split([seed, 0], num_layers)  # [N, 2]
    layers = [init_layer(layer, key, dtype, **sizes) for key in keys]
    return tf.nest.map_structure(lambda *arrays: tf.stack(arrays), *layers)


def init_layer(layer: str, key: tf.Tensor, dtype: str = "float32", **sizes: int) -> Any:
    """Params of one layer."""
    keys = iter(tf.random.split(key, 16))  # no layer draws as many arrays

    def normal(shape: tuple[int, ...], scale: float) -> tf.Tensor:
        return scale * tf.random.stateless_normal(shape, next(keys), dtype=dtype)

    return shapes.first_values(layer, sizes, normal, lambda shape, value: tf.fill(shape, tf.cast(value, dtype)))


def queries_keys_values(
    x: tf.Tensor, params: dict[str, Any], positions: tf.Tensor, enter: Hook = same
) -> tuple[tf.Tensor, ...]:
    """Of transformer_decoder, at those positions [T]: q [B, T, h, e], k and v [B, T, g, e]."""
    shapes.check(as_leaf, "transformer_decoder", x, params)
    n = enter(rms_norm(x, params["norm1"]))
    q, k = (_rotate(_product(n, params[name]["w"]), positions) for name in ("query", "key"))
    return q, k, _product(n, params["value"]["w"])


def finish(x: tf.Tensor, params: dict[str, Any], a: tf.Tensor, enter: Hook = same, leave: Hook = same) -> tf.Tensor:
    """What transformer_decoder makes of its attention a [B, T, h, e]."""
    x = x + leave(_product(a, params["out"]["w"], 2))  # [B, T, d]
    n = enter(rms_norm(x, params["norm2"]))
    gate, up = (_product(n, params[name]["w"]) for name in ("gate", "up"))  # [B, T, f]
    return x + leave(_product(gate * tf.sigmoid(gate) * up, params["down"]["w"]))


def causal(of: tf.Tensor, sees: tf.Tensor, window: tf.Tensor | None = None) -> tf.Tensor:
    """Which of the positions `sees` [S] each position `of` [T] attends to."""
    back = of[:, None] - sees
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def attend(q: tf.Tensor, *parts: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """softmax(q k / sqrt(e)) v, with q [B, T, h, e], over all parts: k and v [B, S, g, e], mask [..., T, S]."""
    B, T, h, e = (tf.shape(q)[i] if size is None else size for i, size in enumerate(q.shape))
    dtype, q, parts = q.dtype, wide(q), tuple((wide(k), wide(v), mask) for k, v, mask in parts)
    q = tf.reshape(q, [B, T, parts[0][0].shape[2], -1, e]) * e**-0.5  # [B, T, g, h / g, e]
    scores = [tf.einsum("btgre,bsge->bgrts", q, k) for k, _, _ in parts]
    scores = [tf.where(mask, s, s.dtype.min) for s, (_, _, mask) in zip(scores, parts, strict=True)]
    weights = tf.split(tf.nn.softmax(tf.concat(scores, -1)), [tf.shape(s)[-1] for s in scores], -1)
    pairs = zip(weights, parts, strict=True)
    a = tf.add_n([tf.einsum("bgrts,bsge->btgre", w, v) for w, (_, v, _) in pairs])
    return tf.cast(tf.reshape(a, [B, T, h, e]), dtype)


def wide(x: tf.Tensor) -> tf.Tensor:
    """x in at least float32: float16 has no 256**2, bfloat16 no 257, and squares and positions are larger."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def whole(x: tf.Tensor) -> tf.Tensor:
    """x as it goes into a product. On a CPU TensorFlow sums half precision in half precision, or cuts bfloat16 off
    where it should round, and which of them depends on the processor."""
    return x if tf.config.list_physical_devices("GPU") else wide(x)


def _product(x: tf.Tensor, w: tf.Tensor, axes: int = 1) -> tf.Tensor:
    """Over the last axes of x and the first of w. tf.matmul takes no vectors."""
    return tf.cast(tf.tensordot(whole(x), whole(w), axes), x.dtype)


def _rotate(q: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rotary positions: the pairs (q[i], q[i + e/2]) turned by positions * BASE ** (-2 i / e)."""
    half, dtype, q = q.shape[-1] // 2, q.dtype, wide(q)
    frequencies = BASE ** (-tf.range(half, dtype=q.dtype) / half)
    angles = tf.cast(positions, q.dtype)[:, None] * frequencies  # [T, e/2]
    cos, sin = (f(angles)[:, None, :] for f in (tf.cos, tf.sin))
    a, b = q[..., :half], q[..., half:]
    return tf.cast(tf.concat([a * cos - b * sin, b * cos + a * sin], -1), dtype)


def _layer_norm(x: tf.Tensor, params: dict[str, tf.Tensor], eps: float) -> tf.Tensor:
    centred = wide(x) - tf.reduce_mean(wide(x), -1, keepdims=True)
    variance = tf.reduce_mean(centred**2, -1, keepdims=True)
    return tf.cast(centred * tf.math.rsqrt(variance + eps), x.dtype) * params["scale"] + params["bias"]


def rms_norm(x: tf.Tensor, params: dict[str, tf.Tensor]) -> tf.Tensor:
    """x / sqrt(mean(x**2) + EPS) * scale, over the last axis."""
    rms = tf.math.rsqrt(tf.reduce_mean(wide(x) ** 2, -1, keepdims=True) + EPS)
    return tf.cast(wide(x) * rms, x.dtype) * params["scale"]


def _batch_norm(x: tf.Tensor, params: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    mean = tf.reduce_mean(wide(x), (0, 1, 2))
    variance = tf.reduce_mean((wide(x) - mean) ** 2, (0, 1, 2))
    normed = tf.cast((wide(x) - mean) * tf.math.rsqrt(variance + EPS), x.dtype) * params["scale"] + params["bias"]
    return normed, {"mean": mean, "variance": variance}


def _conv(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.nn.conv2d(whole(x), whole(w), 1, [[0, 0], [1, 1], [1, 1], [0, 0]]), x.dtype)
