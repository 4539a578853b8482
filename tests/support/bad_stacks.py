"""What a stack refuses: bad arguments, options, layers, tangents and axes, each with its exception and its words."""

from __future__ import annotations

from typing import Any

import numpy as np

ANY_ARRAY = "expected an array of this framework (from_numpy makes one)"
X = np.ones(3, np.float32)
W = np.ones((2, 3), np.float32)  # [N, d]


class AsIs:
    """A leaf that stays what it is, where NumPy arrays become the framework's."""

    def __init__(self, value):
        self.value = value


# what -> (arguments, exception, message); the layer is never called
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "leading axes differ": (
        {"stacked_params": {"w": W, "b": W[:1]}},
        ValueError,
        "stacked_params['w']: expected a leading axis of 1 (that of stacked_params['b']), got 2",
    ),
    "leading axes differ, deep down": (
        {"stacked_params": {"a": [W, (None, W)], "b": {"c": np.ones((3, 1), np.float32)}}},
        ValueError,
        "stacked_params['b']['c']: expected a leading axis of 2 (that of stacked_params['a'][0]), got 3",
    ),
    "no layers in one": (
        {"stacked_params": (W, W[:0])},
        ValueError,
        "stacked_params[1]: expected a leading axis of 2 (that of stacked_params[0]), got 0",
    ),
    "xs long": (
        {"stacked_params": W, "xs": [np.ones(3, np.float32)]},
        ValueError,
        "xs[0]: expected a leading axis of 2 (that of stacked_params), got 3",
    ),
    "xs of one, which would broadcast": (
        {"stacked_params": W, "xs": np.ones((1, 3), np.float32)},
        ValueError,
        "xs: expected a leading axis of 2 (that of stacked_params), got 1",
    ),
    "params 0-d": (
        {"stacked_params": {"w": W, "z": np.array(1, np.float32)}},
        ValueError,
        "stacked_params['z']: expected a leading axis of layers, got shape ()",
    ),
    "xs 0-d": (
        {"stacked_params": W, "xs": np.array(1, np.int32)},
        ValueError,
        "xs: expected a leading axis of layers, got shape ()",
    ),
    "no params": ({"stacked_params": None}, ValueError, "stacked_params: expected at least one array, got none"),
    "no arrays": (
        {"stacked_params": {"a": (), "b": [None]}},
        ValueError,
        "stacked_params: expected at least one array, got none",
    ),
    "a float for params": ({"stacked_params": {"w": 1.0}}, TypeError, f"stacked_params['w']: {ANY_ARRAY}, got float"),
    "a list of floats": ({"stacked_params": [1.0, 2.0]}, TypeError, f"stacked_params[0]: {ANY_ARRAY}, got float"),
    "text": ({"stacked_params": {"w": W, "x": "w"}}, TypeError, f"stacked_params['x']: {ANY_ARRAY}, got str"),
    "a NumPy array": (
        {"stacked_params": {"w": AsIs(W)}},
        TypeError,
        f"stacked_params['w']: {ANY_ARRAY}, got numpy.ndarray",
    ),
    "a NumPy array as xs": ({"xs": AsIs(W)}, TypeError, f"xs: {ANY_ARRAY}, got numpy.ndarray"),
    "a float for init": ({"init": 1.0}, TypeError, f"init: {ANY_ARRAY}, got float"),
    "an int in init": ({"init": (X, {"n": 0})}, TypeError, f"init[1]['n']: {ANY_ARRAY}, got int"),
    "reverse 1": ({"reverse": 1}, TypeError, "reverse: expected a bool, got 1"),
    "reverse None": ({"reverse": None}, TypeError, "reverse: expected a bool, got None"),
}
UNROLL, REMAT = "unroll: expected an int of at least 1", "remat: expected False, True or an int of at least 1"
OPTIONS: dict[str, tuple[Any, ...]] = {
    "unroll 0": ({"unroll": 0}, ValueError, f"{UNROLL}, got 0"),
    "unroll -1": ({"unroll": -1}, ValueError, f"{UNROLL}, got -1"),
    "unroll True": ({"unroll": True}, TypeError, f"{UNROLL}, got True"),
    "unroll 2.0": ({"unroll": 2.0}, TypeError, f"{UNROLL}, got 2.0"),
    "unroll None": ({"unroll": None}, TypeError, f"{UNROLL}, got None"),
    "remat 0": ({"remat": 0}, ValueError, f"{REMAT}, got 0"),
    "remat -2": ({"remat": -2}, ValueError, f"{REMAT}, got -2"),
    "remat 1.5": ({"remat": 1.5}, TypeError, f"{REMAT}, got 1.5"),
    "remat None": ({"remat": None}, TypeError, f"{REMAT}, got None"),
    "remat text": ({"remat": "full"}, TypeError, f"{REMAT}, got 'full'"),
}
PAIR = "layer: expected a pair (new_carry, y), got"
# what -> (init, the layer for o, exception, message)
LAYERS: dict[str, tuple[Any, ...]] = {
    "an array": (X, lambda o: lambda c, p: c, TypeError, f"{PAIR} float32[3]"),
    "an array of two": (X[:2], lambda o: lambda c, p: c, TypeError, f"{PAIR} float32[2]"),
    "a list": (X, lambda o: lambda c, p: [c, None], TypeError, f"{PAIR} [float32[3], None]"),
    "three": (
        X,
        lambda o: lambda c, p: (c, None, {"n": p}),
        TypeError,
        f"{PAIR} (float32[3], None, {{'n': float32[3]}})",
    ),
    "one": (X, lambda o: lambda c, p: (c,), TypeError, f"{PAIR} (float32[3],)"),
    "nothing": (X, lambda o: lambda c, p: None, TypeError, f"{PAIR} None"),
    "a carry of another shape": (
        X[:1],  # added to p, it broadcasts
        lambda o: lambda c, p: (c + p, None),
        ValueError,
        "carry: expected float32[1] (that of init), got float32[3]",
    ),
    "a carry of another rank": (
        {"h": X},
        lambda o: lambda c, p: ({"h": o.sum(c["h"] * p)}, None),
        ValueError,
        "carry['h']: expected float32[3] (that of init), got float32[]",
    ),
    "a carry of fewer bits": (
        (X, X),
        lambda o: lambda c, p: ((c[0], o.cast(c[1], "bfloat16")), None),
        TypeError,
        "carry[1]: expected float32[3] (that of init), got bfloat16[3]",
    ),
    "a carry of more bits": (
        X,
        lambda o: lambda c, p: (o.cast(c, "float64"), None),
        TypeError,
        "carry: expected float32[3] (that of init), got float64[3]",
    ),
    "a carry with another key": (
        {"h": X},
        lambda o: lambda c, p: ({"h": c["h"], "extra": p}, None),
        TypeError,
        "carry['extra']: expected no array (that of init), got float32[3]",
    ),
    "a carry without a key": (
        {"g": X, "h": X},
        lambda o: lambda c, p: ({"h": c["h"]}, None),
        TypeError,
        "carry['g']: expected float32[3] (that of init), got no array",
    ),
    "a list for a tuple": (
        (X,),
        lambda o: lambda c, p: ([c[0]], None),
        TypeError,
        "carry: expected (*,) (that of init), got [*]",
    ),
    "None for nothing": (
        {"h": X, "none": None},
        lambda o: lambda c, p: ({"h": c["h"]}, None),
        TypeError,
        "carry: expected {'h': *, 'none': None} (that of init), got {'h': *}",
    ),
    "a float as carry": (X, lambda o: lambda c, p: (1.0, None), TypeError, f"carry: {ANY_ARRAY}, got float"),
    "a float as y": (X, lambda o: lambda c, p: (c, {"s": 1.0}), TypeError, f"y['s']: {ANY_ARRAY}, got float"),
    "text as y": (X, lambda o: lambda c, p: (c, "y"), TypeError, f"y: {ANY_ARRAY}, got str"),
}


