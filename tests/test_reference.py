"""The oracle is right: against exact rational arithmetic, complex steps, and a chain of matrix products."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.cases import DTYPES, case
from reference.layers import LAYERS, Array
from reference.stack import apply_layers, apply_layers_vjp, oracle


def fractions(array: Array) -> Array:
    exact: Array = np.vectorize(Fraction, otypes=[object])(array)
    return exact


def random_stack(seed: int, N: int, d: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, d, d)), rng.standard_normal(d), rng.standard_normal(d)


def integer_stack(seed: int, N: int, d: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 4, (N, d, d)), rng.integers(-3, 4, d), rng.integers(-3, 4, d)


def test_the_worked_example() -> None:
    weights = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])  # identity, then swap
    assert apply_layers(weights, np.array([3.0, 4.0])).tolist() == [4.0, 3.0]


def test_layer_0_comes_first() -> None:
    double_first, move_down = np.diag([2.0, 1.0]), np.array([[0.0, 0.0], [1.0, 0.0]])
    assert apply_layers(np.stack([double_first, move_down]), np.array([1.0, 0.0])).tolist() == [0.0, 2.0]
    assert apply_layers(np.stack([move_down, double_first]), np.array([1.0, 0.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("N", [1, 2, 5])
def test_equals_a_chain_of_matrix_products(N: int) -> None:
    weights, x, _ = random_stack(0, N, 4)
    chain = np.linalg.multi_dot([*weights[::-1], x]) if N > 1 else np.einsum("ij,j->i", weights[0], x)
    np.testing.assert_allclose(apply_layers(weights, x), chain, rtol=1e-13)


def test_no_layers_return_the_input_and_pass_the_cotangent_on() -> None:
    x, cotangent = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    y, dweights, dx = apply_layers_vjp(np.zeros((0, 3, 3)), x, cotangent)
    assert apply_layers(np.zeros((0, 3, 3)), x).tolist() == y.tolist() == x.tolist()
    assert dweights.shape == (0, 3, 3)
    assert dx.tolist() == cotangent.tolist()


def test_one_layer_has_the_textbook_gradient() -> None:
    weights, x, cotangent = random_stack(1, 1, 3)
    y, dweights, dx = apply_layers_vjp(weights, x, cotangent)
    assert np.array_equal(y, weights[0] @ x)
    assert np.array_equal(dweights[0], cotangent[:, None] * x[None, :])
    assert np.array_equal(dx, weights[0].T @ cotangent)


@given(seed=st.integers(0, 2**32 - 1), N=st.integers(0, 4), d=st.integers(1, 4))
@settings(derandomize=True, max_examples=10, deadline=None)
def test_the_gradient_is_exact_in_rational_arithmetic(seed: int, N: int, d: int) -> None:
    # cotangent . y is linear in each single number, so a difference quotient with step 1 is its derivative: no limit.
    weights, x, cotangent = (fractions(a) for a in integer_stack(seed, N, d))
    y, dweights, dx = apply_layers_vjp(weights, x, cotangent)

    def difference(array: Array, index: tuple[int, ...]) -> Any:
        array[index] += 1
        changed = apply_layers(weights, x) @ cotangent
        array[index] -= 1
        return changed - y @ cotangent

    for array, gradient in ((weights, dweights), (x, dx)):
        assert all(difference(array, index) == gradient[index] for index in np.ndindex(array.shape))


def test_float64_is_exact_on_small_integers() -> None:
    stack = integer_stack(2, 5, 4)
    for actual, exact in zip(oracle(*stack), apply_layers_vjp(*(fractions(a) for a in stack)), strict=True):
        assert (fractions(actual) == exact).all()


def test_the_gradient_agrees_with_complex_steps() -> None:
    # f(a + ih) = f(a) + ih f'(a) + O(h^2): no cancellation, so h can be so small that the rest vanishes.
    weights, x, cotangent = random_stack(3, 3, 4)
    _, dweights, dx = apply_layers_vjp(weights, x, cotangent)
    for argument, gradient in ((0, dweights), (1, dx)):
        for index in np.ndindex(gradient.shape):
            stepped = [weights.astype(complex), x.astype(complex)]
            stepped[argument][index] += 1e-100j
            derivative = (apply_layers(*stepped) @ cotangent).imag / 1e-100
            np.testing.assert_allclose(gradient[index], derivative, rtol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_vjp_is_the_transpose_of_its_derivative(name: str) -> None:
    (w,), carry, cotangent = random_stack(4, 1, 5)
    (w_tangent,), carry_tangent, _ = random_stack(5, 1, 5)
    layer, h = LAYERS[name], 1e-100
    tangent = layer.forward(carry + 1j * h * carry_tangent, w + 1j * h * w_tangent)[0].imag / h
    dcarry, dw = layer.vjp(carry, w, cotangent)
    np.testing.assert_allclose(cotangent @ tangent, dcarry @ carry_tangent + np.sum(dw * w_tangent), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_result_has_the_dtype_it_is_given(dtype: str) -> None:
    weights, x, cotangent = case("gaussian_3x7", dtype).inputs
    assert {a.dtype for a in apply_layers_vjp(weights, x, cotangent)} == {DTYPES[dtype]}
    assert {a.dtype for a in oracle(weights, x, cotangent)} == {np.dtype(np.float64)}


def test_bfloat16_is_a_float32_product_rounded_after_each_layer() -> None:
    weights, x, _ = case("gaussian_3x7", "bfloat16").inputs
    y = x.astype(np.float32)
    for w in weights.astype(np.float32):
        y = (w @ y).astype(x.dtype).astype(np.float32)
    assert np.array_equal(apply_layers(weights, x), y)


def test_arguments_are_left_as_they_were() -> None:
    stack = random_stack(7, 3, 4)
    copies = [a.copy() for a in stack]
    apply_layers_vjp(*stack)
    assert all(np.array_equal(a, copy) for a, copy in zip(stack, copies, strict=True))
