"""What users of layer stacks ask for, each a few lines around a layer or around `scan_layers`: gates, dropout, mixed
precision, the layer where NaN begins.

A recipe that wraps a layer returns a layer, so recipes nest, and go rolled and unrolled through every transform.
Source: https://docs.pytorch.org/docs/2.13/generated/torch.Generator.html
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from reference import arguments
from torch_compile.edges import DEVICE, as_leaf
from torch_compile.layers import wide
from torch_compile.stack import scan_layers
from torch_compile.trees import Layer, flatten, flatten_like, map_arrays, unflatten


def gated(layer: Layer) -> Layer:
    """`gate * new_carry + (1 - gate) * carry`: xs are gates [N], or (gates, xs of layer). Differentiable in the gate.

    Gates of 0 and 1 leave before the last layer, or pad stacks of several depths to one, and so to one program. A layer
    whose gate is 0 is still computed: where it is not finite, neither is the result. Its y stays as it is."""

    def step(carry: Any, params: Any, x: Any) -> tuple[Any, Any]:
        gate, *rest = x if isinstance(x, tuple) else (x,)
        new_carry, y = layer(carry, params, *rest)

        def mix(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            if not (old.is_floating_point() or old.is_complex()):
                return torch.where(gate == 0, old, new)
            g = gate.to(old.dtype)
            return g * new + (1 - g) * old

        arrays, structure = flatten(carry)
        return unflatten(structure, [*map(mix, arrays, flatten_like(structure, new_carry))]), y

    return step


def layer_keys(seed: int, num_layers: int, shape: tuple[int, ...]) -> torch.Tensor:
    """One key a layer, as xs for layers that call `dropout` on arrays of `shape`: equal seeds, equal keys."""
    # torch draws from a state, not from a key: so the numbers are drawn beforehand, and are the key
    return torch.rand(num_layers, *shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)  # [N, *shape]


def dropout(array: torch.Tensor, key: torch.Tensor, rate: float) -> torch.Tensor:
    """Zero each element with probability `rate`, divide the others by 1 - rate. The mask depends on the key alone."""
    arguments.check_rate(as_leaf, rate)
    arguments.check_key(arguments.leaf(as_leaf, "key", key), arguments.leaf(as_leaf, "array", array))
    return torch.where(key >= rate, array / (1 - rate + (rate == 1)), 0).to(array.dtype)


def cast_params(layer: Layer, dtype: Any) -> Layer:
    """Mixed precision: floating-point params stay in their dtype outside and are cast to `dtype` inside the layer.

    Complex ones are not cast: no half precision holds them."""

    def cast(array: torch.Tensor) -> torch.Tensor:
        return array.to(dtype) if array.is_floating_point() else array

    return lambda carry, params, *x: layer(carry, map_arrays(cast, params), *x)


def locate_nonfinite(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> torch.Tensor:
    """The first layer, in the order in which they run, that makes a NaN or an infinity: its index, or -1 for none."""
    _, finite = scan_layers(_is_finite(layer), stacked_params, init, xs, reverse=reverse)  # [N]
    order = finite.flip(0) if reverse else finite
    first = order.to(torch.int32).argmin() if len(order) else torch.tensor(0, device=order.device)
    return torch.where(finite.all(), -1, len(order) - 1 - first if reverse else first)


def _is_finite(layer: Layer) -> Layer:
    def step(carry: Any, params: Any, *x: Any) -> tuple[Any, torch.Tensor]:
        new_carry, y = layer(carry, params, *x)
        floats = [a for a in flatten((new_carry, y))[0] if a.is_floating_point() or a.is_complex()]
        yes = flatten((params, x))[0][0].new_ones((), dtype=torch.bool)
        return new_carry, torch.stack([yes, *(torch.isfinite(a).all() for a in floats)]).all()

    return step


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


def layer_norms(stacked: Any) -> torch.Tensor:
    """The Euclidean norm of each layer, [N], over all its floating-point arrays: one that is stacked is N arrays.

    In float32 or wider; of complex numbers the absolute values count."""
    largest, norms = _scaled_norms(stacked)
    return largest * norms


def clip_layers(gradients: Any, max_norm: float) -> Any:
    """Gradients [N, ...], those of a layer scaled down together where their norm is above max_norm."""
    largest, norms = _scaled_norms(gradients)

    def clip(g: torch.Tensor) -> torch.Tensor:
        if not (g.is_floating_point() or g.is_complex()):
            return g
        scale, norm = (a.reshape(-1, *[1] * (g.dim() - 1)) for a in (largest, norms))  # [N, ...]
        clipped = wide(g) / scale * (max_norm / norm.clamp(min=1))
        return torch.where(scale * norm <= max_norm, g, clipped.to(g.dtype))

    return map_arrays(clip, gradients)


def _scaled_norms(stacked: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each layer, [N], about the largest absolute value, and the norm divided by it: no square can overflow."""
    arrays, _ = flatten(stacked)
    rows = [wide(a) for a in arrays if a.is_floating_point() or a.is_complex()]
    rows = [a.abs().unsqueeze(1).flatten(1) for a in rows if a.shape[1:].numel()]  # [N, size of a layer's]
    rows = [torch.zeros(len(arrays[0]), 1, device=arrays[0].device), *rows]  # where there are none
    largest = functools.reduce(torch.maximum, [row.amax(1) for row in rows])
    limit = torch.finfo(largest.dtype).max / 16  # between it and its inverse, so that 1 / largest is a number too
    largest = largest.clamp(1 / limit, limit).detach()
    return largest, torch.sqrt(sum(((row / largest[:, None]) ** 2).sum(1) for row in rows))  # type: ignore[arg-type]
