"""Every implementation gives the numbers of the reference, to the derived bound; exact problems exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implementations.check.comparator import assert_case, gradient
from reference import cases
from reference.cases import Case
from reference.stack import apply_layers

covers = pytest.mark.covers


def test_worked_example(implementation):
    weights = implementation.from_numpy(np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], np.float32))
    x = implementation.from_numpy(np.array([3, 4], np.float32))
    for apply in (implementation.scan_apply_layers, implementation.unroll_apply_layers):
        assert implementation.to_numpy(apply(weights, x)).tolist() == [4, 3]


each_dtype = pytest.mark.parametrize(
    "dtype", [dtype if dtype == "float32" else pytest.param(dtype, marks=covers(dtype)) for dtype in cases.DTYPES]
)
DEEP = 100  # an unrolled twin is compiled, or run, only up to this depth


@pytest.mark.torch_backend("eager")
@covers("forward", "reverse mode from outside")
@each_dtype
@pytest.mark.parametrize("name", cases.NAMES)
def test_rolled_is_within_the_bound(implementation, name, dtype):
    """In torch as captured; by Inductor: test_compiled_by_the_user_is_within_the_bound."""
    case = cases.case(name, dtype)
    assert_case(implementation.__name__, case, gradient(implementation, implementation.scan_apply_layers, case))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", [name for name in cases.NAMES if len(cases.case(name, "float64").weights) < DEEP])
def test_unrolled_is_within_the_bound(implementation, name, dtype):
    case = cases.case(name, dtype)
    assert_case(implementation.__name__, case, gradient(implementation, implementation.unroll_apply_layers, case))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("small_integers_3x7", "float32", marks=pytest.mark.thorough("torch_compile")),
        *(("orthogonal_8x256", dtype) for dtype in ("float32", "bfloat16")),
        pytest.param("orthogonal_8x256", "float64", marks=pytest.mark.thorough("torch_compile")),
    ],
)
def test_compiled_by_the_user_is_within_the_bound(implementation, name, dtype):
    """In torch by Inductor, as all are in the comparison."""
    case = cases.case(name, dtype)
    assert_case(implementation.__name__, case, compiled_gradient(implementation, case))


def test_alternatives_are_right_too(implementation):
    """A comparison with a wrong alternative would compare nothing."""
    assert next(iter(implementation.ALTERNATIVES)).startswith("raw ")
    case = cases.case("small_integers_3x7", "float32")
    weights, x, _ = map(implementation.from_numpy, case.inputs)
    for name, (apply, compiler) in implementation.ALTERNATIVES.items():
        y = (compiler(apply) if compiler else apply)(weights, x)
        np.testing.assert_array_equal(implementation.to_numpy(y), apply_layers(case.weights, case.x), err_msg=name)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("N", [pytest.param(N, marks=covers(f"N = {N}")) for N in (0, 1)])
def test_shallowest_stacks(implementation, N, dtype):
    """No layer: y is x, and its cotangent is dx. One layer: the loop may be gone, the numbers not."""
    case = cases.case("small_integers_3x7", dtype)
    case = Case(f"{N} of small_integers", case.weights[:N], case.x, case.cotangent, exact=True)
    for apply in (implementation.scan_apply_layers, implementation.unroll_apply_layers):
        assert_case(implementation.__name__, case, gradient(implementation, apply, case))
    assert_case(implementation.__name__, case, compiled_gradient(implementation, case))


def compiled_gradient(implementation, case):
    results = implementation.compile_gradient(implementation.scan_apply_layers)(
        *map(implementation.from_numpy, case.inputs)
    )
    return tuple(map(implementation.to_numpy, results))


@pytest.mark.torch_backend("eager")
@given(N=st.integers(0, 12), d=st.sampled_from([1, 2, 5]), seed=st.integers(0, 2**16))
def test_any_integers_are_exact(implementation, N, d, seed):
    """Small integers stay exact at any depth drawn: permutations with signs neither grow nor round."""
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(d), (N, 1)), axis=1)  # [N, d]
    weights = np.zeros((N, d, d), np.float32)
    for w, row in zip(weights, order, strict=True):
        w[np.arange(d), row] = rng.choice([-1, 1], d)
    x, cotangent = rng.integers(-9, 10, (2, d)).astype(np.float32)
    case = Case(f"signed permutations, seed {seed}", weights, x, cotangent, exact=True)
    assert_case(implementation.__name__, case, gradient(implementation, implementation.scan_apply_layers, case))
