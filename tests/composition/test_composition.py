"""Stacks in programs: in each other, one after the other, the same one again, with what they share and what is frozen.

In torch by Inductor: most defects of its scan operator are in what Inductor makes of a gradient.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import flat, pullback
from implementations.check.problems import ACTIVATIONS, PROGRAMS, problem, right
from tests.support.problems import assert_program, assert_right, run

quick = pytest.mark.torch_backend("eager")
covers = pytest.mark.covers


@quick
def test_a_stack_that_is_used_twice_by_hand(implementation):
    """Layers of 2 and 3 make 6 of 1, and 36 of 6: the gradient of w0^2 w1^2 is (2 w0 w1^2, 2 w0^2 w1)."""

    def twice(w, x):
        once, _ = implementation.scan_layers(times, w, x)
        return implementation.scan_layers(times, w, once)[0]

    y, (dw, dx) = pullback(implementation, twice, (np.array([2.0, 3.0]), np.array(1.0)), np.array(1.0))
    assert (y, dw.tolist(), dx) == (36, [36, 24], 36)


def times(carry, w):
    return carry * w, None


@covers("a stack used several times in one program", "a parameter shared by all layers")
@covers("called inside the user's compiled function")
@pytest.mark.parametrize(
    "name",  # "shared" is "twice" with more in it
    ["shared", *(pytest.param(name, marks=pytest.mark.thorough("torch_compile")) for name in ("twice", "chained"))],
)
def test_several_stacks_in_one_program(implementation, name):
    assert_program(implementation, *PROGRAMS[name], compiled=True)


@quick
@pytest.mark.parametrize("name", PROGRAMS)
def test_several_stacks_called_as_they_stand(implementation, name):
    assert_program(implementation, *PROGRAMS[name], compiled=False)


@quick
@covers("a closed-over value gets its gradient")
def test_a_closed_over_value_gets_its_gradient(implementation):
    assert_program(implementation, make_closed_over, PROGRAMS["shared"].inputs, compiled=False)


def make_closed_over(o):
    def closed_over(weights, b, x):
        return o.scan(lambda carry, w: (o.tanh(o.matvec(w, carry) + b), None), weights, x)[0]

    return closed_over


@covers("a stack in a stack")
def test_a_stack_in_a_stack(implementation):
    assert_right(implementation, "nested", 4, compiled=True)


@quick
@pytest.mark.parametrize(
    "options",
    [{"remat": 3}, pytest.param({"reverse": True, "unroll": 3}, marks=pytest.mark.thorough("torch_compile"))],
    ids=str,
)
def test_a_stack_in_a_stack_called_as_it_stands(implementation, options):
    assert_right(implementation, "nested", 4, **options)


@covers("layers that end in tanh, sigmoid, exp, softmax", "gradient of a compiled stack")
def test_activations_train_together(implementation):
    """What a framework keeps of tanh, sigmoid, exp or softmax is what they return: the new carry."""
    assert_right(implementation, "activations", 3, compiled=True)


@quick
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_trains(implementation, name):
    params, init, _ = problem("activations", 3).inputs
    assert_program(implementation, stack_of(ACTIVATIONS[name]), (params, init[name]), compiled=True)


@functools.cache
def stack_of(make):
    return lambda o: lambda weights, x: o.scan(make(o), weights, x)[0]


@quick
@covers("frozen parameters, frozen carry")
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_frozen_has_no_gradient_and_the_rest_is_right(implementation, wanted, compiled):
    actual = run(implementation, problem("cell", 5), compiled=compiled, wanted=wanted)
    inputs = ("dparams", "dinit", "dxs")
    expected = [
        results._replace(**{name: None for i, name in enumerate(inputs) if i not in wanted})
        for results in right("cell", 5)
    ]
    for i, name in enumerate(inputs):
        if i not in wanted:
            assert not flat(getattr(actual, name))
            actual = actual._replace(**{name: None})
    assert_trees(f"{implementation.__name__}, only {wanted}", actual, *expected)
