"""Every case can tell a wrong stack from a right one, in every dtype, and the exact ones are exact."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from reference.cases import DTYPES, EXACT_NAMES, NAMES, case
from reference.error_bound import FORMATS, MAX_RATIO, sharp_sd, worst_ratio
from reference.layers import Array
from reference.stack import apply_layers_vjp, oracle
from tests.support import mutants

# The worked example is the one everybody knows. Identity and swap commute and are symmetric, so all it can show is that
# the last layer counts and that gradients reach the first.
DISCRIMINATING = tuple(name for name in NAMES if name != "worked_example_2x2")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DISCRIMINATING)
def test_no_wrong_stack_passes(name: str, dtype: str) -> None:
    problem = case(name, dtype)
    exact = oracle(*problem.inputs)
    # An exact case is judged by ==: nothing is allowed.
    sd = [np.zeros_like(e) for e in exact] if problem.exact else sharp_sd(*problem.inputs, dtype)
    for forward in mutants.FORWARD:
        with np.errstate(over="ignore", invalid="ignore"):
            actual_y = forward(problem.weights, problem.x)
        ratio = worst_ratio(actual_y, exact[0], sd[0])
        assert ratio > MAX_RATIO, f"{forward.__name__} passes {name} in {dtype}: {ratio:.1f} sd"
    for gradient in mutants.GRADIENT:
        with np.errstate(over="ignore", invalid="ignore"):
            actual = gradient(*problem.inputs)
        ratio = max(worst_ratio(*leaf) for leaf in zip(actual, exact, sd, strict=True))
        assert ratio > MAX_RATIO, f"{gradient.__name__} passes {name} in {dtype}: {ratio:.1f} sd"


def test_the_worked_example_fails_what_it_can() -> None:
    problem = case("worked_example_2x2", "float32")
    y, dweights, dx = oracle(*problem.inputs)
    assert y.tolist() == [4, 3]
    assert not np.array_equal(mutants.last_dropped(problem.weights, problem.x), y)
    assert not np.array_equal(mutants.detached_carry(*problem.inputs)[2], dx)
    assert not np.array_equal(mutants.residual_off_by_one(*problem.inputs)[1], dweights)


@pytest.mark.parametrize("name", ["powers_of_two_64x16", "permutation_1001x16"])
def test_every_single_dropped_layer_shows(name: str) -> None:
    problem = case(name, "float64")
    carries = _carries(problem.weights, problem.x)
    for k in range(len(problem.weights)):
        # Dropping layer k hands its input on as its output, and the layers after it are one to one.
        assert not np.array_equal(carries[k], carries[k + 1]), f"layer {k} does nothing to what enters it"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT_NAMES)
def test_exact_cases_are_exact(name: str, dtype: str) -> None:
    problem = case(name, dtype)
    for actual, exact in zip(apply_layers_vjp(*problem.inputs), oracle(*problem.inputs), strict=True):
        assert np.array_equal(actual, exact)
        assert (exact != 0).any()


@pytest.mark.parametrize("name", EXACT_NAMES)
def test_exact_cases_are_exact_in_any_summation_order(name: str) -> None:
    # Partial sums too: either a row has one product, or all are integers that add up to 256 at most, signs dropped.
    weights, x, cotangent = case(name, "float64").inputs
    backward = weights[::-1].transpose(0, 2, 1)
    for stack, start in ((weights, x), (backward, cotangent)):
        for w, carry in zip(stack, _carries(stack, start), strict=False):
            one_product = np.count_nonzero(w, axis=1).max() <= 1
            integers = np.array_equal(w, np.round(w)) and np.array_equal(carry, np.round(carry))
            assert one_product or (integers and (abs(w) @ abs(carry)).max() <= 256)
    for exact in oracle(weights, x, cotangent):
        assert np.array_equal(exact.astype(ml_dtypes.bfloat16), exact)
        assert (abs(exact[exact != 0]) >= FORMATS["bfloat16"].tiny).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_cases_are_what_they_say(name: str, dtype: str) -> None:
    problem = case(name, dtype)
    N, d = map(int, name.rsplit("_", 1)[1].split("x"))
    assert (problem.name, problem.exact) == (name, name in EXACT_NAMES)
    assert (problem.weights.shape, problem.x.shape, problem.cotangent.shape) == ((N, d, d), (d,), (d,))
    for array, again in zip(problem.inputs, case(name, dtype).inputs, strict=True):
        assert array.dtype == DTYPES[dtype]
        assert np.array_equal(array, again)
        # The bounds take inputs to be 0 or normal: a framework may read subnormal ones as 0.
        numbers = abs(array.astype(np.float64))
        assert np.isfinite(numbers).all()
        assert (numbers[numbers != 0] >= FORMATS[dtype].tiny).all()


def test_there_are_few_widths() -> None:
    assert len({case(name, "float32").x.shape for name in NAMES}) <= 5


def _carries(weights: Array, x: Array) -> list[Array]:
    carries = [x]
    for w in weights:
        carries.append(w @ carries[-1])
    return carries
