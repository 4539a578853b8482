"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

The same layers in the same order as in the other frameworks' `layers.py`; right is what `reference/layers.py` says.
What frameworks choose differently by default (precision, eps, flavours) is explicit in every layer. Shapes are checked,
in the words of `reference/shapes.py`; those of `dense` by its stack.
Source: https://docs.pytorch.org/docs/2.13/generated/torch.nn.functional.scaled_dot_product_attention.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import torch
from torch.nn import functional as F

from reference import shapes
from torch_compile.edges import DEVICE, as_leaf
from torch_compile.private import pytree

# TF32 is a global switch here, off by default: torch.set_float32_matmul_precision("highest").

# What tensor parallelism puts before and after the products that it cuts (devices.py).
Hook = Callable[[torch.Tensor], torch.Tensor]


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def dense(carry: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    return torch.matmul(w, carry), None  # [d]


def mlp(
    carry: torch.Tensor, params: dict[str, Any], *, enter: Hook = same, leave: Hook = same
) -> tuple[torch.Tensor, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    shapes.check(as_leaf, "mlp", carry, params)
    h = enter(_layer_norm(carry, params["norm"], EPS))  # [..., d]
    h = torch.matmul(h, params["up"]["w"]) + params["up"]["bias"]  # [..., f]
    h = F.gelu(h, approximate="tanh")
    h = leave(torch.matmul(h, params["down"]["w"])) + params["down"]["bias"]  # [..., d]
    return carry + h, None


def transformer_encoder(
    carry: dict[str, torch.Tensor], params: dict[str, Any], *, enter: Hook = same, leave: Hook = same
) -> tuple[dict[str, torch.Tensor], None]:
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
    h = torch.matmul(enter(x), params["up"]["w"]) + params["up"]["bias"]  # [B, T, f]
    h = F.gelu(h, approximate="none")
    h = leave(torch.matmul(h, params["down"]["w"])) + params["down"]["bias"]  # [B, T, d]
    return {"x": _layer_norm(x + h, params["norm2"], EPS_BERT), "mask": mask}, None


def transformer_decoder(
    carry: torch.Tensor,
    params: dict[str, Any],
    window: torch.Tensor | None = None,
    *,
    enter: Hook = same,
    leave: Hook = same,
) -> tuple[torch.Tensor, None]:
    """Pre-norm block: x + attention(norm1(x)), then x + down(silu(gate(h)) * up(h)), h = norm2(x).

    RMS norms, rotary positions, causal attention with g heads of keys and values for h heads of queries: query head i
    reads head i // (h / g). Nothing has a bias. carry x [B, T, d]; window [], integer: how far back a position sees,
    itself included; no per-layer output.
    params: norm1 and norm2 {scale [d]}, query {w [d, h, e]}, key and value {w [d, g, e]}, out {w [h, e, d]}, gate and
        up {w [d, f]}, down {w [f, d]}.
    """
    positions = torch.arange(carry.shape[1], device=carry.device)
    q, k, v = queries_keys_values(carry, params, positions, enter)
    return finish(carry, params, attend(q, (k, v, causal(positions, positions, window))), enter, leave), None


def residual_conv(carry: torch.Tensor, params: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Basic block of ResNet v2: x + conv2(relu(norm2(conv1(relu(norm1(x)))))), a zero of padding around each image.

    carry [B, y, x, c]. The norms are batch norms: y has what each saw, {mean [c], variance [c]}, for running averages,
    in at least float32, since float16 ends at 65504.
    params: norm1 and norm2 {scale [c], bias [c]}, conv1 and conv2 {w [3, 3, c, c]}.
    """
    shapes.check(as_leaf, "residual_conv", carry, params)
    h, seen1 = _batch_norm(carry, params["norm1"])
    h = _conv(torch.relu(h), params["conv1"]["w"])
    h, seen2 = _batch_norm(h, params["norm2"])
    h = _conv(torch.relu(h), params["conv2"]["w"])
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
    """Stacked params of that layer: equal to num_layers inits with generators that are seeded by `layer_seeds`.

    sizes: of the symbols in `reference/shapes.py`, as d=64, f=256. Weights are normal with a standard deviation of
    fan-in ** -0.5, scales 1, biases 0."""
    keys = [torch.Generator().manual_seed(s) for s in layer_seeds(seed, num_layers)]
    layers = [init_layer(layer, key, dtype, **sizes) for key in keys]
    return pytree.tree_map(lambda *arrays: torch.stack(arrays), *layers)


def layer_seeds(seed: int, num_layers: int) -> list[int]:
    """A seed for each layer: not seed, seed + 1, ..., which stacks with other seeds would share."""
    return torch.randint(2**62, (num_layers,), generator=torch.Generator().manual_seed(seed)).tolist()


def init_layer(layer: str, key: torch.Generator, dtype: str = "float32", **sizes: int) -> Any:
    """Params of one layer."""

    def normal(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=key, dtype=getattr(torch, dtype), device=key.device).to(DEVICE)

    return shapes.first_values(
        layer, sizes, normal, lambda shape, value: torch.full(shape, value, dtype=getattr(torch, dtype), device=DEVICE)
    )


def queries_keys_values(
    x: torch.Tensor, params: dict[str, Any], positions: torch.Tensor, enter: Hook = same
) -> tuple[torch.Tensor, ...]:
    """Of transformer_decoder, at those positions [T]: q [B, T, h, e], k and v [B, T, g, e]."""
    shapes.check(as_leaf, "transformer_decoder", x, params)
    n = enter(rms_norm(x, params["norm1"]))
    q, k = (_rotate(_heads(n, params[name]["w"]), positions) for name in ("query", "key"))
    return q, k, _heads(n, params["value"]["w"])


def finish(
    x: torch.Tensor, params: dict[str, Any], a: torch.Tensor, enter: Hook = same, leave: Hook = same
) -> torch.Tensor:
    """What transformer_decoder makes of its attention a [B, T, h, e]."""
    x = x + leave(_merge(a, params["out"]["w"]))  # [B, T, d]
    n = enter(rms_norm(x, params["norm2"]))
    gate, up = (torch.matmul(n, params[name]["w"]) for name in ("gate", "up"))  # [B, T, f]
    return x + leave(torch.matmul(F.silu(gate) * up, params["down"]["w"]))


def causal(of: torch.Tensor, sees: torch.Tensor, window: torch.Tensor | None = None) -> torch.Tensor:
    """Which of the positions `sees` [S] each position `of` [T] attends to."""
    back = of[:, None] - sees
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def attend(q: torch.Tensor, *parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """softmax(q k / sqrt(e)) v, with q [B, T, h, e], over all parts: k and v [B, S, g, e], mask [..., T, S]."""
    if len(parts) == 1:  # fused
        ((k, v, mask),) = parts
        q, k, v = (array.transpose(1, 2) for array in (q, k, v))  # [B, h, T, e]
        mask = mask.flatten(1, 2) if mask.dim() == 5 else mask
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=q.shape[-1] ** -0.5, enable_gqa=True)
        return a.transpose(1, 2)
    dtype, q, parts = q.dtype, wide(q), tuple((wide(k), wide(v), mask) for k, v, mask in parts)
    q = q.unflatten(2, (parts[0][0].shape[2], -1)) * q.shape[-1] ** -0.5  # [B, T, g, h / g, e]
    scores = [torch.einsum("btgre,bsge->bgrts", q, k) for k, _, _ in parts]
    scores = [s.masked_fill(~mask, torch.finfo(s.dtype).min) for s, (_, _, mask) in zip(scores, parts, strict=True)]
    weights = torch.softmax(torch.cat(scores, -1), -1).split([s.shape[-1] for s in scores], -1)
    pairs = zip(weights, parts, strict=True)
    a = reduce(add, [torch.einsum("bgrts,bsge->btgre", w, v) for w, (_, v, _) in pairs])
    return a.flatten(2, 3).to(dtype)  # [B, T, h, e]


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in at least float32: float16 has no 256**2, bfloat16 no 257, and squares and positions are larger."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _heads(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.einsum("btd,dhe->bthe", x, w)


def _merge(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bthe,hed->btd", a, w)


def _rotate(q: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions: the pairs (q[i], q[i + e/2]) turned by positions * BASE ** (-2 i / e)."""
    half, dtype, q = q.shape[-1] // 2, q.dtype, wide(q)
    frequencies = BASE ** (-torch.arange(half, dtype=q.dtype, device=q.device) / half)
    angles = positions[:, None] * frequencies  # [T, e/2]
    cos, sin = (f(angles)[:, None, :] for f in (torch.cos, torch.sin))
    a, b = q[..., :half], q[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(dtype)


def _layer_norm(x: torch.Tensor, params: dict[str, torch.Tensor], eps: float) -> torch.Tensor:
    centred = wide(x) - wide(x).mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return (centred * torch.rsqrt(variance + eps)).to(x.dtype) * params["scale"] + params["bias"]


def rms_norm(x: torch.Tensor, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """x / sqrt(mean(x**2) + EPS) * scale, over the last axis."""
    return (wide(x) * torch.rsqrt((wide(x) ** 2).mean(-1, keepdim=True) + EPS)).to(x.dtype) * params["scale"]


def _batch_norm(x: torch.Tensor, params: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    mean = wide(x).mean((0, 1, 2))
    variance = ((wide(x) - mean) ** 2).mean((0, 1, 2))
    normed = ((wide(x) - mean) * torch.rsqrt(variance + EPS)).to(x.dtype) * params["scale"] + params["bias"]
    return normed, {"mean": mean, "variance": variance}


def _conv(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    # torch's own order of axes is [B, c, y, x], and [c out, c in, 3, 3] for w
    return F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)
