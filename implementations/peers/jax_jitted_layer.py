"""JAX: one jitted layer, called N times from Python, which `jax.jit` inlines into a program of N layers.

Bridged: the ys are stacked.
"""

import jax
from jax import numpy as jnp

FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False):
    one = jax.jit(layer)
    N = jax.tree.leaves(stacked_params)[0].shape[0]
    carry, ys = init, [None] * N
    for i in reversed(range(N)) if reverse else range(N):
        params, *x = jax.tree.map(lambda a, i=i: a[i], (stacked_params,) if xs is None else (stacked_params, xs))
        carry, ys[i] = one(carry, params, *x)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *ys) if N else None
