"""Derivatives and batching of a whole stack: transform the layer, then scan it, as JAX does behind `jax.jvp`.

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
from tf_while.edges import as_leaf, compile
from tf_while.loops import Layer, as_program, dense, flatten, floats, spread
from tf_while.stack import _check_layers, scan_layers

Apply = Callable[..., Any]
Options = tuple[tuple[str, Any], ...]


def vjp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, cotangents: tuple[Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Reverse mode. cotangents: (dcarry, dys). Returns (carry, ys), (dstacked_params, dinit, dxs)."""
    return as_program(_vjp, (layer, *options.items()), (stacked_params, init, xs, cotangents))


def _vjp(layer: Layer, *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs, cotangents = options_and_trees
    arrays, pack = _apart((stacked_params, init, xs))
    outputs = scan_layers(layer, *pack(arrays), **dict(options))
    cotangents = _tangents("cotangents", cotangents, outputs, ("carry", "ys"))
    grads = tf.gradients(floats(flatten(outputs)[0]), floats(arrays), flatten(cotangents)[0])
    return outputs, pack(spread(dense(grads, floats(arrays)), arrays))


def jvp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, tangents: tuple[Any, Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Forward mode. tangents: (tstacked_params, tinit, txs). Returns (carry, ys), (tcarry, tys)."""
    return as_program(_jvp, (layer, *options.items()), (stacked_params, init, xs, tangents))


def _jvp(layer: Layer, *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs, tangents = options_and_trees
    tparams, tinit, txs = _tangents("tangents", tangents, (stacked_params, init, xs), INPUTS)
    _check_layers(layer, stacked_params, init, xs)  # by its own name, not the transformed layer's

    def jvp_layer(carry: tuple[Any, Any], *slices: tuple[Any, Any]) -> tuple[Any, Any]:
        (new_carry, y), (new_tcarry, ty) = _pushforward(layer, *zip(carry, *slices, strict=True))
        return (new_carry, new_tcarry), (y, ty)

    both = (stacked_params, tparams), (init, tinit), None if xs is None else (xs, txs)
    (carry, tcarry), (ys, tys) = scan_layers(jvp_layer, *both, **dict(options))
    return (carry, ys), (tcarry, tys)


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
    carry, ys = scan_layers(_batched(layer, in_axes), *primals, **dict(options))
    return carry, _moved(ys, 1, 0)


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
    tangents = _tangents("tangents", tangents, (stacked_params, init, xs), INPUTS)
    (arrays, pack), (tarrays, pack_tangents) = _apart((stacked_params, init, xs)), _apart(tangents)
    outputs, out_tangents = jvp_layers(layer, *pack(arrays), tangents=pack_tangents(tarrays), **dict(options))
    _, tloss = _pushforward(loss, outputs, out_tangents)
    wrt = [*tarrays, *floats(arrays)]
    grads = dense(tf.gradients(tloss, wrt), wrt)
    return tuple(pack(spread(half, arrays)) for half in (grads[: len(tarrays)], grads[len(tarrays) :]))


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
    B = arguments.check_batch(as_leaf, dict(zip(INPUTS, (stacked_params, init, xs), strict=True)), in_axes)
    return as_program(_vmap_vjp, (layer, B, tuple(in_axes), *options.items()), (stacked_params, init, xs, cotangents))


def _vmap_vjp(layer: Layer, B: int, in_axes: tuple[Any, ...], *options_and_trees: Any) -> tuple[Any, Any]:
    *options, stacked_params, init, xs, cotangents = options_and_trees
    # every member has parameters of its own, because it has gradients of its own
    primals = _batch_second(B, in_axes, layer, stacked_params, init, xs, everything=True)
    arrays, pack = _apart(primals)
    carry, ys = scan_layers(_batched(layer, (0, 0, 0)), *pack(arrays), **dict(options))
    outputs = carry, _moved(ys, 1, 0)

    def as_one(array: Any) -> arguments.Leaf | None:
        leaf = as_leaf(array)
        return leaf if leaf is None or not leaf.shape else leaf._replace(shape=leaf.shape[1:])

    cotangents = _tangents("cotangents", cotangents, outputs, ("carry", "ys"), as_one)
    grads = tf.gradients(floats(flatten(outputs)[0]), floats(arrays), flatten(cotangents)[0])
    dparams, dinit, dxs = pack(spread(dense(grads, floats(arrays)), arrays))
    return outputs, (_moved(dparams, 1, 0), dinit, _moved(dxs, 1, 0))


def gradient(apply: Apply) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, for an `apply` from arrays to one array."""

    def run(*args_and_cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
        *args, cotangent = args_and_cotangent
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(args)
            y = apply(*args)
        return y, *tape.gradient(y, args, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[tf.Tensor, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))


INPUTS = ("stacked_params", "init", "xs")


def _pushforward(function: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """`function(*primals)` and its derivative along tangents: the vjp is linear, and its own vjp is the jvp.

    Not by a ForwardAccumulator, which does not pass through the derivative of a scan in the layer."""
    arrays, pack = _apart(tuple(primals))
    outputs = function(*pack(arrays))
    outs, pack_outs = _apart(outputs)
    seeds = [*map(tf.zeros_like, floats(outs))]
    pulled = tf.gradients(floats(outs), floats(arrays), seeds)
    along = flatten(tangents)[0]
    pairs = [(tf.convert_to_tensor(p), t) for p, t in zip(pulled, along, strict=True) if p is not None]
    pushed = tf.gradients([p for p, _ in pairs], seeds, [t for _, t in pairs])
    return outputs, pack_outs(spread(dense(pushed, seeds), outs))


def _batched(layer: Layer, in_axes: tuple[Any, ...]) -> Layer:
    """`layer` for a batch of carries, and of slices where there is an axis of the batch."""

    def step(*carry_and_slices: Any) -> tuple[Any, Any]:
        mapped = (True, in_axes[0] is not None, in_axes[2] is not None)[: len(carry_and_slices)]
        arrays, pack = flatten([tree if m else None for tree, m in zip(carry_and_slices, mapped, strict=True)])
        pack_outputs = []

        def one(arrays: list[tf.Tensor]) -> list[tf.Tensor]:
            members = zip(pack(arrays), carry_and_slices, mapped, strict=True)
            outs, pack_outs = flatten(layer(*(member if m else shared for member, shared, m in members)))
            pack_outputs.append(pack_outs)
            return outs

        outs = tf.vectorized_map(one, arrays)
        return pack_outputs[-1](outs)

    return step


def _batch_second(B: int, in_axes: tuple[Any, ...], layer: Layer, *primals: Any, everything: bool = False) -> list[Any]:
    """primals with the axis of the batch behind that of the layers, and first in init. One member of it is checked."""
    places = [*zip(in_axes, (1, 0, 1), (everything, True, everything), strict=True)]
    moved = [_moved(tree, axis, to) for tree, (axis, to, _) in zip(primals, places, strict=True)]
    _check_layers(layer, *(_member(tree, axis, to) for tree, (axis, to, _) in zip(moved, places, strict=True)))

    def repeated(tree: Any, to: int) -> Any:
        return _map(lambda a: tf.repeat(tf.expand_dims(a, to), B, to), tree)

    return [
        repeated(tree, to) if axis is None and needed else tree
        for tree, (axis, to, needed) in zip(moved, places, strict=True)
    ]


def _member(tree: Any, axis: int | None, to: int) -> Any:
    return tree if axis is None else _map(lambda a: tf.gather(a, 0, axis=to), tree)


def _moved(tree: Any, axis: int | None, to: int) -> Any:
    if axis is None:
        return tree

    def move(array: tf.Tensor) -> tf.Tensor:
        order = [*range(array.shape.rank)]
        order.insert(to, order.pop(axis))
        return array if order == sorted(order) else tf.transpose(array, order)

    return _map(move, tree)


def _map(function: Callable[[tf.Tensor], tf.Tensor], tree: Any) -> Any:
    arrays, pack = flatten(tree)
    return pack([*map(function, arrays)])


def _apart(tree: Any) -> tuple[list[tf.Tensor], Callable[..., Any]]:
    """`flatten`, with an array that stands in two places taken for two."""
    arrays, pack = flatten(tree)
    return [*map(tf.identity, arrays)], pack


def _tangents(
    name: str, tangents: Any, primals: tuple[Any, ...], of: tuple[str, ...], as_leaf: arguments.AsLeaf = as_leaf
) -> tuple[Any, ...]:
    """`tangents` checked against `primals`, with zeros for a tree that is None, and None for integers."""
    arguments.check_tangents(as_leaf, name, tangents, primals, of)
    filled = []
    for primal, tangent in zip(primals, tangents, strict=True):
        arrays, pack = flatten(primal)
        given = [*map(tf.zeros_like, floats(arrays))] if tangent is None else flatten(tangent)[0]
        filled.append(pack(spread(given, arrays)))
    return tuple(filled)
