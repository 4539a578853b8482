"""Stacks in programs: in each other, one after the other, the same one again, with what they share and what is frozen.

In torch by Inductor: most defects of its scan operator are in what Inductor makes of a gradient.
"""

from __future__ import annotations

import pytest

from reference.stack import run_layers
from tests.support.dialect import flat, layer_of, to_numpy
from tests.support.problems import ACTIVATIONS, PROGRAMS, exact_and_yardstick, problem, right
from tests.support.stacks import assert_program, assert_right, run
from tests.support.trees import assert_trees

quick = pytest.mark.usefixtures("captured_only")


@pytest.mark.parametrize(
    "name",  # "shared" is "twice" with more in it
    ["shared", *(pytest.param(name, marks=pytest.mark.thorough("torch_compile")) for name in ("twice", "chained"))],
)
def test_several_stacks_in_one_program(implementation, name):
    assert_program(implementation, *PROGRAMS[name], compiled=True, use="inductor")


@quick
@pytest.mark.parametrize("name", PROGRAMS)
def test_several_stacks_called_as_they_stand(implementation, name):
    assert_program(implementation, *PROGRAMS[name], compiled=False)


def test_a_stack_in_a_stack(implementation):
    assert_right(implementation, "nested", 4, compiled=True, use="inductor")


@pytest.mark.usefixtures("captured_only")
@pytest.mark.parametrize(
    "options",
    [{"remat": 3}, pytest.param({"reverse": True, "unroll": 3}, marks=pytest.mark.thorough("torch_compile"))],
    ids=str,
)
def test_a_stack_in_a_stack_called_as_it_stands(implementation, options):
    assert_right(implementation, "nested", 4, **options)


def test_activations_train_together(implementation):
    """What a framework keeps of tanh, sigmoid, exp or softmax is what they return: the new carry."""
    assert_right(implementation, "activations", 3, compiled=True, use="inductor")


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
