"""Is a tree of results right? Structure, type, dtype, shape, then values: each array, and each layer, on its own.

One comparison, and three ways to know how far off a number may be: `assert_trees` knows it from NumPy's own error,
`assert_case` from the derived bound of the dense stack, `assert_close` is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from implementations.interface import Implementation
from reference.arguments import leaves
from reference.cases import Case
from reference.error_bound import MAX_RATIO, allowed_by_yardstick, sharp_sd, ulps
from reference.stack import oracle

STACKED = ("ys", "dparams", "dxs")  # one slice a layer
LEAVES = ("y", "dweights", "dx")


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
    worst: dict[np.dtype, float] = defaultdict(float)  # dtype -> ulps of the yardstick
    pairs = [[np.asarray(array) for _, array in leaves("", tree)] for tree in (exact, yardstick)]
    for want, near in zip(*pairs, strict=True):
        if _is_float(near):
            worst[near.dtype] = max(worst[near.dtype], ulps(want, near))

    def allowed(want, near):
        kind = dtype if dtype and near.dtype == np.float32 else near.dtype
        return kind, allowed_by_yardstick(want, worst[near.dtype], np.dtype(kind).name) if _is_float(near) else 0.0

    _assert_within(who, actual, exact, yardstick, allowed, stacked)


def assert_case(who: str, case: Case, results: Any) -> None:
    """`results` are (y, dweights, dx) of `case`, as NumPy arrays: equal where the case is exact, else in bound."""
    dtype, limit = case.x.dtype, 0.0 if case.exact else MAX_RATIO
    where = f"{who}, {case.name}, {dtype}"
    assert isinstance(results, tuple), f"{where}: observed a {type(results).__name__}, allowed a tuple"
    assert len(results) == len(LEAVES), f"{where}: observed {len(results)} results, allowed {len(LEAVES)}"
    all_three = results, oracle(*case.inputs), sharp_sd(*case.inputs, dtype.name)
    actual, exact, sd = (dict(zip(LEAVES, arrays, strict=True)) for arrays in all_three)
    _assert_within(where, actual, exact, sd, lambda _, sd: (dtype, limit * sd), stacked=("dweights",))


def assert_close(who: str, actual: Any, exact: Any, relative: float = 1e-13) -> None:
    """Trees of NumPy arrays, of the same dtypes: each number within `relative` of the largest in its array."""

    def allowed(want, _):
        return want.dtype, relative * abs(want.astype(np.float64)).max(initial=0.0)

    _assert_within(who, {"result": actual}, {"result": exact}, {"result": exact}, allowed, stacked=())


def _assert_within(who, actual, exact, known, allowed, stacked):
    """Dicts of trees; `allowed(exact, known)` of two arrays is a dtype, and the error of each number or of all."""
    for name in actual.keys() | exact.keys():
        shapes = [_structure(tree.get(name)) for tree in (actual, exact)]
        assert shapes[0] == shapes[1], f"{who}, {name}: observed {shapes[0]}, allowed {shapes[1]}"
    found = [[pair for name in exact for pair in leaves(name, tree[name])] for tree in (actual, exact, known)]
    for (where, got), (_, want), (_, near) in zip(*found, strict=True):
        at, want = f"{who}, {where}", np.asarray(want)
        dtype, limit = allowed(want, np.asarray(near))
        assert isinstance(got, np.ndarray), f"{at}: observed a {type(got).__name__}, allowed a numpy.ndarray"
        assert got.dtype == dtype, f"{at}: observed dtype {got.dtype}, allowed {dtype}"
        assert got.shape == want.shape, f"{at}: observed shape {got.shape}, allowed {want.shape}"
        error, limit = np.broadcast_arrays(abs(got.astype(np.float64) - want.astype(np.float64)), limit)
        by_layer = where.partition("[")[0] in stacked
        for i, (part, most) in enumerate(zip(error, limit, strict=True) if by_layer else [(error, limit)]):
            wrong = ~(part <= most)  # so written that NaN is wrong
            layer = f", layer {i}" if by_layer else ""
            assert not wrong.any(), (
                f"{at}{layer}: observed an error of {part[wrong].max():.3g}, allowed {most[wrong].min():.3g}"
            )


def gradient(implementation: Implementation, apply: Callable[..., Any], case: Case) -> tuple[np.ndarray, ...]:
    """(y, dweights, dx) of `apply` by the framework's ordinary reverse mode, from and to NumPy."""
    results = implementation.gradient(apply)(*map(implementation.from_numpy, case.inputs))
    return tuple(map(implementation.to_numpy, results))


def _is_float(array):
    return array.dtype.kind not in "biu"


def _structure(tree):
    """Nested dicts, tuples, lists and None, with a star for each array."""
    if isinstance(tree, dict):
        return {key: _structure(tree[key]) for key in sorted(tree)}
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(_structure, tree))
    return None if tree is None else "*"
