"""Derivatives and batching of a whole stack: `jax.vjp`, `jax.jvp` and `jax.vmap` go through the scan from outside.

What JAX does there is transform the layer and scan it again; the other two folders write that out. All functions take a
stack as `scan_layers` does. Tangents, cotangents and gradients hold None where the array is not of floating point, and
None for a whole tree means zero.
Source: https://docs.jax.dev/en/latest/notebooks/autodiff_cookbook.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jax_scan.edges import as_leaf
from jax_scan.loops import Layer
from jax_scan.programs import kept
from jax_scan.stack import scan_layers
from jax_scan.trees import nones, tangents_like
from reference import arguments


@kept
def vjp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, cotangents: tuple[Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Reverse mode. cotangents: (dcarry, dys). Returns (carry, ys), (dstacked_params, dinit, dxs)."""
    outputs, pullback = jax.vjp(partial(scan_layers, layer, **options), stacked_params, init, xs)
    return outputs, nones(pullback(tangents_like("cotangents", cotangents, outputs, OUTPUTS)))


@kept
def jvp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, tangents: tuple[Any, Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Forward mode. tangents: (tstacked_params, tinit, txs). Returns (carry, ys), (tcarry, tys)."""
    primals = stacked_params, init, xs
    tangents = tangents_like("tangents", tangents, primals, INPUTS)
    outputs, out_tangents = jax.jvp(partial(scan_layers, layer, **options), primals, tangents)
    return outputs, nones(out_tangents)


@kept
def vmap_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, in_axes: Any = (None, 0, None), **options: Any
) -> tuple[Any, Any]:
    """Batching. in_axes: the axis of the batch, or None, for stacked_params, init, xs: (None, 0, None) is a batch of
    inits, (0, None, None) an ensemble of stacks. Returns (carry [B, ...], ys [B, N, ...])."""
    arguments.check_batch(as_leaf, dict(zip(INPUTS, (stacked_params, init, xs), strict=True)), in_axes)
    run: Callable[..., Any] = partial(scan_layers, layer, **options)
    return jax.vmap(run, in_axes)(stacked_params, init, xs)


@kept
def hvp_layers(
    layer: Layer,
    loss: Callable[[Any, Any], jax.Array],
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    tangents: tuple[Any, Any, Any],
    **options: Any,
) -> tuple[Any, Any]:
    """Gradient of `loss(carry, ys)` and its Hessian times tangents, forward over reverse.

    Returns (dstacked_params, dinit, dxs) twice: the gradient, then the product."""
    primals = stacked_params, init, xs
    run: Callable[..., Any] = partial(scan_layers, layer, **options)
    gradient = jax.grad(lambda *inputs: loss(*run(*inputs)), (0, 1, 2), allow_int=True)
    return jax.tree.map(nones, jax.jvp(gradient, primals, tangents_like("tangents", tangents, primals, INPUTS)))


@kept
def vmap_vjp_layers(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    cotangents: tuple[Any, Any],
    in_axes: Any = (None, 0, None),
    **options: Any,
) -> tuple[Any, Any]:
    """Per-example gradients: `vjp_layers` of each member of the batch, cotangents (dcarry [B, ...], dys [B, N, ...]).

    Returns (carry, ys), (dstacked_params, dinit, dxs), each array [B, ...], also of what the batch shares."""
    inputs = dict(zip(INPUTS, (stacked_params, init, xs), strict=True))
    arguments.check_batch(as_leaf, inputs, in_axes, cotangents)

    def one(stacked_params: Any, init: Any, xs: Any, cotangents: tuple[Any, Any]) -> Any:
        return vjp_layers(layer, stacked_params, init, xs, cotangents=cotangents, **options)

    return jax.vmap(one, (*in_axes, 0))(stacked_params, init, xs, cotangents)


INPUTS, OUTPUTS = ("stacked_params", "init", "xs"), ("carry", "ys")
