"""Stacks of an implementation run on the problems of `implementations/check/problems.py`, with every option."""

from __future__ import annotations

import random
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from implementations.check.comparator import assert_trees
from implementations.check.dialect import layer_of, pullback
from implementations.check.problems import Results, exact_and_yardstick, problem, right
from reference.stack import tree_map

# Options of a stack, so chosen that any two values of two different options meet in some row.


class Options(NamedTuple):
    N: int
    reverse: bool
    unroll: int
    remat: bool | int
    dtype: str

    def __str__(self):
        return "-".join(f"{name}={value}" for name, value in self._asdict().items())

    @property
    def keywords(self):
        return {"reverse": self.reverse, "unroll": self.unroll, "remat": self.remat}


# 2 and 3 divide some depths and not others, and are more layers than the shallowest have.
VALUES = {
    "N": (0, 1, 2, 6, 7),
    "reverse": (False, True),
    "unroll": (1, 2, 3),
    "remat": (False, True, 3),
    "dtype": ("float32", "float64"),
}


def pairs(row):
    return set(combinations(enumerate(row), 2))


def _rows():
    """Greedily: each row is the first of those that bring the most new pairs."""
    everything = list(product(*VALUES.values()))
    random.Random(0).shuffle(everything)  # so that what is left to choose varies too
    missing = set().union(*map(pairs, everything))
    while missing:
        row = max(everything, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(row)
        yield Options._make(row)


ROWS = tuple(_rows())


# A stack of an implementation, run on NumPy trees and held against what is right.


def run(implementation, problem, *, form="scan_layers", compiled=False, wanted=None, **options):
    """Results of the stack and of ordinary reverse mode around it."""
    layer = layer_of(problem.make, implementation.__name__)
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


def assert_program(implementation, make, inputs, *, compiled):
    """A function of several stacks, `make(o)(*inputs)`, comes out right, and so does its gradient."""
    outputs = layer_of(make, "numpy")(*inputs)
    cotangents = tree_map(lambda a: np.linspace(1, 2, a.size).astype(a.dtype).reshape(a.shape), outputs)

    def of(program, inputs):
        return program(*inputs)

    expected = exact_and_yardstick(make, of, inputs, cotangents)
    exact, yardstick = ({"outputs": outputs, "gradients": gradients} for outputs, gradients in expected)
    program = layer_of(make, implementation.__name__)
    outputs, gradients = pullback(implementation, program, inputs, cotangents, compiled=compiled)
    actual = {"outputs": outputs, "gradients": gradients}
    assert_trees(f"{implementation.__name__}, {make.__name__}", actual, exact, yardstick)
