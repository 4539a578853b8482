"""The Python loop that defines what a stack of layers means, and its derivative, written out by hand.

    y = x
    for w in weights:
        y = w @ y

Every implementation is compared with this loop in float64, from the inputs that the implementation was given. In a
lower dtype the same functions say how accurate NumPy is there; complex, they are derivatives by complex step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from reference.layers import Array, dense, dense_vjp


def apply_layers(weights: Array, x: Array) -> Array:
    """Apply N dense layers, one after the other: weights [N, d, d], x [d] -> y [d]. N = 0 returns x."""
    y: Array = run_layers(dense, weights, x)[0]
    return y


def apply_layers_vjp(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """`apply_layers` and its reverse mode, for the cotangent [d] of y: y [d], dweights [N, d, d], dx [d]."""
    (y, _), (dweights, dx, _) = run_layers_vjp(dense, dense_vjp, weights, x, cotangents=(cotangent, None))
    return y, dweights, dx


def oracle(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """What is right: `apply_layers_vjp` in float64, from inputs that are already rounded to the dtype under test."""
    return apply_layers_vjp(weights.astype(np.float64), x.astype(np.float64), cotangent.astype(np.float64))


def run_layers(
    layer: Callable[..., tuple[Any, Any]], stacked_params: Any, init: Any, xs: Any = None, reverse: bool = False
) -> tuple[Any, Any]:
    """Apply N layers of any kind to nested dicts, tuples and lists of arrays: (carry, ys), ys in the layers' order."""
    stacked = [stacked_params] if xs is None else [stacked_params, xs]
    carry, ys = init, [None] * _depth(stacked)
    for i in _order(ys, reverse):
        carry, ys[i] = layer(carry, *_index(stacked, i))
    return carry, _stack(ys, lambda: layer(init, *_zeros_like_a_slice(stacked))[1])


def run_layers_vjp(
    layer: Callable[..., tuple[Any, Any]],
    vjp: Callable[..., tuple[Any, ...]],
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    cotangents: tuple[Any, Any],
    reverse: bool = False,
) -> tuple[tuple[Any, Any], tuple[Any, Any, Any]]:
    """`run_layers` and its reverse mode, for cotangents (dcarry, dys): (carry, ys), (dstacked_params, dinit, dxs).

    vjp: `vjp(carry, params, dcarry, dy)`, or with xs `vjp(carry, params, x, dcarry, dy)`, returns (dcarry, dparams) or
    (dcarry, dparams, dx). What has no derivative is None in all of these.
    """
    stacked = [stacked_params] if xs is None else [stacked_params, xs]
    carries, ys = [init], [None] * _depth(stacked)  # carries[k] goes into the k-th layer that runs
    for i in _order(ys, reverse):
        carry, ys[i] = layer(carries[-1], *_index(stacked, i))
        carries.append(carry)
    dcarry, dys = cotangents
    gradients: list[Any] = [None] * len(ys)  # of one layer each
    for i, carry in zip(_order(ys, not reverse), carries[-2::-1], strict=True):
        dcarry, *gradients[i] = vjp(carry, *_index(stacked, i), dcarry, _index(dys, i))
    outputs = carries[-1], _stack(ys, lambda: layer(init, *_zeros_like_a_slice(stacked))[1])
    dparams, *dxs = _stack(gradients, lambda: tree_map(_none_if_integer, _zeros_like_a_slice(stacked)))
    return outputs, (dparams, dcarry, dxs[0] if dxs else None)


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of each array in nested dicts, tuples and lists, and of what stands in its place in `others`.

    Keys are taken in order, as all frameworks do."""
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(o and o[key] for o in others)) for key in sorted(tree, key=str)}
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(function, item, *(o and o[i] for o in others)) for i, item in enumerate(tree))
    return None if tree is None else function(tree, *others)


def _order(ys: list[Any], reverse: bool) -> Any:
    return reversed(range(len(ys))) if reverse else range(len(ys))


def _depth(stacked: Any) -> int:
    depths: list[int] = []
    tree_map(lambda array: depths.append(len(array)), stacked)
    return depths[0]


def _index(stacked: Any, i: int) -> Any:
    return tree_map(lambda array: array[i], stacked)


def _zeros_like_a_slice(stacked: Any) -> Any:
    return tree_map(lambda array: np.zeros(array.shape[1:], array.dtype), stacked)


def _none_if_integer(array: Array) -> Array | None:
    return None if array.dtype.kind in "biu" else array


def _stack(trees: list[Any], like: Callable[[], Any]) -> Any:
    """One tree of arrays [N, ...] from N trees; where there is none, [0, ...] like the tree that `like` returns."""
    if not trees:
        return tree_map(lambda array: np.empty((0, *np.shape(array)), np.asarray(array).dtype), like())
    return tree_map(lambda *arrays: np.stack(arrays), *trees)
