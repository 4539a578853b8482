"""The comparator itself: it lets the right stack pass and no wrong one, and its messages say all that is needed."""

from __future__ import annotations

import numpy as np
import pytest

from reference import cases
from reference.stack import apply_layers_vjp
from tests.support import mutants
from tests.support.comparator import assert_case

CASE = cases.case("orthogonal_3x7", "float32")


def right():
    return apply_layers_vjp(*CASE.inputs)


def test_the_right_stack_passes():
    assert_case("numpy", CASE, right())


@pytest.mark.parametrize("mutant", mutants.FORWARD, ids=lambda mutant: mutant.__name__)
@pytest.mark.parametrize("name", ["orthogonal_3x7", "permutation_1001x16"])
def test_wrong_values_are_caught(name, mutant):
    case = cases.case(name, "float32")
    _, dweights, dx = apply_layers_vjp(*case.inputs)
    with pytest.raises(AssertionError, match=r"mutant, .*, float32, y: observed .* sd, allowed"):
        assert_case("mutant", case, (mutant(case.weights, case.x), dweights, dx))


@pytest.mark.parametrize("mutant", mutants.GRADIENT, ids=lambda mutant: mutant.__name__)
@pytest.mark.parametrize("name", ["orthogonal_3x7", "permutation_1001x16"])
def test_wrong_gradients_are_caught(name, mutant):
    case = cases.case(name, "float32")
    with pytest.raises(AssertionError, match=r"mutant, .*, float32, d(weights|x): observed .* sd, allowed"):
        assert_case("mutant", case, mutant(*case.inputs))


@pytest.mark.parametrize("mutant", mutants.PRECISION["float32"], ids=lambda mutant: mutant.__name__)
def test_less_precision_is_caught(mutant):
    _, dweights, dx = right()
    with pytest.raises(AssertionError, match=r"y: observed .* sd, allowed 4"):
        assert_case("mutant", CASE, (mutant(CASE.weights, CASE.x), dweights, dx))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda y, dw, dx: [y, dw, dx], "numpy, orthogonal_3x7, float32: observed a list, allowed a tuple"),
        (lambda y, dw, dx: (y, dw), "observed 2 results, allowed 3"),
        (lambda y, dw, dx: (y.tolist(), dw, dx), "y: observed a list, allowed a numpy.ndarray"),
        (lambda y, dw, dx: (y, dw[:1], dx), "dweights: observed shape (1, 7, 7), allowed (3, 7, 7)"),
        (lambda y, dw, dx: (y, dw, dx.astype(np.float64)), "dx: observed dtype float64, allowed float32"),
        (lambda y, dw, dx: (y * np.nan, dw, dx), "y: observed NaN or infinity, allowed finite numbers"),
    ],
)
def test_messages(broken, message):
    with pytest.raises(AssertionError) as caught:
        assert_case("numpy", CASE, broken(*right()))
    assert message in str(caught.value)
