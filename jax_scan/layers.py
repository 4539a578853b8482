"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

Line-parallel with `reference/layers.py` and with the other frameworks' `layers.py`. What frameworks choose differently
by default (precision, eps, flavours) is explicit in every layer.
"""

from __future__ import annotations

import jax
from jax import lax
from jax import numpy as jnp


def dense(carry: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    # HIGHEST: no TF32 where the hardware has it. `w @ carry` alone leaves that to a global flag.
    return jnp.matmul(w, carry, precision=lax.Precision.HIGHEST), None  # [d]


LAYERS = {"dense": dense}
