"""The parameters of every layer: their names, shapes and first values. No framework, so that all frameworks agree.

A shape is written as its axes; in front of an arrow stand those that a product sums over, their fan-in. Symbols: d
width, f hidden width, h heads, g heads of keys and values, e width of a head, c channels; b batch, t positions, y and
x the two axes of an image. A digit is a size; "..." is any axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from reference.arguments import AsLeaf, leaf, leaves

_NORM = {"scale": "d", "bias": "d"}
PARAMS: dict[str, Any] = {
    "dense": "d -> d",
    "mlp": {
        "norm": {"scale": "... d", "bias": "... d"},
        "up": {"w": "d -> f", "bias": "... f"},
        "down": {"w": "f -> d", "bias": "... d"},
    },
    "transformer_encoder": {
        **{name: {"w": "d -> h e", "bias": "h e"} for name in ("query", "key", "value")},
        "out": {"w": "h e -> d", "bias": "d"},
        "norm1": _NORM,
        "up": {"w": "d -> f", "bias": "f"},
        "down": {"w": "f -> d", "bias": "d"},
        "norm2": _NORM,
    },
    "transformer_decoder": {
        "norm1": {"scale": "d"},
        "query": {"w": "d -> h e"},
        **{name: {"w": "d -> g e"} for name in ("key", "value")},
        "out": {"w": "h e -> d"},
        "norm2": {"scale": "d"},
        **{name: {"w": "d -> f"} for name in ("gate", "up")},
        "down": {"w": "f -> d"},
    },
    "residual_conv": {
        **{f"norm{i}": {"scale": "c", "bias": "c"} for i in (1, 2)},
        **{f"conv{i}": {"w": "3 3 c -> c"} for i in (1, 2)},
    },
}
CARRIES: dict[str, Any] = {
    "dense": "d",
    "mlp": "... d",
    "transformer_encoder": {"x": "b t d", "mask": "b t"},
    "transformer_decoder": "b t d",
    "residual_conv": "b y x c",
}


def check(as_leaf: AsLeaf, layer: str, carry: Any, params: Any) -> None:
    """Check the shapes of what the layer of that name is given; axes of one symbol have one size.

    Raises:
        TypeError: "params: expected arrays ['down']['bias'], ..., got ...": names that are missing or too many
        ValueError: "params['up']['w']: expected shape (d, f) with d = 8, got (4, 16)"
    """
    sizes: dict[str, int | None] = {}
    for name, tree, of in (("carry", carry, CARRIES[layer]), ("params", params, PARAMS[layer])):
        found, expected = dict(leaves("", tree)), dict(leaves("", of))
        if found.keys() != expected.keys():
            shown = [", ".join(paths) or "one array" for paths in (expected, found)]
            raise TypeError(f"{name} of {layer}: expected arrays {shown[0]}, got {shown[1]}")
        for path, axes in expected.items():
            _check_axes(leaf(as_leaf, name + path, found[path]).shape, axes, name + path, sizes)


def _check_axes(shape: tuple[int | None, ...] | None, axes: str, path: str, sizes: dict[str, int | None]) -> None:
    if shape is None:
        return
    symbols = _symbols(axes)
    fits = len(shape) >= len(symbols) if "..." in axes else len(shape) == len(symbols)
    for symbol, size in zip(symbols, shape[len(shape) - len(symbols) :], strict=False) if fits else ():
        known = int(symbol) if symbol.isdigit() else sizes.setdefault(symbol, size)
        fits = fits and (known is None or size is None or known == size)
    if not fits:
        knowing = ", ".join(f"{s} = {sizes[s]}" for s in dict.fromkeys(symbols) if sizes.get(s) is not None)
        expected = f"({', '.join(axes.replace('->', '').split())})"
        raise ValueError(f"{path}: expected shape {expected}{f' with {knowing}' if knowing else ''}, got {shape}")


def check_cache(as_leaf: AsLeaf, x: Any, cache: Any, position: Any, hold: str) -> None:
    """Check what `decode` is given beside its params.

    Raises:
        TypeError: those of `check`
        ValueError: "hold: expected one of entries, slices, carry, got 'all'", "position: expected 0 to 6, so that 2
            positions find room for 8, got 7", and those of `check`
    """
    if hold not in HOLDS:
        raise ValueError(f"hold: expected one of {', '.join(HOLDS)}, got {hold!r}")
    sizes: dict[str, int | None] = {}
    _check_axes(leaf(as_leaf, "x", x).shape, "b t d", "x", sizes)
    found = dict(leaves("cache", cache))
    if found.keys() != {"cache['k']", "cache['v']"}:
        raise TypeError(f"cache: expected arrays ['k'], ['v'], got {', '.join(found) or 'none'}")
    for path, array in found.items():
        _check_axes(leaf(as_leaf, path, array).shape, "n b s g e", path, sizes)
    t, s = sizes.get("t"), sizes.get("s")
    if isinstance(position, int) and t is not None and s is not None and not 0 <= position <= s - t:
        raise ValueError(f"position: expected 0 to {s - t}, so that {t} positions find room for {s}, got {position}")


HOLDS = ("entries", "slices", "carry")


def first_values(layer: str, sizes: dict[str, int], normal: Callable[..., Any], constant: Callable[..., Any]) -> Any:
    """The params one layer begins with: `normal(shape, standard deviation)`, or `constant(shape, value)` for scales and
    biases, names in the order of the alphabet."""

    def build(tree: Any, name: str) -> Any:
        if isinstance(tree, dict):
            return {name: build(tree[name], name) for name in sorted(tree)}
        shape, scale = shape_and_scale(tree, sizes)
        return constant(shape, float(name == "scale")) if name in ("scale", "bias") else normal(shape, scale)

    return build(PARAMS[layer], "")


def shape_and_scale(axes: str, sizes: dict[str, int]) -> tuple[tuple[int, ...], float]:
    """The shape of such an array, and the standard deviation its values begin with: fan-in ** -0.5.

    Raises:
        TypeError: "sizes: expected a size for d of 'd -> f', got {'f': 16}"
    """
    summed = axes.partition("->")[0].split() if "->" in axes else []
    symbols = _symbols(axes)
    missing = [s for s in symbols if not s.isdigit() and s not in sizes]
    if missing:
        raise TypeError(f"sizes: expected a size for {', '.join(missing)} of {axes!r}, got {sizes}")
    size = {s: int(s) if s.isdigit() else sizes[s] for s in symbols}
    return tuple(size[s] for s in symbols), math.prod(size[s] for s in summed) ** -0.5


def tensor_axes(layer: str) -> Any:
    """Of stacked params of that layer, the axis that tensor parallelism cuts: that of f, h or g, None where none is."""
    return _axis_of_each(layer, lambda is_cut: is_cut)


def axes_beside(layer: str) -> Any:
    """The first axis of each that it leaves whole, for what is fully sharded too; None where there is none."""
    return _axis_of_each(layer, lambda is_cut: not is_cut)


def _axis_of_each(layer: str, is_one: Callable[[bool], bool]) -> Any:
    def axis(axes: Any) -> Any:
        if isinstance(axes, dict):
            return {name: axis(axes) for name, axes in axes.items()}
        return next((1 + i for i, symbol in enumerate(_symbols(axes)) if is_one(symbol in ("f", "h", "g"))), None)

    return axis(PARAMS[layer])


def _symbols(axes: str) -> list[str]:
    return [axis for axis in axes.split() if axis not in ("->", "...")]
