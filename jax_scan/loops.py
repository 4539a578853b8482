"""The loops under `stack.py`: one layer a step, several layers a step, or groups of layers that are recomputed.

`lax.scan` hands each step its slice of the stack, and that is all there is to it as long as a step is one layer. With
several layers a step that do not divide N, `lax.scan` would cut off a remainder, which copies the stack: there the
steps count instead, and read their layers in place.
Source: https://docs.jax.dev/en/latest/gradient-checkpointing.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

Layer = Callable[..., tuple[Any, Any]]


def scan(
    layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: int, reverse: bool, unroll: int, remat: bool | int
) -> tuple[Any, Any]:
    """Scan `layer(carry, *slices)` over axis 0 of every array in `stacked`: (carry, ys)."""
    if remat is not False:
        layer = jax.checkpoint(layer, prevent_cse=False)  # the loop itself prevents CSE
    if remat > 1 and num_layers > 0:
        return _scan_groups(layer, stacked, init, num_layers, reverse, unroll, min(remat, num_layers))
    if unroll == 1 or num_layers == 0:
        return lax.scan(lambda carry, slices: layer(carry, *slices), init, stacked, reverse=reverse)

    def step(carry: Any, i: jax.Array) -> tuple[Any, Any]:
        return layer(carry, *jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), stacked))

    # What is read from the stack is read again by the backward pass. Kept, it would be a second copy of the weights.
    policy = None if remat else lambda p, *_, **__: p not in _READS
    step = jax.checkpoint(step, prevent_cse=False, policy=policy)
    return lax.scan(step, init, jnp.arange(num_layers), reverse=reverse, unroll=unroll)


_READS = (lax.dynamic_slice_p, lax.squeeze_p)


def _scan_groups(
    layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: int, reverse: bool, unroll: int, k: int
) -> tuple[Any, Any]:
    """Keep one carry every k layers; the backward pass recomputes the carries of one group at a time."""
    rest = num_layers % k

    def step(carry: Any, slices_in_group: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        slices, in_group = slices_in_group
        if not rest:
            return layer(carry, *slices)
        _, y = jax.eval_shape(layer, carry, *slices)
        skip = carry, jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), y)
        # cond, not where: a layer that is computed and thrown away may be NaN in the derivative
        return lax.cond(in_group, lambda: layer(carry, *slices), lambda: skip)

    def group(carry: Any, g: jax.Array) -> tuple[Any, Any]:
        start = jnp.minimum(g * k, num_layers - k)  # a last group of fewer layers begins within the one before it
        slices = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, k), stacked)  # [k, ...]
        in_group = start + jnp.arange(k) >= g * k
        return lax.scan(step, carry, (slices, in_group), reverse=reverse, unroll=unroll)

    groups = jnp.arange(-(-num_layers // k))
    carry, ys = lax.scan(jax.checkpoint(group, prevent_cse=False), init, groups, reverse=reverse)

    def in_one(y: jax.Array) -> jax.Array:  # [groups, k, ...] -> [N, ...]
        flat = y.reshape(-1, *y.shape[2:])
        return jnp.concatenate([flat[: num_layers - rest], flat[len(flat) - rest :]]) if rest else flat

    return carry, jax.tree.map(in_one, ys)


def unrolled(layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: int, reverse: bool) -> tuple[Any, Any]:
    """The same values as `scan`, with N layers in the graph."""
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    arrays, structure = jax.tree.flatten(stacked)
    split = [[part[0] for part in lax.split(a, (1,) * num_layers)] for a in arrays]
    if not num_layers:
        _, y = jax.eval_shape(layer, init, *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked))
        return init, jax.tree.map(lambda y: jnp.zeros((0, *y.shape), y.dtype), y)
    carry, ys = init, [None] * num_layers
    for i in reversed(range(num_layers)) if reverse else range(num_layers):
        carry, ys[i] = layer(carry, *jax.tree.unflatten(structure, [parts[i] for parts in split]))
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *ys)
