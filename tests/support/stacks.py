"""Run a stack of an implementation on NumPy trees, and hold what comes back against the reference."""

from __future__ import annotations

from functools import partial

import numpy as np

from reference.stack import tree_map
from tests.support.dialect import layer_of, pullback
from tests.support.problems import Results, exact_and_yardstick, problem, right
from tests.support.trees import assert_trees


def run(implementation, problem, *, form="scan_layers", compiled=False, use="", wanted=None, **options):
    """Results of the stack and of ordinary reverse mode around it; `use` tells programs of one layer apart."""
    layer = layer_of(problem.make, implementation.__name__, use)
    stack = partial(getattr(implementation, form), layer, **options)
    outputs, gradients = pullback(
        implementation, stack, problem.inputs, problem.cotangents, compiled=compiled, wanted=wanted
    )
    return Results(*outputs, *gradients)


def assert_right(implementation, name, N, *, dtype="float32", **how):
    """The problem `name` comes out right, values and gradients, run as `how` says: see `run`."""
    actual = run(implementation, problem(name, N, dtype), **how)
    who = ", ".join([implementation.__name__, name, f"N={N}", dtype, *(f"{key}={value}" for key, value in how.items())])
    assert_trees(who, actual, *right(name, N, how.get("reverse", False)), dtype=dtype if dtype == "float64" else None)


def assert_program(implementation, make, inputs, *, compiled, use=""):
    """A function of several stacks, `make(o)(*inputs)`, comes out right, and so does its gradient."""
    outputs = layer_of(make, "numpy")(*inputs)
    cotangents = tree_map(lambda a: np.linspace(1, 2, a.size).astype(a.dtype).reshape(a.shape), outputs)

    def of(program, inputs):
        return program(*inputs)

    expected = exact_and_yardstick(make, of, inputs, cotangents)
    exact, yardstick = ({"outputs": outputs, "gradients": gradients} for outputs, gradients in expected)
    program = layer_of(make, implementation.__name__, use)
    outputs, gradients = pullback(implementation, program, inputs, cotangents, compiled=compiled)
    actual = {"outputs": outputs, "gradients": gradients}
    assert_trees(f"{implementation.__name__}, {make.__name__}", actual, exact, yardstick)
