"""What users of layer stacks ask for, each a few lines around a layer or around `scan_layers`: gates, dropout, mixed
precision, the layer where NaN begins.

A recipe that wraps a layer returns a layer, so recipes nest, and go rolled and unrolled through every transform.
Source: https://docs.jax.dev/en/latest/jax.random.html
"""

from __future__ import annotations

from typing import Any

import jax
from jax import numpy as jnp

from jax_scan.loops import Layer
from jax_scan.stack import scan_layers


def gated(layer: Layer) -> Layer:
    """`gate * layer + (1 - gate) * nothing`: xs are gates [N], or (gates, xs of layer). Differentiable in the gate.

    Gates of 0 and 1 leave before the last layer, or pad stacks of several depths to one, and so to one program. A layer
    behind a closed gate is still computed: where it is not finite, neither is the result. Its y stays as it is."""

    def step(carry: Any, params: Any, x: Any) -> tuple[Any, Any]:
        gate, *rest = x if isinstance(x, tuple) else (x,)
        new_carry, y = layer(carry, params, *rest)

        def mix(old: jax.Array, new: jax.Array) -> jax.Array:
            if not jnp.issubdtype(old.dtype, jnp.inexact):
                return jnp.where(gate == 0, old, new)
            g = gate.astype(old.dtype)
            return g * new + (1 - g) * old

        return jax.tree.map(mix, carry, new_carry), y

    return step


def layer_keys(seed: int, num_layers: int, shape: tuple[int, ...]) -> jax.Array:
    """One key a layer, as xs for layers that call `dropout` on arrays of `shape`: equal seeds, equal keys."""
    return jax.random.split(jax.random.key(seed), num_layers)  # [N]: a key knows no shape


def dropout(array: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Zero each element with probability `rate`, divide the others by 1 - rate. The mask depends on the key alone."""
    kept = jax.random.bernoulli(key, 1 - rate, array.shape)
    return jnp.where(kept, array / (1 - rate), 0).astype(array.dtype)


def cast_params(layer: Layer, dtype: Any) -> Layer:
    """Mixed precision: floating-point params stay in their dtype outside and are cast to `dtype` inside the layer."""

    def cast(array: jax.Array) -> jax.Array:
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.inexact) else array

    return lambda carry, params, *x: layer(carry, jax.tree.map(cast, params), *x)


def locate_nonfinite(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> jax.Array:
    """The first layer, in the order in which they run, that makes a NaN or an infinity: its index, or -1 for none."""

    def step(carry: Any, params: Any, *x: Any) -> tuple[Any, jax.Array]:
        new_carry, y = layer(carry, params, *x)
        floats = [a for a in jax.tree.leaves((new_carry, y)) if jnp.issubdtype(a.dtype, jnp.inexact)]
        return new_carry, jnp.stack([jnp.isfinite(a).all() for a in floats]).all()

    _, finite = scan_layers(step, stacked_params, init, xs, reverse=reverse)  # [N]
    order = jnp.flip(finite) if reverse else finite
    first = jnp.argmin(order) if len(order) else 0
    return jnp.where(finite.all(), -1, len(order) - 1 - first if reverse else first)
