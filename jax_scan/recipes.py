"""What users of layer stacks ask for, each a few lines around a layer or around `scan_layers`: gates, dropout, mixed
precision, the layer where NaN begins.

A recipe that wraps a layer returns a layer, so recipes nest, and go rolled and unrolled through every transform.
Source: https://docs.jax.dev/en/latest/jax.random.html
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from jax_scan.edges import as_leaf
from jax_scan.layers import wide
from jax_scan.loops import Layer
from jax_scan.stack import scan_layers
from reference import arguments


def gated(layer: Layer) -> Layer:
    """`gate * new_carry + (1 - gate) * carry`: xs are gates [N], or (gates, xs of layer). Differentiable in the gate.

    Gates of 0 and 1 leave before the last layer, or pad stacks of several depths to one, and so to one program. A layer
    whose gate is 0 is still computed: where it is not finite, neither is the result. Its y stays as it is."""

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
    arguments.check_rate(as_leaf, rate)
    kept = jax.random.bernoulli(key, 1.0 - rate, array.shape)
    return jnp.where(kept, array / (1 - rate + (rate == 1)), 0).astype(array.dtype)


def cast_params(layer: Layer, dtype: Any) -> Layer:
    """Mixed precision: floating-point params stay in their dtype outside and are cast to `dtype` inside the layer.

    Complex ones are not cast: no half precision holds them."""

    def cast(array: jax.Array) -> jax.Array:
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return lambda carry, params, *x: layer(carry, jax.tree.map(cast, params), *x)


def locate_nonfinite(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> jax.Array:
    """The first layer, in the order in which they run, that makes a NaN or an infinity: its index, or -1 for none."""

    def step(carry: Any, params: Any, *x: Any) -> tuple[Any, jax.Array]:
        new_carry, y = layer(carry, params, *x)
        floats = [a for a in jax.tree.leaves((new_carry, y)) if jnp.issubdtype(a.dtype, jnp.inexact)]
        return new_carry, jnp.stack([jnp.array(True), *(jnp.isfinite(a).all() for a in floats)]).all()

    _, finite = scan_layers(step, stacked_params, init, xs, reverse=reverse)  # [N]
    order = jnp.flip(finite) if reverse else finite
    first = jnp.argmin(order) if len(order) else 0
    return jnp.where(finite.all(), -1, len(order) - 1 - first if reverse else first)


def cycled(*layers: Layer) -> Layer:
    """Layers of several kinds as one, whose params and y are tuples, one for each; xs too where there are xs."""

    def step(carry: Any, params: tuple[Any, ...], x: Any = None) -> tuple[Any, tuple[Any, ...]]:
        ys = []
        for i, layer in enumerate(layers):
            carry, y = layer(carry, params[i]) if x is None else layer(carry, params[i], x[i])
            ys.append(y)
        return carry, tuple(ys)

    return step


def scan_cycle(
    cycle: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    prefix: Sequence[tuple[Layer, Any]] = (),
    suffix: Sequence[tuple[Layer, Any]] = (),
    **options: Any,
) -> tuple[Any, tuple[list[Any], Any, list[Any]]]:
    """A stack that is not the same all the way: `scan_layers(cycle, ...)` between single layers.

    cycle: one layer, or `cycled(...)` of those that come in turn. prefix, suffix: (layer, params) of the layers before
    it, and of those after it that make no whole cycle: they are in the graph one by one, the cycles once.
    Returns (carry, (ys of the prefix, ys of scan_layers, ys of the suffix))."""
    carry, before = _in_turn(prefix, init)
    carry, ys = scan_layers(cycle, stacked_params, carry, xs, **options)
    carry, after = _in_turn(suffix, carry)
    return carry, (before, ys, after)


def _in_turn(layers: Sequence[tuple[Layer, Any]], carry: Any) -> tuple[Any, list[Any]]:
    ys = []
    for layer, params in layers:
        carry, y = layer(carry, params)
        ys.append(y)
    return carry, ys


def layer_norms(stacked: Any) -> jax.Array:
    """The Euclidean norm of each layer, [N], over all its floating-point arrays: one that is stacked is N arrays.

    In float32 or wider; of complex numbers the absolute values count."""
    largest, norms = _scaled_norms(stacked)
    return largest * norms


def clip_layers(gradients: Any, max_norm: float) -> Any:
    """Gradients [N, ...], those of a layer scaled down together where their norm is above max_norm."""
    largest, norms = _scaled_norms(gradients)

    def clip(g: jax.Array) -> jax.Array:
        if not jnp.issubdtype(g.dtype, jnp.inexact):
            return g
        scale, norm = (a.reshape(-1, *[1] * (g.ndim - 1)) for a in (largest, norms))  # [N, ...]
        clipped = wide(g) / scale * (max_norm / jnp.maximum(norm, 1))
        return jnp.where(scale * norm <= max_norm, g, clipped.astype(g.dtype))

    return jax.tree.map(clip, gradients)


def _scaled_norms(stacked: Any) -> tuple[jax.Array, jax.Array]:
    """Of each layer, [N], about the largest absolute value, and the norm divided by it: no square can overflow."""
    arrays = jax.tree.leaves(stacked)
    rows = [wide(a) for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)]
    rows = [jnp.abs(a).reshape(len(a), math.prod(a.shape[1:])) for a in rows]  # [N, size of a layer's]
    rows = [jnp.zeros((len(arrays[0]), 1), jnp.float32), *rows]  # where there are none
    largest = functools.reduce(jnp.maximum, [row.max(1, initial=0) for row in rows])
    limit = float(jnp.finfo(largest.dtype).max) / 16  # between it and its inverse, so that 1 / largest is a number too
    largest = lax.stop_gradient(jnp.clip(largest, 1 / limit, limit))
    return largest, jnp.sqrt(sum(((row / largest[:, None]) ** 2).sum(1) for row in rows))
