"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

The same layers in the same order as in the other frameworks' `layers.py`; right is what `reference/layers.py` says.
What frameworks choose differently by default (precision, eps, flavours) is explicit in every layer. Shapes are checked,
in the words of `reference/shapes.py`; those of `dense` by its stack.
Source: https://docs.jax.dev/en/latest/_autosummary/jax.numpy.einsum.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from jax_scan.edges import as_leaf
from reference import shapes

# HIGHEST: no TF32 where the hardware has it. A product alone leaves that to a global flag.
HIGHEST = lax.Precision.HIGHEST

# What tensor parallelism puts before and after the products that it cuts (devices.py).
Hook = Callable[[jax.Array], jax.Array]


def same(x: jax.Array) -> jax.Array:
    return x


def dense(carry: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    return _product(w, carry), None  # [d]


def mlp(carry: jax.Array, params: dict[str, Any], *, enter: Hook = same, leave: Hook = same) -> tuple[jax.Array, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    shapes.check(as_leaf, "mlp", carry, params)
    h = enter(_layer_norm(carry, params["norm"], EPS))  # [..., d]
    h = jnp.matmul(h, params["up"]["w"], precision=HIGHEST) + params["up"]["bias"]  # [..., f]
    h = _activation(lambda h: jax.nn.gelu(wide(h), approximate=True).astype(h.dtype), h)  # the tanh form
    h = leave(jnp.matmul(h, params["down"]["w"], precision=HIGHEST)) + params["down"]["bias"]  # [..., d]
    return carry + h, None


def transformer_encoder(
    carry: dict[str, jax.Array], params: dict[str, Any], *, enter: Hook = same, leave: Hook = same
) -> tuple[dict[str, jax.Array], None]:
    """Post-norm block of BERT: x = norm1(x + attention(x)), then norm2(x + down(gelu(up(x)))); no per-layer output.

    carry: x [B, T, d], mask [B, T] of bool, True where there is a token: others are not attended to.
    params: query, key, value {w [d, h, e], bias [h, e]}, out {w [h, e, d], bias [d]}, norm1 and norm2 {scale [d],
        bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    shapes.check(as_leaf, "transformer_encoder", carry, params)
    x, mask = carry["x"], carry["mask"]
    n = enter(x)
    q, k, v = (_heads(n, params[name]["w"]) + params[name]["bias"] for name in ("query", "key", "value"))
    a = attend(q, (k, v, mask[:, None, None, None, :]))  # [B, T, h, e]
    x = _layer_norm(x + leave(_merge(a, params["out"]["w"])) + params["out"]["bias"], params["norm1"], EPS_BERT)
    h = jnp.matmul(enter(x), params["up"]["w"], precision=HIGHEST) + params["up"]["bias"]  # [B, T, f]
    h = _activation(lambda h: jax.nn.gelu(wide(h), approximate=False).astype(h.dtype), h)  # the exact form
    h = leave(jnp.matmul(h, params["down"]["w"], precision=HIGHEST)) + params["down"]["bias"]  # [B, T, d]
    return {"x": _layer_norm(x + h, params["norm2"], EPS_BERT), "mask": mask}, None


def transformer_decoder(
    carry: jax.Array,
    params: dict[str, Any],
    window: jax.Array | None = None,
    *,
    enter: Hook = same,
    leave: Hook = same,
) -> tuple[jax.Array, None]:
    """Pre-norm block: x + attention(norm1(x)), then x + down(silu(gate(h)) * up(h)), h = norm2(x).

    RMS norms, rotary positions, causal attention with g heads of keys and values for h heads of queries: query head i
    reads head i // (h / g). Nothing has a bias. carry x [B, T, d]; window [], integer: how far back a position sees,
    itself included; no per-layer output.
    params: norm1 and norm2 {scale [d]}, query {w [d, h, e]}, key and value {w [d, g, e]}, out {w [h, e, d]}, gate and
        up {w [d, f]}, down {w [f, d]}.
    """
    positions = jnp.arange(carry.shape[1])
    q, k, v = queries_keys_values(carry, params, positions, enter)
    return finish(carry, params, attend(q, (k, v, causal(positions, positions, window))), enter, leave), None


def residual_conv(carry: jax.Array, params: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
    """Basic block of ResNet v2: x + conv2(relu(norm2(conv1(relu(norm1(x)))))), a zero of padding around each image.

    carry [B, y, x, c]. The norms are batch norms: y has what each saw, {mean [c], variance [c]}, for running averages,
    in at least float32, since float16 ends at 65504.
    params: norm1 and norm2 {scale [c], bias [c]}, conv1 and conv2 {w [3, 3, c, c]}.
    """
    shapes.check(as_leaf, "residual_conv", carry, params)
    h, seen1 = _batch_norm(carry, params["norm1"])
    h = _conv(jax.nn.relu(h), params["conv1"]["w"])
    h, seen2 = _batch_norm(h, params["norm2"])
    h = _conv(jax.nn.relu(h), params["conv2"]["w"])
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
    """Stacked params of that layer: equal to num_layers inits with the keys of `jax.random.split`.

    sizes: of the symbols in `reference/shapes.py`, as d=64, f=256. Weights are normal with a standard deviation of
    fan-in ** -0.5, scales 1, biases 0."""
    keys = jax.random.split(jax.random.key(seed), num_layers)
    return jax.vmap(lambda key: init_layer(layer, key, dtype, **sizes))(keys)


def init_layer(layer: str, key: jax.Array, dtype: str = "float32", **sizes: int) -> Any:
    """Params of one layer."""
    keys = iter(jax.random.split(key, 16))  # no layer draws as many arrays

    def normal(shape: tuple[int, ...], scale: float) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape, dtype)

    return shapes.first_values(layer, sizes, normal, lambda shape, value: jnp.full(shape, value, dtype))


def queries_keys_values(
    x: jax.Array, params: dict[str, Any], positions: jax.Array, enter: Hook = same
) -> tuple[jax.Array, ...]:
    """Of transformer_decoder, at those positions [T]: q [B, T, h, e], k and v [B, T, g, e]."""
    shapes.check(as_leaf, "transformer_decoder", x, params)
    n = enter(rms_norm(x, params["norm1"]))
    q, k = (_rotate(_heads(n, params[name]["w"]), positions) for name in ("query", "key"))
    return q, k, _heads(n, params["value"]["w"])


def finish(x: jax.Array, params: dict[str, Any], a: jax.Array, enter: Hook = same, leave: Hook = same) -> jax.Array:
    """What transformer_decoder makes of its attention a [B, T, h, e]."""
    x = x + leave(_merge(a, params["out"]["w"]))  # [B, T, d]
    n = enter(rms_norm(x, params["norm2"]))
    gate, up = (jnp.matmul(n, params[name]["w"], precision=HIGHEST) for name in ("gate", "up"))  # [B, T, f]
    return x + leave(jnp.matmul(_activation(jax.nn.silu, gate) * up, params["down"]["w"], precision=HIGHEST))


def causal(of: jax.Array, sees: jax.Array, window: jax.Array | None = None) -> jax.Array:
    """Which of the positions `sees` [S] each position `of` [T] attends to."""
    back = of[:, None] - sees
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def attend(q: jax.Array, *parts: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """softmax(q k / sqrt(e)) v, with q [B, T, h, e], over all parts: k and v [B, S, g, e], mask [..., T, S]."""
    # jax.nn.dot_product_attention is no more fused than this on the CPU, and takes the softmax of float64 in float32
    dtype, q, parts = q.dtype, wide(q), tuple((wide(k), wide(v), mask) for k, v, mask in parts)
    q = q.reshape(*q.shape[:2], parts[0][0].shape[2], -1, q.shape[3]) * q.shape[-1] ** -0.5  # [B, T, g, h / g, e]
    scores = [jnp.einsum("btgre,bsge->bgrts", q, k, precision=HIGHEST) for k, _, _ in parts]
    scores = [jnp.where(mask, s, jnp.finfo(s.dtype).min) for s, (_, _, mask) in zip(scores, parts, strict=True)]
    weights = jnp.split(jax.nn.softmax(jnp.concatenate(scores, -1)), [s.shape[-1] for s in scores[:-1]], -1)
    pairs = zip(weights, parts, strict=True)
    a = reduce(add, [jnp.einsum("bgrts,bsge->btgre", w, v, precision=HIGHEST) for w, (_, v, _) in pairs])
    return a.reshape(*a.shape[:2], -1, a.shape[4]).astype(dtype)  # [B, T, h, e]


def wide(x: jax.Array) -> jax.Array:
    """x in at least float32: float16 has no 256**2, bfloat16 no 257, and squares and positions are larger."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _heads(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("btd,dhe->bthe", x, w, precision=HIGHEST)


def _merge(a: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("bthe,hed->btd", a, w, precision=HIGHEST)


def _rotate(q: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary positions: the pairs (q[i], q[i + e/2]) turned by positions * BASE ** (-2 i / e)."""
    half, dtype, q = q.shape[-1] // 2, q.dtype, wide(q)
    angles = positions[:, None] * BASE ** (-jnp.arange(half, dtype=q.dtype) / half)  # [T, e/2]
    cos, sin = (f(angles)[:, None, :] for f in (jnp.cos, jnp.sin))
    a, b = q[..., :half], q[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(dtype)


# On the CPU, XLA reads w at the speed of memory in `y @ w.T`, at half of it or less in `w @ y`. But the gradient of the
# former copies the whole stack of weights, transposed, so the derivative is that of the latter.
@jax.custom_jvp
def _product(w: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(y, w.T, precision=HIGHEST)


@_product.defjvp
def _product_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (w, y), (tw, ty) = primals, tangents
    return _product(w, y), jnp.matmul(w, ty, precision=HIGHEST) + jnp.matmul(tw, y, precision=HIGHEST)


def _activation(function: Hook, x: jax.Array) -> jax.Array:
    """function(x), of which a derivative keeps x alone. A scan would keep something of each step within, four or five
    arrays of that size; in the unrolled twin XLA sees both ends, and makes them again where it reads them."""
    return jax.checkpoint(lambda x: function(x), prevent_cse=False)(x)


def _layer_norm(x: jax.Array, params: dict[str, jax.Array], eps: float) -> jax.Array:
    centred = wide(x) - wide(x).mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return (centred * lax.rsqrt(variance + eps)).astype(x.dtype) * params["scale"] + params["bias"]


def rms_norm(x: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """x / sqrt(mean(x**2) + EPS) * scale, over the last axis."""
    return (wide(x) * lax.rsqrt((wide(x) ** 2).mean(-1, keepdims=True) + EPS)).astype(x.dtype) * params["scale"]


def _batch_norm(x: jax.Array, params: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    mean = wide(x).mean((0, 1, 2))
    variance = ((wide(x) - mean) ** 2).mean((0, 1, 2))
    normed = ((wide(x) - mean) * lax.rsqrt(variance + EPS)).astype(x.dtype) * params["scale"] + params["bias"]
    return normed, {"mean": mean, "variance": variance}


# Within a loop XLA on the CPU has fast convolutions of arrays in this order alone, and JAX's derivative, of others,
# takes 20 times as long (https://github.com/jax-ml/jax/issues/12868). So the arrays are turned first.
IN_ORDER = ("NHWC", "HWIO", "NHWC")


@jax.custom_jvp
def _conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return _convolved(x, w, IN_ORDER)


@_conv.defjvp
def _conv_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (x, w), (tx, tw) = primals, tangents
    if jax.default_backend() != "cpu":
        return _conv(x, w), _convolved(tx, w, IN_ORDER) + _convolved(x, tw, IN_ORDER)
    by_x = _convolved(tx, w.transpose(0, 1, 3, 2), ("NHWC", "HWOI", "NHWC"))
    by_w = _convolved(x.transpose(3, 1, 2, 0), tw.transpose(2, 0, 1, 3), ("CHWN", "IHWO", "HWNC"))
    return _conv(x, w), by_x + by_w.transpose(2, 0, 1, 3)


def _convolved(x: jax.Array, w: jax.Array, layout: tuple[str, str, str]) -> jax.Array:
    return lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout, precision=HIGHEST)
