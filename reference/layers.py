"""Every layer in NumPy, forward and hand-written vjp, as scan bodies: `layer(carry, params) -> (new_carry, y)`.

A layer works in the dtype it is given: in float64 it is the oracle; in float32, and `dense` in bfloat16, it is the
yardstick, what NumPy makes of the same computation in the same dtype; complex, it is its own derivative by complex
step; with Fractions in arrays of objects `dense` is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def dense(carry: Array, w: Array) -> tuple[Array, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    return _product(w, carry), None  # [d]


def dense_vjp(carry: Array, w: Array, dcarry: Array, dy: None = None) -> tuple[Array, Array]:
    """From the cotangent [d] of the new carry: those of the carry [d] and of w [d, d]."""
    return _product(w.T, dcarry), np.outer(dcarry, carry)  # [d], [d, d]


def mlp(carry: Array, params: dict[str, Any]) -> tuple[Array, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    norm, up, down = params["norm"], params["up"], params["down"]
    centred = _wide(carry) - _wide(carry).mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    h = (centred / np.sqrt(variance + EPS)).astype(carry.dtype, copy=False) * norm["scale"] + norm["bias"]  # [..., d]
    h = _product(h, up["w"]) + up["bias"]  # [..., f]
    h = h * (1 + np.tanh(_gelu_argument(h))) / 2  # GELU, the tanh form
    h = _product(h, down["w"]) + down["bias"]  # [..., d]
    return carry + h, None


def mlp_vjp(carry: Array, params: dict[str, Any], dcarry: Array, dy: None = None) -> tuple[Array, dict[str, Any]]:
    """From the cotangent [..., d] of the new carry: those of the carry [..., d] and of params."""
    norm, up, down = params["norm"], params["up"], params["down"]
    centred = carry - carry.mean(-1, keepdims=True)
    sd = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    normed = centred / sd
    h_norm = normed * norm["scale"] + norm["bias"]  # [..., d]
    h_up = _product(h_norm, up["w"]) + up["bias"]  # [..., f]
    t = np.tanh(_gelu_argument(h_up))
    h_gelu = h_up * (1 + t) / 2  # [..., f]
    slope = (1 + t) / 2 + h_up / 2 * (1 - t**2) * _GELU[0] * (1 + 3 * _GELU[1] * h_up**2)

    dh_up = _product(dcarry, down["w"].T) * slope  # [..., f]
    dh_norm = _product(dh_up, up["w"].T)  # [..., d]
    dnormed = dh_norm * norm["scale"]
    # the mean and the variance depend on every element: what is parallel to 1 or to normed does not pass
    passed = dnormed - dnormed.mean(-1, keepdims=True) - normed * (dnormed * normed).mean(-1, keepdims=True)
    dparams = {
        "norm": {"scale": _rows(dh_norm * normed).sum(0), "bias": _rows(dh_norm).sum(0)},
        "up": {"w": _product(_rows(h_norm).T, _rows(dh_up)), "bias": _rows(dh_up).sum(0)},
        "down": {"w": _product(_rows(h_gelu).T, _rows(dcarry)), "bias": _rows(dcarry).sum(0)},
    }
    return dcarry + passed / sd, dparams


def transformer_encoder(carry: dict[str, Array], params: dict[str, Any]) -> tuple[dict[str, Array], None]:
    """Post-norm block of BERT: x = norm1(x + attention(x)), then norm2(x + down(gelu(up(x)))); no per-layer output.

    carry: x [B, T, d], mask [B, T] of bool, True where there is a token: others are not attended to.
    params: query, key, value {w [d, h, e], bias [h, e]}, out {w [h, e, d], bias [d]}, norm1 and norm2 {scale [d],
        bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    x, mask = carry["x"], carry["mask"]
    q, k, v = (_einsum("btd,dhe->bthe", x, params[n]["w"]) + params[n]["bias"] for n in ("query", "key", "value"))
    a = _attend(q, k, v, mask[:, None, None, :])  # [B, T, h, e]
    x = _layer_norm(x + _einsum("bthe,hed->btd", a, params["out"]["w"]) + params["out"]["bias"], params["norm1"])
    h = _product(x, params["up"]["w"]) + params["up"]["bias"]  # [B, T, f]
    h = h * (1 + _erf(h / 2**0.5)) / 2  # GELU, the exact form
    h = _product(h, params["down"]["w"]) + params["down"]["bias"]  # [B, T, d]
    return {"x": _layer_norm(x + h, params["norm2"]), "mask": mask}, None


def transformer_encoder_vjp(
    carry: dict[str, Array], params: dict[str, Any], dcarry: dict[str, Any], dy: None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """From the cotangent {x [B, T, d], mask None} of the new carry: those of the carry and of params."""
    x, mask = carry["x"], carry["mask"]
    q, k, v = (_einsum("btd,dhe->bthe", x, params[n]["w"]) + params[n]["bias"] for n in ("query", "key", "value"))
    a = _attend(q, k, v, mask[:, None, None, :])
    x1 = x + _einsum("bthe,hed->btd", a, params["out"]["w"]) + params["out"]["bias"]
    x2 = _layer_norm(x1, params["norm1"])
    h_up = _product(x2, params["up"]["w"]) + params["up"]["bias"]
    cdf = (1 + _erf(h_up / 2**0.5)) / 2
    h_gelu = h_up * cdf
    x3 = x2 + _product(h_gelu, params["down"]["w"]) + params["down"]["bias"]

    dx3, dnorm2 = _layer_norm_vjp(x3, params["norm2"], dcarry["x"])
    slope = cdf + h_up * np.exp(-(h_up**2) / 2) / (2 * math.pi) ** 0.5
    dh_up = _product(dx3, params["down"]["w"].T) * slope
    dx1, dnorm1 = _layer_norm_vjp(x1, params["norm1"], dx3 + _product(dh_up, params["up"]["w"].T))
    dqkv = _attend_vjp(q, k, v, mask[:, None, None, :], _einsum("btd,hed->bthe", dx1, params["out"]["w"]))
    dx = dx1
    dparams = {
        "out": {"w": _einsum("bthe,btd->hed", a, dx1), "bias": dx1.sum((0, 1))},
        "norm1": dnorm1,
        "up": {"w": _einsum("btd,btf->df", x2, dh_up), "bias": dh_up.sum((0, 1))},
        "down": {"w": _einsum("btf,btd->fd", h_gelu, dx3), "bias": dx3.sum((0, 1))},
        "norm2": dnorm2,
    }
    for name, dhead in zip(("query", "key", "value"), dqkv, strict=True):
        dx = dx + _einsum("bthe,dhe->btd", dhead, params[name]["w"])
        dparams[name] = {"w": _einsum("btd,bthe->dhe", x, dhead), "bias": dhead.sum((0, 1))}
    return {"x": dx, "mask": None}, dparams


def transformer_decoder(carry: Array, params: dict[str, Any], window: Array | None = None) -> tuple[Array, None]:
    """Pre-norm block: x + attention(norm1(x)), then x + down(silu(gate(h)) * up(h)), h = norm2(x).

    RMS norms, rotary positions, causal attention with g heads of keys and values for h heads of queries: query head i
    reads head i // (h / g). Nothing has a bias. carry x [B, T, d]; window [], integer: how far back a position sees,
    itself included; no per-layer output.
    params: norm1 and norm2 {scale [d]}, query {w [d, h, e]}, key and value {w [d, g, e]}, out {w [h, e, d]}, gate and
        up {w [d, f]}, down {w [f, d]}.
    """
    x, positions = carry, np.arange(carry.shape[1])
    n = rms_norm(x, params["norm1"])
    q, k = (_rotate(_einsum("btd,dhe->bthe", n, params[name]["w"]), positions) for name in ("query", "key"))
    a = _attend(q, k, _einsum("btd,dhe->bthe", n, params["value"]["w"]), _causal(positions, window))
    x = x + _einsum("bthe,hed->btd", a, params["out"]["w"])  # [B, T, d]
    n = rms_norm(x, params["norm2"])
    gate = _product(n, params["gate"]["w"])  # [B, T, f]
    h = gate / (1 + np.exp(-gate)) * _product(n, params["up"]["w"])
    return x + _product(h, params["down"]["w"]), None


def transformer_decoder_vjp(carry: Array, params: dict[str, Any], *window_and_cotangents: Any) -> tuple[Any, ...]:
    """From the cotangent [B, T, d] of the new carry: those of the carry and of params; with a window, None for it."""
    *window, dcarry, _ = window_and_cotangents
    x, positions = carry, np.arange(carry.shape[1])
    mask = _causal(positions, *window)
    n1 = rms_norm(x, params["norm1"])
    q, k = (_rotate(_einsum("btd,dhe->bthe", n1, params[name]["w"]), positions) for name in ("query", "key"))
    v = _einsum("btd,dhe->bthe", n1, params["value"]["w"])
    a = _attend(q, k, v, mask)
    x1 = x + _einsum("bthe,hed->btd", a, params["out"]["w"])
    n2 = rms_norm(x1, params["norm2"])
    gate, up = _product(n2, params["gate"]["w"]), _product(n2, params["up"]["w"])
    s = 1 / (1 + np.exp(-gate))

    dh = _product(dcarry, params["down"]["w"].T)
    dgate, dup = dh * up * s * (1 + gate * (1 - s)), dh * gate * s
    dn2 = _product(dgate, params["gate"]["w"].T) + _product(dup, params["up"]["w"].T)
    dx1, dnorm2 = rms_norm_vjp(x1, params["norm2"], dn2)
    dx1 = dcarry + dx1
    dq, dk, dv = _attend_vjp(q, k, v, mask, _einsum("btd,hed->bthe", dx1, params["out"]["w"]))
    heads = {"query": _rotate(dq, -positions), "key": _rotate(dk, -positions), "value": dv}
    dn1 = np.zeros_like(n1)
    for name, dhead in heads.items():
        dn1 += _einsum("bthe,dhe->btd", dhead, params[name]["w"])
    dx, dnorm1 = rms_norm_vjp(x, params["norm1"], dn1)
    dparams = {
        "norm1": dnorm1,
        **{name: {"w": _einsum("btd,bthe->dhe", n1, dhead)} for name, dhead in heads.items()},
        "out": {"w": _einsum("bthe,btd->hed", a, dx1)},
        "norm2": dnorm2,
        "gate": {"w": _einsum("btd,btf->df", n2, dgate)},
        "up": {"w": _einsum("btd,btf->df", n2, dup)},
        "down": {"w": _einsum("btf,btd->fd", gate * s * up, dcarry)},
    }
    return (dx1 + dx, dparams, *([None] * len(window)))


def residual_conv(carry: Array, params: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    """Basic block of ResNet v2: x + conv2(relu(norm2(conv1(relu(norm1(x)))))), a zero of padding around each image.

    carry [B, y, x, c]. The norms are batch norms: y has what each saw, {mean [c], variance [c]}, for running averages.
    params: norm1 and norm2 {scale [c], bias [c]}, conv1 and conv2 {w [3, 3, c, c]}.
    """
    h, seen1 = _batch_norm(carry, params["norm1"])
    h = _conv(np.where(np.real(h) > 0, h, 0), params["conv1"]["w"])
    h, seen2 = _batch_norm(h, params["norm2"])
    h = _conv(np.where(np.real(h) > 0, h, 0), params["conv2"]["w"])
    return carry + h, {"norm1": seen1, "norm2": seen2}


def residual_conv_vjp(
    carry: Array, params: dict[str, Any], dcarry: Array, dy: dict[str, Any]
) -> tuple[Array, dict[str, Any]]:
    """From the cotangents of the new carry [B, y, x, c] and of y: those of the carry and of params."""
    n1, _ = _batch_norm(carry, params["norm1"])
    r1 = np.where(n1 > 0, n1, 0)
    h = _conv(r1, params["conv1"]["w"])
    n2, _ = _batch_norm(h, params["norm2"])
    r2 = np.where(n2 > 0, n2, 0)

    dr2, dconv2 = _conv_vjp(r2, params["conv2"]["w"], dcarry)
    dh, dnorm2 = _batch_norm_vjp(h, params["norm2"], np.where(n2 > 0, dr2, 0), dy["norm2"])
    dr1, dconv1 = _conv_vjp(r1, params["conv1"]["w"], dh)
    dx, dnorm1 = _batch_norm_vjp(carry, params["norm1"], np.where(n1 > 0, dr1, 0), dy["norm1"])
    return dcarry + dx, {"norm1": dnorm1, "conv1": {"w": dconv1}, "norm2": dnorm2, "conv2": {"w": dconv2}}


# Constants for which frameworks have other defaults.
EPS = 1e-5  # of norms
EPS_BERT = 1e-12  # of the norms of transformer_encoder
BASE = 10_000.0  # of rotary positions
_GELU = ((2 / math.pi) ** 0.5, 0.044715)  # Python floats: they leave float32 what it is


def _gelu_argument(h: Array) -> Array:
    argument: Array = _GELU[0] * (h + _GELU[1] * h**3)
    return argument


def _erf(h: Array) -> Array:
    """NumPy has none. Complex, to first order, which is all that a complex step needs."""
    real = np.fromiter(map(math.erf, np.real(h).ravel().tolist()), np.float64, h.size).reshape(h.shape)
    if not np.iscomplexobj(h):
        return real.astype(h.dtype)
    return (real + 2j / math.pi**0.5 * np.exp(-(np.real(h) ** 2)) * np.imag(h)).astype(h.dtype)


def _attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """softmax(q k / sqrt(e)) v over the positions in mask [..., T, S]: q [B, T, h, e], k and v [B, S, g, e]."""
    return _einsum("bhts,bshe->bthe", _weights(q, k, mask), _repeat(v, q))


def _weights(q: Array, k: Array, mask: Array) -> Array:
    scores = _einsum("bthe,bshe->bhts", q, _repeat(k, q)) / q.shape[-1] ** 0.5
    scores = np.where(mask, scores, scores.dtype.type(-1e30))
    e = np.exp(scores - np.real(scores).max(-1, keepdims=True))
    weights: Array = e / e.sum(-1, keepdims=True)
    return weights


def _attend_vjp(q: Array, k: Array, v: Array, mask: Array, da: Array) -> tuple[Array, Array, Array]:
    p = _weights(q, k, mask)
    dp = _einsum("bthe,bshe->bhts", da, _repeat(v, q))
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / q.shape[-1] ** 0.5
    dk, dv = _einsum("bhts,bthe->bshe", ds, q), _einsum("bhts,bthe->bshe", p, da)
    # heads that read the same key add up
    dk, dv = (d.reshape(*k.shape[:3], -1, k.shape[3]).sum(3) for d in (dk, dv))
    return _einsum("bhts,bshe->bthe", ds, _repeat(k, q)), dk, dv


def _repeat(k: Array, q: Array) -> Array:
    return np.repeat(k, q.shape[2] // k.shape[2], 2)


def _causal(positions: Array, window: Array | None = None) -> Array:
    """Which positions [S] each position [T] sees."""
    back = positions[:, None] - positions
    return (back >= 0) & (back < (len(positions) if window is None else window))


def _rotate(q: Array, positions: Array) -> Array:
    """Rotary positions: the pairs (q[i], q[i + e/2]) turned by positions * BASE ** (-2 i / e)."""
    half, given, q = q.shape[-1] // 2, q.dtype, _wide(q)
    dtype = np.real(q).dtype
    angles = positions.astype(dtype)[:, None] * BASE ** (-np.arange(half, dtype=dtype) / half)  # [T, e/2]
    cos, sin = (f(angles)[:, None, :] for f in (np.cos, np.sin))
    a, b = q[..., :half], q[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(given, copy=False)


def _wide(x: Array) -> Array:
    """x in at least float32: what the layers do where half precision would not do."""
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


def _layer_norm(x: Array, params: dict[str, Array]) -> Array:
    centred = _wide(x) - _wide(x).mean(-1, keepdims=True)
    sd = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS_BERT)
    normed: Array = (centred / sd).astype(x.dtype, copy=False) * params["scale"] + params["bias"]
    return normed


def _layer_norm_vjp(x: Array, params: dict[str, Array], dout: Array) -> tuple[Array, dict[str, Array]]:
    centred = x - x.mean(-1, keepdims=True)
    sd = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS_BERT)
    n, dn = centred / sd, dout * params["scale"]
    dx = (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True)) / sd
    return dx, {"scale": (dout * n).sum((0, 1)), "bias": dout.sum((0, 1))}


def rms_norm(x: Array, params: dict[str, Array]) -> Array:
    rms = np.sqrt((_wide(x) ** 2).mean(-1, keepdims=True) + EPS)
    normed: Array = (_wide(x) / rms).astype(x.dtype, copy=False) * params["scale"]
    return normed


def rms_norm_vjp(x: Array, params: dict[str, Array], dout: Array) -> tuple[Array, dict[str, Array]]:
    rms = np.sqrt((x**2).mean(-1, keepdims=True) + EPS)
    n, dn = x / rms, dout * params["scale"]
    return (dn - n * (dn * n).mean(-1, keepdims=True)) / rms, {"scale": (dout * n).sum((0, 1))}


def _batch_norm(x: Array, params: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    mean = _wide(x).mean((0, 1, 2))
    variance = ((_wide(x) - mean) ** 2).mean((0, 1, 2))
    normed = ((_wide(x) - mean) / np.sqrt(variance + EPS)).astype(x.dtype, copy=False)
    return normed * params["scale"] + params["bias"], {"mean": mean, "variance": variance}


def _batch_norm_vjp(
    x: Array, params: dict[str, Array], dout: Array, dseen: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    axes, count = (0, 1, 2), x.size // x.shape[-1]
    centred = x - x.mean(axes)
    sd = np.sqrt((centred**2).mean(axes) + EPS)
    n, dn = centred / sd, dout * params["scale"]
    dx = (dn - dn.mean(axes) - n * (dn * n).mean(axes)) / sd
    dx = dx + (dseen["mean"] + 2 * centred * dseen["variance"]) / count
    return dx, {"scale": (dout * n).sum(axes), "bias": dout.sum(axes)}


def _conv(x: Array, w: Array) -> Array:
    return np.add.reduce([_product(part, w[i, j]) for i, j, part in _shifted(x)])


def _conv_vjp(x: Array, w: Array, dout: Array) -> tuple[Array, Array]:
    flipped = w[::-1, ::-1].transpose(0, 1, 3, 2)  # what each pixel gave to its neighbours comes back
    dw = np.zeros_like(w)
    for i, j, part in _shifted(x):
        dw[i, j] = _einsum("byxc,byxd->cd", part, dout)
    return _conv(dout, flipped), dw


def _shifted(x: Array) -> Iterator[tuple[int, int, Array]]:
    """x [B, y, x, c] as each weight of a 3 x 3 convolution sees it, zeros around it."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            yield i, j, padded[:, i : i + x.shape[1], j : j + x.shape[2]]


def _einsum(equation: str, a: Array, b: Array) -> Array:
    result: Array = np.einsum(equation, a, b, optimize=True)
    return result


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _product(w: Array, y: Array) -> Array:
    # NumPy multiplies bfloat16 (ml_dtypes) in float32 and leaves the result there: round it, as the frameworks do.
    return (w @ y).astype(np.result_type(w, y), copy=False)


class Layer(NamedTuple):
    forward: Callable[..., tuple[Any, Any]]  # (carry, params) -> (carry, y)
    vjp: Callable[..., tuple[Any, ...]]  # (carry, params, dcarry, dy) -> (dcarry, dparams)


LAYERS = {
    "dense": Layer(dense, dense_vjp),
    "mlp": Layer(mlp, mlp_vjp),
    "transformer_encoder": Layer(transformer_encoder, transformer_encoder_vjp),
    "transformer_decoder": Layer(transformer_decoder, transformer_decoder_vjp),
    "residual_conv": Layer(residual_conv, residual_conv_vjp),
}
