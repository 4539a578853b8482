"""Is a tree of results right? Structure, type, dtype, shape, then values: each array, and each layer, on its own."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from reference.arguments import leaves
from reference.error_bound import allowed_by_yardstick, ulps

STACKED = ("ys", "dparams", "dxs")  # one slice a layer


def assert_trees(who, actual, exact, yardstick, *, dtype=None, stacked=STACKED):
    """`actual` is right: a named tuple, or a dict, of trees like `exact` (in float64) and `yardstick` (by NumPy).

    Arrays have the dtype of the yardstick's, or `dtype` where those have float32. Integers are equal. Floats are as far
    off as `allowed_by_yardstick` says at most, from the worst array that the yardstick has of the same dtype: one array
    alone may be right by luck. Of the trees named in `stacked` each layer is looked at by itself.

    Raises: AssertionError "who, leaf, layer i: observed ..., allowed ...".
    """
    actual, exact, yardstick = (
        tree if isinstance(tree, dict) else tree._asdict() for tree in (actual, exact, yardstick)
    )
    for name in actual.keys() | exact.keys():
        shapes = [_structure(tree.get(name)) for tree in (actual, exact)]
        assert shapes[0] == shapes[1], f"{who}, {name}: observed {shapes[0]}, allowed {shapes[1]}"
    found = [[pair for name in exact for pair in leaves(name, tree[name])] for tree in (actual, exact, yardstick)]
    rows = [(at, got, np.asarray(a), np.asarray(b)) for (at, got), (_, a), (_, b) in zip(*found, strict=True)]

    worst_ulps: dict[np.dtype, float] = defaultdict(float)  # dtype -> those of the yardstick
    for _, _, want, near in rows:
        if _is_float(near):
            worst_ulps[near.dtype] = max(worst_ulps[near.dtype], ulps(want, near))
    for where, got, want, near in rows:
        at = f"{who}, {where}"
        expected = dtype if dtype and near.dtype == np.float32 else near.dtype
        assert isinstance(got, np.ndarray), f"{at}: observed a {type(got).__name__}, allowed a numpy.ndarray"
        assert got.dtype == expected, f"{at}: observed dtype {got.dtype}, allowed {expected}"
        assert got.shape == want.shape, f"{at}: observed shape {got.shape}, allowed {want.shape}"
        allowed = allowed_by_yardstick(want, worst_ulps[near.dtype], got.dtype.name) if _is_float(near) else 0.0
        error = abs(got.astype(np.float64) - want)
        by_layer = where.partition("[")[0] in stacked
        for i, part in enumerate(error if by_layer else [error]):
            worst = part.max(initial=0.0)
            layer = f", layer {i}" if by_layer else ""
            # so written that NaN fails
            assert worst <= allowed, f"{at}{layer}: observed an error of {worst:.3g}, allowed {allowed:.3g}"


def _is_float(array):
    return array.dtype.kind not in "biu"


def _structure(tree):
    """Nested dicts, tuples, lists and None, with a star for each array."""
    if isinstance(tree, dict):
        return {key: _structure(tree[key]) for key in sorted(tree)}
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(_structure, tree))
    return None if tree is None else "*"
