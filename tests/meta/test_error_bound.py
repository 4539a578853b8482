"""The bound holds for every correct implementation tried, and for no wrong one; its formulas are what they claim."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.cases import DTYPES, NAMES, Case, case
from reference.error_bound import (
    FLOOR,
    FORMATS,
    MAX_RATIO,
    MULTIPLE,
    Bound,
    Format,
    allowed_so_far,
    hard_bound,
    sharp_sd,
    worst_ratio,
    worst_so_far,
)
from reference.layers import Array
from reference.stack import apply_layers, oracle
from tests.support import mutants

INEXACT_NAMES = tuple(name for name in NAMES if not case(name, "float32").exact)


@cache
def problem_and_bounds(name: str, dtype: str) -> tuple[Case, tuple[Array, Array, Array], Bound]:
    problem = case(name, dtype)
    return problem, oracle(*problem.inputs), sharp_sd(*problem.inputs, dtype)


# Correct products that add in different orders. Each works in float32 or float64, as the dtype prescribes.


def blas(w: Array, y: Array) -> Array:
    return w @ y


def running_sum(w: Array, y: Array) -> Array:
    return np.add.accumulate(w * y, axis=1)[:, -1]


def shuffled_sum(w: Array, y: Array) -> Array:
    order = np.random.default_rng(len(y)).permutation(len(y))
    return running_sum(w[:, order], y[order])


def sum_by_halves(w: Array, y: Array) -> Array:
    terms = w * y  # [d, d]
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        terms = np.concatenate([terms[:, :half] + terms[:, half : 2 * half], terms[:, 2 * half :]], axis=1)
    return terms[:, 0]


def layer_by_layer(problem: Case, product: Callable[[Array, Array], Array]) -> tuple[Array, Array, Array]:
    """`apply_layers_vjp`, written again, with `product` in the place of `@`."""
    dtype = problem.x.dtype
    work = np.float64 if dtype == np.float64 else np.float32
    weights: Array = problem.weights.astype(work)
    ct: Array = problem.cotangent.astype(work)
    carries: list[Array] = [problem.x.astype(work)]
    for w in weights:
        carries.append(product(w, carries[-1]).astype(dtype).astype(work))
    dweights = np.empty_like(weights)
    for k in reversed(range(len(weights))):
        dweights[k] = (ct[:, None] * carries[k]).astype(dtype)
        ct = product(weights[k].T, ct).astype(dtype).astype(work)
    return carries[-1], dweights, ct


@pytest.mark.parametrize("product", [blas, running_sum, shuffled_sum, sum_by_halves])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INEXACT_NAMES)
def test_correct_stacks_stay_within_the_sharp_bound(
    name: str, dtype: str, product: Callable[[Array, Array], Array]
) -> None:
    problem, exact, sd = problem_and_bounds(name, dtype)
    for leaf, *arrays in zip(Bound._fields, layer_by_layer(problem, product), exact, sd, strict=True):
        ratio = worst_ratio(*arrays)
        assert ratio <= MAX_RATIO, f"{leaf} of {name} in {dtype}: {ratio:.2f} sd"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in INEXACT_NAMES if "1024" not in name])  # slow there: N^2 paths
def test_correct_stacks_stay_within_the_hard_bound_and_the_sharp_one_is_smaller(name: str, dtype: str) -> None:
    problem, exact, sd = problem_and_bounds(name, dtype)
    bound = hard_bound(*problem.inputs, dtype)
    for leaf, *arrays in zip(Bound._fields, layer_by_layer(problem, running_sum), exact, bound, strict=True):
        assert worst_ratio(*arrays) <= 1, leaf
    assert all((s <= b).all() for s, b in zip(sd, bound, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sharp_bound_is_sharp(dtype: str) -> None:
    # Far from 1 it would let wrong stacks pass. (In float64 the oracle shares many of NumPy's rounding errors.)
    def worst(name: str) -> float:
        problem, exact, sd = problem_and_bounds(name, dtype)
        return max(worst_ratio(*leaf) for leaf in zip(layer_by_layer(problem, running_sum), exact, sd, strict=True))

    assert all(worst(name) > 0.3 for name in INEXACT_NAMES)


# What the bound must not let pass. Orders and gradients: test_cases.py.


@pytest.mark.parametrize("name", [name for name in INEXACT_NAMES if name.startswith("orthogonal")])
def test_one_layer_of_less_precision_shows(name: str) -> None:
    for dtype in ("float32", "float64"):
        problem, exact, sd = problem_and_bounds(name, dtype)
        for mutant in mutants.PRECISION[dtype]:
            ratio = worst_ratio(mutant(problem.weights, problem.x), exact[0], sd.y)
            assert ratio > 10 * MAX_RATIO, f"{mutant.__name__} passes {name} in {dtype}: {ratio:.1f} sd"


@pytest.mark.parametrize("name", [name for name in INEXACT_NAMES if name.endswith("x256")])
def test_bfloat16_partial_sums_show_where_there_are_many(name: str) -> None:
    problem, exact, sd = problem_and_bounds(name, "bfloat16")
    (mutant,) = mutants.PRECISION["bfloat16"]
    assert worst_ratio(mutant(problem.weights, problem.x), exact[0], sd.y) > MAX_RATIO


# The formulas.


def test_the_local_variance_is_the_mean_over_all_orders() -> None:
    for d in range(2, 7):
        p = np.random.default_rng(d).standard_normal(d)
        Q, S = np.sum(p**2), np.sum(p)
        partial_sums = np.cumsum([p[list(order)] for order in permutations(range(d))], axis=1)[:, 1:]
        mean = Q + np.mean(np.sum(partial_sums**2, axis=1))  # of what multiplies u^2
        np.testing.assert_allclose(mean, Q + (d + 1) / 3 * S**2 + ((d + 1) / 6 - 1 / d) * Q, rtol=1e-12)
        assert mean <= d * (Q + S**2 / 3)


def test_covariance_is_propagated_as_the_sum_over_layers_says() -> None:
    problem, _, sd = problem_and_bounds("gaussian_3x7", "float32")
    weights = problem.weights.astype(np.float64)
    y, u2 = problem.x.astype(np.float64), FORMATS["float32"].u ** 2
    variance = np.zeros(7)
    for k, w in enumerate(weights):
        local = u2 * 7 * ((w * y) ** 2 @ np.ones(7) + (w @ y) ** 2 / 3)
        path = np.linalg.multi_dot([np.eye(7), *weights[:k:-1], np.eye(7)])  # what comes after layer k
        variance += path**2 @ local
        y = w @ y
    np.testing.assert_allclose(sd.y, np.sqrt(variance), rtol=1e-9)


def test_sd_is_the_size_of_the_error_of_random_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    # An arithmetic whose every rounding error is +u or -u, by a coin: the model at its largest variance.
    u, samples, N, d = 1e-6, 2000, 3, 5
    monkeypatch.setitem(FORMATS, "coin", Format(u, 0.0, 0.0))
    rng = np.random.default_rng(0)
    weights, x, ct = rng.standard_normal((N, d, d)), rng.standard_normal(d), rng.standard_normal(d)

    def rounded(a: Array) -> Array:
        return a * (1 + u * rng.choice([-1.0, 1.0], a.shape))

    def product(w: Array, y: Array) -> Array:  # [d, d], [samples, d] -> [samples, d]
        terms = rounded(w * y[:, None, :])[:, :, rng.permutation(d)]
        total = terms[..., 0]
        for j in range(1, d):
            total = rounded(total + terms[..., j])
        return total

    carries, cts = [np.tile(x, (samples, 1))], [np.tile(ct, (samples, 1))]
    for w in weights:
        carries.append(product(w, carries[-1]))
    for w in weights[::-1]:
        cts.append(product(w.T, cts[-1]))
    dweights = np.stack([rounded(cts[N - 1 - k][:, :, None] * carries[k][:, None, :]) for k in range(N)], axis=1)
    sd = sharp_sd(weights, x, ct, "coin")
    for actual, exact, scale in zip((carries[-1], dweights, cts[-1]), oracle(weights, x, ct), sd, strict=True):
        size = np.sqrt(np.mean((actual - exact) ** 2, axis=0)) / scale  # root mean square, in sd
        assert size.max() < 1.05  # 2000 samples
        assert size.min() > 0.5


def test_underflow_is_within_the_bounds() -> None:
    # An orthogonal stack that shrinks into the subnormal numbers of float32, with every subnormal result flushed.
    tiny = np.float32(FORMATS["float32"].tiny)
    problem = case("orthogonal_12x33", "float32")
    problem = problem._replace(weights=problem.weights * np.float32(2.0**-11))  # x 2^-132 in all, normal weights

    def flush(a: Array) -> Array:
        return np.where(abs(a) < tiny, np.float32(0), a)

    def flushing_sum(w: Array, y: Array) -> Array:
        terms = flush(w * y)
        total = terms[:, 0]
        for j in range(1, len(y)):
            total = flush(total + terms[:, j])
        return total

    exact = oracle(*problem.inputs)
    actual = layer_by_layer(problem, flushing_sum)
    assert not actual[0].any()
    assert (exact[0] != 0).all()
    for leaf in zip(actual, exact, hard_bound(*problem.inputs, "float32"), strict=True):
        assert worst_ratio(*leaf) <= 1
    for leaf in zip(actual, exact, sharp_sd(*problem.inputs, "float32"), strict=True):
        assert worst_ratio(*leaf) <= MAX_RATIO


@given(
    seed=st.integers(0, 2**32 - 1),
    N=st.integers(0, 4),
    d=st.integers(1, 6),
    exponents=st.tuples(*[st.integers(-6, 6)] * 2),
)
@settings(derandomize=True, max_examples=25, deadline=None)
def test_bounds_are_finite_not_negative_and_grow_with_u(seed: int, N: int, d: int, exponents: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((N, d, d)) * 10.0 ** exponents[0]
    x, ct = rng.standard_normal((2, d)) * 10.0 ** exponents[1]
    for function in (hard_bound, sharp_sd):
        smaller: tuple[Array, ...] = tuple(np.zeros_like(a) for a in (x, weights, x))
        for dtype in ("float64", "float32", "bfloat16"):
            bound = function(weights, x, ct, dtype)
            assert [b.shape for b in bound] == [(d,), (N, d, d), (d,)]
            assert all(np.isfinite(b).all() for b in bound)
            assert all((s <= b).all() for s, b in zip(smaller, bound, strict=True))
            smaller = bound
    if N == 0:
        assert not any(b.any() for b in smaller)  # no layers, no error: not even in bfloat16


# The judge.


@pytest.mark.parametrize(
    ("actual", "exact", "allowed", "ratio"),
    [
        ([1.0, 2.0], [1.0, 2.0], [0.0, 0.0], 0.0),
        ([1.0, 2.0], [1.0, 2.5], [1.0, 0.25], 2.0),
        ([1.0, 2.0], [1.0, 2.5], [9.0, 0.0], np.inf),
        ([np.nan, 2.0], [1.0, 2.0], [1.0, 1.0], np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], [1.0, 1.0], np.inf),
        ([np.inf, 2.0], [np.inf, 2.0], [1.0, 1.0], np.inf),
        ([1.0, 2.0], [1.0, 2.0], [1.0, np.nan], np.inf),
        ([1.0, 2.0], [1.0, 9.0], [1.0, np.inf], np.inf),
        ([], [], [], 0.0),
    ],
)
def test_worst_ratio(actual: list[float], exact: list[float], allowed: list[float], ratio: float) -> None:
    assert worst_ratio(*(np.array(a, dtype=np.float64) for a in (actual, exact, allowed))) == ratio


def test_worst_ratio_broadcasts_nothing() -> None:
    with pytest.raises(ValueError, match=r"shapes differ: actual \(1,\), exact \(3,\), allowed \(3,\)"):
        worst_ratio(np.zeros(1), np.zeros(3), np.ones(3))


def test_worst_ratio_subtracts_in_float64() -> None:
    third = apply_layers(np.full((1, 1, 1), 1 / 3, DTYPES["bfloat16"]), np.ones(1, DTYPES["bfloat16"]))
    assert worst_ratio(third, np.array([1 / 3]), np.array([2.0**-10])) == pytest.approx(
        abs(float(third[0]) - 1 / 3) * 2**10
    )


def test_a_run_is_as_far_off_as_it_has_been_so_far() -> None:
    exact = np.array([4.0, 2.0, 2.0, 1.0])
    run = exact * (1 + np.array([0.0, 1e-3, -1e-2, 1e-4]))
    np.testing.assert_allclose(worst_so_far(run, exact), [0, 1e-3, 1e-2, 1e-2], rtol=1e-12)
    assert np.isnan(worst_so_far(np.array([4.0, np.nan, 2.0, 1.0]), exact)).tolist() == [False, True, True, True]


def test_a_run_may_be_off_by_a_multiple_of_numpys_and_always_by_a_few_ulps() -> None:
    exact = np.array([4.0, 2.0, 2.0])
    yardstick = exact * (1 + np.array([0.0, 1e-5, 0.0]))
    for dtype in ("float32", "float64"):
        ulp = 2 * FORMATS[dtype].u + 2 * FORMATS["float64"].u
        numpy_ulps = 1e-5 / (2 * FORMATS["float32"].u)
        expected = np.array([FLOOR, MULTIPLE * numpy_ulps, MULTIPLE * numpy_ulps]) * ulp
        np.testing.assert_allclose(allowed_so_far(exact, yardstick, dtype), expected, rtol=1e-6)


def test_formats_are_those_of_the_dtypes() -> None:
    dtypes = {**DTYPES, "float16": np.dtype(np.float16)}  # of no case of dense layers
    assert set(FORMATS) == set(dtypes)
    finfo: Any = ml_dtypes.finfo
    for dtype, form in FORMATS.items():
        assert max(form.u, form.u_store) == finfo(dtypes[dtype]).eps / 2
        assert form.tiny == finfo(dtypes[dtype]).smallest_normal
    assert FORMATS["bfloat16"].u == FORMATS["float32"].u