# what -> (function, arguments, exception, message)
TRANSFORMS: dict[str, tuple[Any, ...]] = {
    "cotangents, an array": (
        "vjp_layers",
        {"cotangents": X},
        TypeError,
        "cotangents: expected a tuple of carry, ys, got float32[3]",
    ),
    "cotangents of one": (
        "vjp_layers",
        {"cotangents": (X,)},
        TypeError,
        "cotangents: expected a tuple of carry, ys, got (float32[3],)",
    ),
    "cotangents, a list": (
        "vjp_layers",
        {"cotangents": [X, None]},
        TypeError,
        "cotangents: expected a tuple of carry, ys, got [float32[3], None]",
    ),
    "cotangents of another shape": (
        "vjp_layers",
        {"cotangents": (X[:1], None)},
        ValueError,
        "cotangents[0]: expected float32[3] (that of carry), got float32[1]",
    ),
    "cotangents of another dtype": (
        "vjp_layers",
        {"cotangents": (X.astype(np.float64), None)},
        TypeError,
        "cotangents[0]: expected float32[3] (that of carry), got float64[3]",
    ),
    "cotangents, a float": (
        "vjp_layers",
        {"cotangents": (1.0, None)},
        TypeError,
        f"cotangents[0]: {ANY_ARRAY}, got float",
    ),
    "a cotangent where there is no y": (
        "vjp_layers",
        {"cotangents": (X, W)},
        TypeError,
        "cotangents[1]: expected no array (that of ys), got float32[2, 3]",
    ),
    "tangents of two": (
        "jvp_layers",
        {"tangents": (W, X)},
        TypeError,
        "tangents: expected a tuple of stacked_params, init, xs, got (float32[2, 3], float32[3])",
    ),
    "tangents of another depth": (
        "jvp_layers",
        {"tangents": (W[:1], X, None)},
        ValueError,
        "tangents[0]: expected float32[2, 3] (that of stacked_params), got float32[1, 3]",
    ),
    "tangents, hvp": (
        "hvp_layers",
        {"tangents": (W, {"h": X}, None)},
        TypeError,
        "tangents[1]: expected float32[3] (that of init), got no array",
    ),
    "in_axes, an int": (
        "vmap_layers",
        {"in_axes": 0},
        TypeError,
        "in_axes: expected an axis or None for each of stacked_params, init, xs, got 0",
    ),
    "in_axes of two": (
        "vmap_layers",
        {"in_axes": (0, None)},
        TypeError,
        "in_axes: expected an axis or None for each of stacked_params, init, xs, got (0, None)",
    ),
    "in_axes of bools": (
        "vmap_layers",
        {"in_axes": (False, True, None)},
        TypeError,
        "in_axes: expected an axis or None for each of stacked_params, init, xs, got (False, True, None)",
    ),
    "in_axes of None": (
        "vmap_layers",
        {"in_axes": (None, None, None)},
        ValueError,
        "in_axes: expected at least one axis, got (None, None, None)",
    ),
    "in_axes beyond": (
        "vmap_layers",
        {"in_axes": (None, 1, None)},
        ValueError,
        "init: expected a batch along axis 1, got shape (3,)",
    ),
    "batches differ": (
        "vmap_layers",
        {"in_axes": (0, 0, None)},
        ValueError,
        "init: expected a batch of 2 along axis 0 (that of stacked_params), got shape (3,)",
    ),
    "batches differ, cotangents": (
        "vmap_vjp_layers",
        {"init": np.ones((4, 3), np.float32), "cotangents": (W, None)},
        ValueError,
        "cotangents[0]: expected a batch of 4 along axis 0 (that of init), got shape (2, 3)",
    ),
    "batches differ, gradients": (
        "vmap_vjp_layers",
        {"in_axes": (0, 0, None), "cotangents": (X, None)},
        ValueError,
        "init: expected a batch of 2 along axis 0 (that of stacked_params), got shape (3,)",
    ),
}
