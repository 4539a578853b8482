"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

Line-parallel with `reference/layers.py` and with the other frameworks' `layers.py`. What frameworks choose differently
by default (precision, eps, flavours) is explicit in every layer.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax import numpy as jnp


def dense(carry: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    # HIGHEST: no TF32 where the hardware has it. `w @ carry` alone leaves that to a global flag.
    return jnp.matmul(w, carry, precision=lax.Precision.HIGHEST), None  # [d]


def mlp(carry: jax.Array, params: dict[str, Any]) -> tuple[jax.Array, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    norm, up, down = params["norm"], params["up"], params["down"]
    centred = carry - carry.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    h = centred * lax.rsqrt(variance + EPS) * norm["scale"] + norm["bias"]  # [..., d]
    h = jnp.matmul(h, up["w"], precision=lax.Precision.HIGHEST) + up["bias"]  # [..., f]
    h = jax.nn.gelu(h, approximate=True)  # the tanh form
    h = jnp.matmul(h, down["w"], precision=lax.Precision.HIGHEST) + down["bias"]  # [..., d]
    return carry + h, None


EPS = 1e-5  # of the norm; frameworks' defaults differ
LAYERS = {"dense": dense, "mlp": mlp}
