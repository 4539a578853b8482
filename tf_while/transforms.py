"""Derivatives and batching of a whole stack: transform the layer, then scan it, as `jax.jvp` does.

Reverse mode needs no such step: it is in the scan itself (`loops.py`), so that a tape or `tf.gradients` goes through.
All functions take a stack as `scan_layers` does. Tangents, cotangents and gradients hold None where the array is not of
floating point, and None for a whole tree means zero.
Source: https://www.tensorflow.org/api_docs/python/tf/gradients
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while import trees
from tf_while.autodiff import batched, pushforward
from tf_while.checks import prepare
from tf_while.edges import as_leaf, beside_autograph
from tf_while.programs import as_program
from tf_while.stack import scan_layers
from tf_while.trees import Layer


@beside_autograph
def vjp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, cotangents: tuple[Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Reverse mode. cotangents: (dcarry, dys). Returns (carry, ys), (dstacked_params, dinit, dxs)."""
    return as_program(_vjp, (layer, *options.items()), (stacked_params, init, xs, cotangents))


def _vjp(layer: Layer, *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs, cotangents = options_and_trees
    arrays, pack = trees.apart((stacked_params, init, xs))
    outputs = scan_layers(layer, *pack(arrays), **dict(options))
    cotangents = trees.tangents_like("cotangents", cotangents, outputs, OUTPUTS)
    grads = trees.pulled(trees.floats(trees.flatten(outputs)[0]), trees.floats(arrays), trees.flatten(cotangents)[0])
    return outputs, pack(trees.nones(trees.filled(grads, trees.floats(arrays)), arrays))


@beside_autograph
def jvp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, tangents: tuple[Any, Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Forward mode. tangents: (tstacked_params, tinit, txs). Returns (carry, ys), (tcarry, tys)."""
    return as_program(_jvp, (layer, *options.items()), (stacked_params, init, xs, tangents))


def _jvp(layer: Layer, *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs, tangents = options_and_trees
    tparams, tinit, txs = trees.tangents_like("tangents", tangents, (stacked_params, init, xs), INPUTS)
    prepare(layer, stacked_params, init, xs, **dict(options))  # by its own name, not the transformed layer's

    def jvp_layer(carry: tuple[Any, Any], *slices: tuple[Any, Any]) -> tuple[Any, Any]:
        (new_carry, y), (new_tcarry, ty) = pushforward(layer, *zip(carry, *slices, strict=True))
        return (new_carry, new_tcarry), (y, ty)

    both = (stacked_params, tparams), (init, tinit), None if xs is None else (xs, txs)
    (carry, tcarry), (ys, tys) = scan_layers(jvp_layer, *both, **dict(options))
    return (carry, ys), (tcarry, tys)


@beside_autograph
def vmap_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, in_axes: Any = (None, 0, None), **options: Any
) -> tuple[Any, Any]:
    """Batching. in_axes: the axis of the batch, or None, for stacked_params, init, xs: (None, 0, None) is a batch of
    inits, (0, None, None) an ensemble of stacks. Returns (carry [B, ...], ys [B, N, ...])."""
    B = arguments.check_batch(as_leaf, dict(zip(INPUTS, (stacked_params, init, xs), strict=True)), in_axes)
    return as_program(_vmap, (layer, B, tuple(in_axes), *options.items()), (stacked_params, init, xs))


def _vmap(layer: Layer, B: int, in_axes: tuple[Any, ...], *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs = options_and_trees
    primals = _batch_second(B, in_axes, layer, stacked_params, init, xs)
    carry, ys = scan_layers(batched(layer, in_axes), *primals, **dict(options))
    return carry, trees.moved(ys, 1, 0)


@beside_autograph
def hvp_layers(
    layer: Layer,
    loss: Callable[[Any, Any], tf.Tensor],
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    tangents: tuple[Any, Any, Any],
    **options: Any,
) -> tuple[Any, Any]:
    """Gradient of `loss(carry, ys)` and its derivative along tangents: the Hessian times tangents.

    Returns (dstacked_params, dinit, dxs) twice: the gradient, then the product."""
    return as_program(_hvp, (layer, loss, *options.items()), (stacked_params, init, xs, tangents))


def _hvp(layer: Layer, loss: Callable[[Any, Any], tf.Tensor], *options_and_trees: Any) -> tuple[Any, Any]:
    # Reverse over forward: the derivative of the loss along tangents is <gradient, tangents>, so its own derivative is
    # the gradient where it is taken by tangents, and the product where it is taken by primals.
    *options, stacked_params, init, xs, tangents = options_and_trees
    tangents = trees.tangents_like("tangents", tangents, (stacked_params, init, xs), INPUTS)
    (arrays, pack), (tarrays, pack_tangents) = trees.apart((stacked_params, init, xs)), trees.apart(tangents)
    outputs, out_tangents = jvp_layers(layer, *pack(arrays), tangents=pack_tangents(tarrays), **dict(options))
    _, tloss = pushforward(loss, outputs, out_tangents)
    wrt = [*tarrays, *trees.floats(arrays)]
    grads = trees.filled(trees.pulled([tloss], wrt, None), wrt)
    return tuple(pack(trees.nones(half, arrays)) for half in (grads[: len(tarrays)], grads[len(tarrays) :]))


@beside_autograph
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
    B = arguments.check_batch(as_leaf, inputs, in_axes, cotangents)
    return as_program(_vmap_vjp, (layer, B, tuple(in_axes), *options.items()), (stacked_params, init, xs, cotangents))


def _vmap_vjp(layer: Layer, B: int, in_axes: tuple[Any, ...], *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs, cotangents = options_and_trees
    # every member has parameters of its own, because it has gradients of its own
    primals = _batch_second(B, in_axes, layer, stacked_params, init, xs, everything=True)
    arrays, pack = trees.apart(primals)
    carry, ys = scan_layers(batched(layer, (0, 0, 0)), *pack(arrays), **dict(options))
    outputs = carry, trees.moved(ys, 1, 0)

    cotangents = trees.tangents_like("cotangents", cotangents, outputs, OUTPUTS)
    grads = trees.pulled(trees.floats(trees.flatten(outputs)[0]), trees.floats(arrays), trees.flatten(cotangents)[0])
    dparams, dinit, dxs = pack(trees.nones(trees.filled(grads, trees.floats(arrays)), arrays))
    return outputs, (trees.moved(dparams, 1, 0), dinit, trees.moved(dxs, 1, 0))


INPUTS, OUTPUTS = ("stacked_params", "init", "xs"), ("carry", "ys")


def _batch_second(B: int, in_axes: tuple[Any, ...], layer: Layer, *primals: Any, everything: bool = False) -> list[Any]:
    """primals with the axis of the batch after that of the layers, and first in init. One member of it is checked."""
    places = [*zip(in_axes, (1, 0, 1), (everything, True, everything), strict=True)]
    apart = [trees.moved(tree, axis, to) for tree, (axis, to, _) in zip(primals, places, strict=True)]
    prepare(layer, *(trees.member(tree, axis, to) for tree, (axis, to, _) in zip(apart, places, strict=True)))

    def repeated(tree: Any, to: int) -> Any:
        return trees.map_arrays(lambda a: tf.repeat(tf.expand_dims(a, to), B, to), tree)

    return [
        repeated(tree, to) if axis is None and needed else tree
        for tree, (axis, to, needed) in zip(apart, places, strict=True)
    ]
