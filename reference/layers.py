"""Every layer in NumPy, forward and hand-written vjp, as scan bodies: `layer(carry, params) -> (new_carry, y)`.

A layer works in the dtype it is given: in float64 it is the oracle; in float32, and `dense` in bfloat16, it is the
yardstick, what NumPy makes of the same computation in the same dtype; complex, it is its own derivative by complex
step; with Fractions in arrays of objects `dense` is exact. Line-parallel with the frameworks' `layers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    centred = carry - carry.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    h = centred / np.sqrt(variance + EPS) * norm["scale"] + norm["bias"]  # [..., d]
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


EPS = 1e-5  # of the norm; frameworks' defaults differ
_GELU = ((2 / math.pi) ** 0.5, 0.044715)  # Python floats: they leave float32 what it is


def _gelu_argument(h: Array) -> Array:
    argument: Array = _GELU[0] * (h + _GELU[1] * h**3)
    return argument


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _product(w: Array, y: Array) -> Array:
    # NumPy multiplies bfloat16 (ml_dtypes) in float32 and leaves the result there: round it, as the frameworks do.
    return (w @ y).astype(np.result_type(w, y), copy=False)


class Layer(NamedTuple):
    forward: Callable[..., tuple[Any, Any]]  # (carry, params) -> (carry, y)
    vjp: Callable[..., tuple[Any, Any]]  # (carry, params, dcarry, dy) -> (dcarry, dparams)


LAYERS = {"dense": Layer(dense, dense_vjp), "mlp": Layer(mlp, mlp_vjp)}
