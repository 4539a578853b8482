"""Layers that have what layers can have, their inputs, and what is right for them.

What is right is NumPy, and complex steps through it. Each problem is small, seeded, and built so that a layer in the
wrong place changes every number after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from implementations.check.dialect import flat, layer_of, with_arrays
from reference.stack import run_layers, tree_map

D = 3


# Layers. `make(o)` gives the layer, o a namespace of implementations/check/dialect.py.


def make_cell(o):
    """Nested trees everywhere, None and integers among them: h [d] and a count, two kinds of y."""

    def cell(carry, params, x):
        h, count = carry["h"], carry["count"]
        new = o.tanh(o.matvec(params["w"], h) + params["rest"][0] + x[0]) * o.like(params["k"], h) * 0.5
        return {"h": new, "count": count * 2 + params["k"]}, {"out": (h * x[0], count), "none": None, "sum": o.sum(new)}

    return cell


def cell_vjp(carry, params, x, dcarry, dy):
    """The derivative of `cell`, by hand, in NumPy."""
    h, k = carry["h"], params["k"].astype(carry["h"].dtype) * 0.5
    t = np.tanh(params["w"] @ h + params["rest"][0] + x[0])
    dnew = dcarry["h"] + dy["sum"]  # [d]
    da = dnew * k * (1 - t**2)
    dparams = {"w": np.outer(da, h), "rest": [da, None], "k": None}
    return {"h": params["w"].T @ da + dy["out"][0] * x[0], "count": None}, dparams, (da + dy["out"][0] * h,)


def make_mixed(o):
    """A tuple of two dtypes for a carry, a third dtype for y; no xs."""

    def mixed(carry, params):
        h, total = carry
        new = o.tanh(o.matvec(params, h))
        return (new, total * 0.5 + o.cast(o.sum(new), "float64")), o.cast(new, "bfloat16")

    return mixed


def make_passing(o):
    """What frameworks take for aliases: a carry and slices handed on as they are, one array as carry and as y."""

    def passing(carry, params, x):
        new = o.matvec(params["w"], carry["h"]) * 0.5
        return {"kept": carry["kept"], "h": new, "x": x}, (new, carry["kept"], x, params["w"], new)

    return passing


def _make_activation(name):
    return lambda o: lambda carry, w: (getattr(o, name)(o.matvec(w, carry)), None)


# Layers whose new carry is what the activation returns: what a framework keeps for the derivative is the carry itself.
ACTIVATIONS = {name: _make_activation(name) for name in ("tanh", "sigmoid", "exp", "softmax")}


def make_activations(o):
    """All of them side by side."""

    def activations(carry, w):
        return {name: ACTIVATIONS[name](o)(carry[name], w)[0] for name in ACTIVATIONS}, None

    return activations


def make_nested(o):
    """A layer that is a stack."""

    def inner(carry, w):
        new = o.tanh(o.matvec(w, carry))
        return new, o.sum(new)

    def nested(carry, params):
        carry, sums = o.scan(inner, params["layers"], carry)
        return o.tanh(o.matvec(params["w"], carry)), sums

    return nested


# Programs: several stacks in one function.


def make_twice(o):
    """The same stack on its own result."""
    layer = ACTIVATIONS["tanh"](o)

    def twice(weights, x):
        once, _ = o.scan(layer, weights, x)
        return o.scan(layer, weights, once)[0], once

    return twice


def make_chained(o):
    """Two stacks, of other layers and depths, and one backwards."""
    first, second = ACTIVATIONS["tanh"](o), ACTIVATIONS["sigmoid"](o)

    def chained(weights, more_weights, x):
        middle, _ = o.scan(first, weights, x)
        return o.scan(second, more_weights, middle, reverse=True)[0]

    return chained


def make_shared(o):
    """One parameter of all layers, in a stack that runs three times: its gradient is a sum over all of these."""

    def layer(carry, params):
        return o.tanh(o.matvec(params["w"], carry) + params["shared"] * carry), None

    def shared(weights, shared, x):
        params = {"w": weights, "shared": o.shared(shared, weights.shape[0])}
        for _ in range(3):
            x, _ = o.scan(layer, params, x)
        return x

    return shared


# Problems.


class Problem(NamedTuple):
    name: str
    make: Callable[..., Any]
    inputs: tuple[Any, Any, Any]  # stacked_params, init, xs
    cotangents: tuple[Any, Any]  # of carry and ys; None for integers


@functools.cache
def problem(name, N, dtype="float32"):
    """The problem `name` with N layers. The same numbers in each dtype, so that what is right is the same too."""
    rng = np.random.default_rng([N, *name.encode()])

    def draw(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights = draw(N, D, D, scale=D**-0.5)
    make, inputs = {
        "cell": lambda: (make_cell, _cell_inputs(rng, draw, weights)),
        "mixed": lambda: (make_mixed, (weights, (draw(D), draw().astype(np.float64)), None)),
        "passing": lambda: (make_passing, ({"w": weights}, {"kept": draw(2), "h": draw(D), "x": draw()}, draw(N))),
        "activations": lambda: (make_activations, (weights, {name: draw(D) for name in ACTIVATIONS}, None)),
        "nested": lambda: (make_nested, ({"layers": draw(N, 2, D, D), "w": weights}, draw(D), None)),
    }[name]()
    like = run_layers(layer_of(make, "numpy"), *inputs)
    cotangents = tree_map(lambda a: draw(*np.shape(a)).astype(a.dtype) if is_float(a) else None, like)
    if dtype == "float64":
        inputs, cotangents = (tree_map(as_float64, tree) for tree in (inputs, cotangents))
    return Problem(name, make, inputs, cotangents)


class Program(NamedTuple):
    make: Callable[..., Any]
    inputs: tuple[Any, ...]


def _program(make, seed, *shapes):
    rng = np.random.default_rng(seed)
    return Program(make, tuple(rng.standard_normal(shape).astype(np.float32) * 0.7 for shape in shapes))


PROGRAMS = {
    "twice": _program(make_twice, 0, (4, D, D), (D,)),
    "chained": _program(make_chained, 1, (4, D, D), (3, D, D), (D,)),
    "shared": _program(make_shared, 2, (4, D, D), (D,), (D,)),
}


def _cell_inputs(rng, draw, weights):
    N = len(weights)
    # small enough for tanh to keep its slope: a layer that saturates forgets what the layers before it did
    params = {"w": weights, "rest": [draw(N, D, scale=0.3), None], "k": rng.integers(1, 4, N).astype(np.int32)}
    return params, {"h": draw(D), "count": np.array(1, np.int32)}, (draw(N, D, scale=0.3),)


class Results(NamedTuple):
    """What a stack returns and what its derivative is, each a tree."""

    carry: Any
    ys: Any
    dparams: Any
    dinit: Any
    dxs: Any


@functools.cache
def right(name, N, reverse=False):
    """Results in float64, and those of NumPy in float32 or whatever the layer makes of it: oracle and yardstick."""
    make, inputs, cotangents = problem(name, N)[1:]

    def of(layer, inputs):
        params, init, xs = inputs
        return run_layers(layer, params, init, xs, reverse)

    return tuple(
        Results(*outputs, *gradients) for outputs, gradients in exact_and_yardstick(make, of, inputs, cotangents)
    )


def exact_and_yardstick(make, of, inputs, cotangents):
    """(outputs, gradients) of `of(made, inputs)`, in float64, then as NumPy makes them in the dtypes of `inputs`."""
    for namespace, as_dtype in (("exact", as_float64), ("numpy", np.asarray)):
        function = partial(of, layer_of(make, namespace))
        start = tree_map(as_dtype, inputs)
        yield function(start), complex_step_gradient(function, start, cotangents)


STEP = 2.0**-50  # of the complex step: its square is below the last bit of float64, and normal in float32


def complex_step_gradient(function, inputs, cotangents):
    """The derivative of <cotangents, function(inputs)> by each floating-point number in inputs, one after the other."""
    arrays = [as_complex(array) for array in flat(inputs)]
    cotangents = [ct.astype(np.float64) for ct in flat(cotangents)]
    gradients: list[Any] = [
        None if array.dtype.kind != "c" else np.zeros(array.shape, array.real.dtype) for array in arrays
    ]
    for k, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape) if gradient is not None else ():
            stepped = [array.copy() if j == k else array for j, array in enumerate(arrays)]
            stepped[k][index] += STEP * 1j
            outputs = [a for a in flat(function(with_arrays(inputs, stepped))) if a.dtype.kind == "c"]
            pairs = zip(outputs, cotangents, strict=True)
            gradient[index] = sum(np.vdot(ct, output.astype(complex)).imag for output, ct in pairs) / STEP
    return with_arrays(inputs, gradients)


def is_float(array):
    return np.asarray(array).dtype.kind not in "biu"


def as_float64(array):
    return np.asarray(array).astype(np.float64) if is_float(array) else array


def as_complex(array):
    array = np.asarray(array)
    return array.astype(np.result_type(array, np.complex64)) if is_float(array) else array
