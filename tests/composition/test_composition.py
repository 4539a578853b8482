"""Stacks in programs: in each other, one after the other, the same one again, with what they share and what is frozen.

In torch by Inductor: most defects of its scan operator are in what Inductor makes of a gradient.
"""

from __future__ import annotations

import pytest

from reference.stack import run_layers
from tests.support.comparator import assert_trees
from tests.support.dialect import flat, layer_of, to_numpy
from tests.support.problems import (
    ACTIVATIONS,
    PROGRAMS,
    assert_program,
    assert_right,
    exact_and_yardstick,
    problem,
    right,
    run,
)

quick = pytest.mark.torch_backend("eager")
covers = pytest.mark.covers


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
    inputs = PROGRAMS["shared"].inputs
    assert_program(implementation, make_closed_over, inputs, compiled=False)


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
    dcarry, _ = problem("activations", 3).cotangents
    layer = layer_of(ACTIVATIONS[name], implementation.__name__)
    gradient = implementation.compile_gradient(lambda w, x: implementation.scan_layers(layer, w, x)[0])
    results = to_numpy(implementation, gradient(*map(implementation.from_numpy, (params, init[name], dcarry[name]))))

    def of(layer, inputs):
        return run_layers(layer, *inputs)[0]

    expected = exact_and_yardstick(ACTIVATIONS[name], of, (params, init[name]), dcarry[name])
    exact, yardstick = ({"y": y, "dweights": dw, "dx": dx} for y, (dw, dx) in expected)
    actual = dict(zip(exact, results, strict=True))
    assert_trees(f"{implementation.__name__}, {name}", actual, exact, yardstick, stacked=("dweights",))


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
