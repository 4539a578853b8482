"""One language for layers: the few operations that tests need, by the same names in NumPy and in each framework.

A layer is written once, as `def make(o): return lambda carry, params: ...`, with o one of these namespaces. In NumPy it
also takes complex numbers: so it is its own derivative, by complex step. Frameworks are imported when asked for.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16
import numpy as np

from implementations import load
from reference.stack import run_layers, tree_map


@functools.cache
def layer_of(make, name):
    """The layer that `make` makes of the namespace `name`: one object, so that it is compiled once."""
    return make(ops(name))


@functools.cache
def ops(name):
    """That of NumPy, of NumPy in float64 throughout ("exact"), or of a framework folder, with its stack."""
    if name in ("numpy", "exact"):
        return {"numpy": _numpy, "exact": _exact}[name]()
    return ops_of(load(name))


def ops_of(implementation):
    """Of an implementation, with its stack as `scan`."""
    return SimpleNamespace(**implementation.OPS, scan=implementation.scan_layers, gated=implementation.gated)


def _exact():
    """NumPy in float64 throughout: a cast to fewer bits rounds nothing."""
    wide = SimpleNamespace(**vars(ops("numpy")))
    wide.cast = lambda array, dtype: array.astype(np.result_type(array, np.float64))
    return wide


def _numpy():
    def cast(array, dtype):
        # what NumPy has no complex numbers of keeps those it has
        as_complex = {"float32": "complex64", "float64": "complex128"}.get(dtype, np.asarray(array).dtype)
        return np.asarray(array).astype(as_complex if np.iscomplexobj(array) else dtype)

    def softmax(array):
        e = np.exp(array - np.real(array).max())
        return e / e.sum()

    return SimpleNamespace(
        tanh=np.tanh,
        exp=np.exp,
        sigmoid=lambda a: 1 / (1 + np.exp(-a)),
        softmax=softmax,
        matvec=lambda w, a: w @ a,
        sum=np.sum,
        cast=cast,
        like=lambda a, b: a.astype(b.dtype),  # `a` in the dtype of b
        shared=lambda a, N: np.broadcast_to(a, (N, *a.shape)),  # one parameter as that of each of N layers
        scan=run_layers,
        gated=_gated,
    )


def _gated(layer):
    def step(carry, params, gate):
        new, y = layer(carry, params)
        return gate * new + (1 - gate) * carry, y

    return step


# Trees of arrays.


def flat(tree):
    """Its arrays, in order."""
    arrays: list[Any] = []
    tree_map(arrays.append, tree)
    return arrays


def with_arrays(tree, arrays):
    """A tree like `tree` of these arrays."""
    arrays = iter(arrays)
    return tree_map(lambda _: next(arrays), tree)


def from_numpy(implementation, tree):
    return tree_map(lambda array: implementation.from_numpy(np.asarray(array)), tree)


def to_numpy(implementation, tree):
    return tree_map(implementation.to_numpy, tree)


# Ordinary reverse mode, from outside.


def pullback(implementation, function, inputs, cotangents, *, compiled=False, wanted=None):
    """(outputs, gradients) of `function(*inputs)`, by what the framework's users call, for trees of NumPy arrays.

    cotangents: a tree like the outputs; gradients: a tree like `inputs`. Both are None where the array is an integer;
    gradients also where `wanted`, the indices of what is not frozen among the inputs, says so.
    """
    inputs, cotangents = from_numpy(implementation, inputs), from_numpy(implementation, cotangents)
    wanted = range(len(inputs)) if wanted is None else wanted

    def of_wanted(*trees):
        given = dict(zip(wanted, trees, strict=True))
        return function(*(given.get(i, tree) for i, tree in enumerate(inputs)))

    run = (implementation.compile_gradient if compiled else implementation.gradient)(of_wanted)
    outputs, *gradients = run(*(inputs[i] for i in wanted), cotangents)
    found = dict(zip(wanted, gradients, strict=True))
    nothing = [found.get(i, tree_map(lambda _: None, tree)) for i, tree in enumerate(inputs)]
    return to_numpy(implementation, outputs), to_numpy(implementation, type(inputs)(nothing))
