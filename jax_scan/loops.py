"""The loops under `stack.py`: one layer a step, several layers a step, or groups of layers that are recomputed.

`lax.scan` hands each step its slice of the stack, and that is all there is to it as long as a step is one layer. With
several layers a step that do not divide N, `lax.scan` would cut off a remainder, which copies the stack: there the
steps count instead, and read their layers in place.
Source: https://docs.jax.dev/en/latest/gradient-checkpointing.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jax_scan.programs import hoist

Layer = Callable[..., tuple[Any, Any]]


def scan(
    layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: int, reverse: bool, unroll: int, remat: bool | int
) -> tuple[Any, Any]:
    """Scan `layer(carry, *slices)` over axis 0 of every array in `stacked`: (carry, ys)."""
    if num_layers == 0:  # under jax.disable_jit lax.scan does not know what ys would be
        return unrolled(layer, stacked, jax.tree.map(jnp.copy, init), num_layers, reverse)
    if remat is not False:
        # A function of its own: jax.checkpoint finds again what it has traced for a function, whatever that reads now.
        layer = jax.checkpoint(functools.partial(layer), prevent_cse=False)  # the loop itself prevents CSE
    if remat > 1:
        return _scan_groups(layer, stacked, init, num_layers, reverse, unroll, min(remat, num_layers))
    if num_layers % unroll == 0 or unroll > num_layers:
        return lax.scan(lambda carry, slices: layer(carry, *slices), init, stacked, reverse=reverse, unroll=unroll)

    def step(carry: Any, i: jax.Array) -> tuple[Any, Any]:
        return layer(carry, *_read(stacked, i)) if remat else _reading_again(layer, carry, stacked, i)

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)
    return lax.scan(step, init, jnp.arange(num_layers), reverse=reverse, unroll=unroll)


def _read(stacked: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), stacked)


def _reading_again(layer: Layer, carry: Any, stacked: tuple[Any, ...], i: jax.Array) -> tuple[Any, Any]:
    """`layer(carry, *_read(stacked, i))`, whose derivative reads the slices again: kept, they would be another stack.

    All else that the derivative needs is kept, or not, as the layer itself has it. (jax.checkpoint around the step,
    with a policy that keeps all but the slices, would do that too, but put its policy in the place of the layer's own,
    and refuse complex numbers.)"""
    run, closed_over = hoist(layer, carry, *jax.eval_shape(_read, stacked, i))

    @jax.custom_jvp
    def step(closed_over: Any, carry: Any, stacked: Any, i: jax.Array) -> Any:
        return run(closed_over, carry, *_read(stacked, i))

    def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        closed_over, carry, stacked, i = primals
        slices = _read(stacked, i)
        output, linear = jax.linearize(
            lambda *primals: run(primals[0], primals[1], *primals[2]), closed_over, carry, slices
        )
        residuals, structure = jax.tree.flatten(linear)
        place = {id(a): at for at, a in enumerate(jax.tree.leaves(slices))}
        read = [place.get(id(residual)) for residual in residuals]

        def apply(kept: list[Any], stacked: Any, i: jax.Array, *tangents: Any) -> Any:
            again, rest = jax.tree.leaves(_read(stacked, i)), iter(kept)
            residuals = [next(rest) if at is None else again[at] for at in read]
            return jax.tree.unflatten(structure, residuals)(*tangents)

        kept = [residual for residual, at in zip(residuals, read, strict=True) if at is None]
        given = _tangents(closed_over, tangents[0]), _tangents(carry, tangents[1]), _tangents(slices, tangents[2], i)
        return output, jax.checkpoint(apply, prevent_cse=False)(kept, stacked, i, *given)

    step.defjvp(jvp, symbolic_zeros=True)
    return step(closed_over, carry, stacked, i)


def _tangents(primals: Any, tangents: Any, i: Any = None) -> Any:
    """Tangents of primals, or, with i, of those of a stack: zeros where JAX knows that they are."""

    def tangent(primal: jax.Array, tangent: Any) -> Any:
        if not isinstance(tangent, SymbolicZero):
            return tangent if i is None else _read(tangent, i)
        is_float = jnp.issubdtype(primal.dtype, jnp.inexact)
        return jnp.zeros_like(primal) if is_float else np.zeros(primal.shape, jax.dtypes.float0)

    return jax.tree.map(tangent, primals, tangents)


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
        flat = y.reshape(len(groups) * k, *y.shape[2:])
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
