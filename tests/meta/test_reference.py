"""The oracle is right: against exact rational arithmetic, complex steps, and a chain of matrix products."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from implementations.check.problems import is_float
from reference.cases import DTYPES, SIZES, case, layer_carry, layer_params
from reference.layers import LAYERS, Array, mlp, mlp_vjp, residual_conv, transformer_decoder, transformer_encoder
from reference.stack import apply_layers, apply_layers_vjp, oracle, run_layers, run_layers_vjp, tree_map


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


def example(name: str, seed: int) -> tuple[Any, Any]:
    """A carry and the parameters of one layer `name`, in float64."""
    params = tree_map(lambda a: a[0], layer_params(name, seed, 1, **SIZES[name]))
    return tree_map(lambda a: a.astype(float) if is_float(a) else a, (layer_carry(name, seed, **SIZES[name]), params))


def drawn(seed: int, like: Any) -> Any:
    """A tangent or a cotangent: None where there is no derivative."""
    rng = np.random.default_rng(seed)
    return tree_map(lambda a: rng.standard_normal(a.shape) if is_float(a) else None, like)


STEP = 1e-100  # of complex steps


def stepped(tree: Any, tangents: Any) -> Any:
    return tree_map(lambda a, t: a if t is None else a + 1j * STEP * t, tree, tangents)


def inner(a: Any, b: Any) -> float:
    products: list[Any] = []
    tree_map(lambda x, y: products.append(0 if y is None else np.vdot(x, y)), a, b)
    return sum(products)


def derivative(outputs: Any) -> Any:
    return tree_map(lambda a: a.imag / STEP if np.iscomplexobj(a) else None, outputs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_vjp_is_the_transpose_of_its_derivative(name: str) -> None:
    layer, inputs = LAYERS[name], example(name, 4)
    tangents, cotangents = drawn(5, inputs), drawn(6, layer.forward(*inputs))
    pushed = derivative(layer.forward(*stepped(inputs, tangents)))
    pulled = layer.vjp(*inputs, *cotangents)
    np.testing.assert_allclose(inner(cotangents, pushed), inner(pulled, tangents), rtol=1e-12)


def test_the_decoders_vjp_with_a_window() -> None:
    layer, inputs, window = LAYERS["transformer_decoder"], example("transformer_decoder", 4), np.array(2)
    tangents, cotangents = drawn(5, inputs), drawn(6, layer.forward(*inputs))
    pushed = derivative(layer.forward(*stepped(inputs, tangents), window))
    *pulled, none = layer.vjp(*inputs, window, *cotangents)
    np.testing.assert_allclose(inner(cotangents, pushed), inner(tuple(pulled), tangents), rtol=1e-12)
    assert none is None


@pytest.mark.parametrize("name", LAYERS)
def test_each_number_of_a_layers_vjp_agrees_with_a_complex_step(name: str) -> None:
    layer, inputs = LAYERS[name], example(name, 4)
    cotangents = drawn(6, layer.forward(*inputs))
    pulled: list[Any] = []
    tree_map(lambda _, g: pulled.append(g), inputs, layer.vjp(*inputs, *cotangents))
    largest = max(abs(g).max() for g in pulled if g is not None)
    for k, gradient in enumerate(pulled):
        for index in [*np.ndindex(gradient.shape)][:: 1 + gradient.size // 20] if gradient is not None else ():
            at = iter(range(len(pulled)))

            def step(a: Array, at: Any = at, k: int = k, index: Any = index) -> Array:
                if next(at) != k:
                    return a
                a = a.astype(complex)
                a[index] += 1j * STEP
                return a

            slope = inner(cotangents, derivative(layer.forward(*tree_map(step, inputs))))
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-11, atol=1e-13 * largest)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_mlp_works_in_the_dtype_it_is_given(dtype: Any) -> None:
    carry, params = tree_map(lambda a: a.astype(dtype), example("mlp", 4))
    found: list[Array] = []
    tree_map(found.append, (mlp(carry, params)[0], mlp_vjp(carry, params, carry)))
    assert {array.dtype for array in found} == {np.dtype(dtype)}


def test_mlp_is_what_its_docstring_says() -> None:
    """GELU once more, from the paper's formula; the norm has mean 0 and variance 1; zero weights leave the residual."""
    carry, params = example("mlp", 4)
    normed = (carry - carry.mean(-1, keepdims=True)) / np.sqrt(carry.var(-1, keepdims=True) + 1e-5)
    h = (normed * params["norm"]["scale"] + params["norm"]["bias"]) @ params["up"]["w"] + params["up"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    y, no_output = mlp(carry, params)
    np.testing.assert_allclose(y, carry + h @ params["down"]["w"] + params["down"]["bias"], rtol=1e-13)
    assert no_output is None
    assert np.array_equal(mlp(carry, tree_map(np.zeros_like, params))[0], carry)


def test_encoder_is_what_its_docstring_says() -> None:
    """Once more, position by position and head by head, from the formulas."""
    carry, params = example("transformer_encoder", 4)
    x, mask = carry["x"], carry["mask"]
    new = np.empty_like(x)
    for b, t in np.ndindex(x.shape[:2]):
        mixed = params["out"]["bias"].copy()
        for i in range(params["out"]["w"].shape[0]):
            q, ks, vs = (x[b] @ params[n]["w"][:, i] + params[n]["bias"][i] for n in ("query", "key", "value"))
            scores = [q[t] @ ks[s] / np.sqrt(len(q[t])) for s in range(x.shape[1]) if mask[b, s]]
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed += weights @ vs[mask[b]] @ params["out"]["w"][i]
        y = normed(x[b, t] + mixed, params["norm1"], 1e-12)
        h = y @ params["up"]["w"] + params["up"]["bias"]
        h = np.array([0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in h])
        new[b, t] = normed(y + h @ params["down"]["w"] + params["down"]["bias"], params["norm2"], 1e-12)
    np.testing.assert_allclose(transformer_encoder(carry, params)[0]["x"], new, rtol=1e-12)


def normed(x: Array, params: Any, eps: float) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + eps) * params["scale"] + params["bias"]


@pytest.mark.parametrize("window", [None, 2])
def test_decoder_is_what_its_docstring_says(window: Any) -> None:
    """Once more, position by position and head by head; rotary positions as products of complex numbers."""
    x, params = example("transformer_decoder", 4)
    half = params["query"]["w"].shape[2] // 2
    new = np.empty_like(x)

    def rms(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params[name]["scale"]

    def turned(x: Array, t: int) -> Array:
        return (x[:half] + 1j * x[half:]) * np.exp(1j * t * 10_000.0 ** (-np.arange(half) / half))

    for b, t in np.ndindex(x.shape[:2]):
        n, mixed = rms(x[b], "norm1"), np.zeros(x.shape[2])
        for h in range(6):
            ks, vs = (n @ params[name]["w"][:, h // 3] for name in ("key", "value"))
            seen = range(0 if window is None else max(0, t - window + 1), t + 1)
            q = turned(n[t] @ params["query"]["w"][:, h], t)
            scores = [np.vdot(q, turned(ks[s], s)).real / np.sqrt(2 * half) for s in seen]
            mixed += np.exp(scores) / np.exp(scores).sum() @ vs[list(seen)] @ params["out"]["w"][h]
        y = x[b, t] + mixed
        n, gate = rms(y, "norm2"), rms(y, "norm2") @ params["gate"]["w"]
        new[b, t] = y + (gate / (1 + np.exp(-gate)) * (n @ params["up"]["w"])) @ params["down"]["w"]
    np.testing.assert_allclose(transformer_decoder(x, params, window)[0], new, rtol=1e-12)


def test_residual_conv_is_what_its_docstring_says() -> None:
    """Once more, pixel by pixel."""
    x, params = example("residual_conv", 4)
    h: Any = x
    for i in (1, 2):
        mean, variance = h.mean((0, 1, 2)), h.var((0, 1, 2))
        h = (h - mean) / np.sqrt(variance + 1e-5) * params[f"norm{i}"]["scale"] + params[f"norm{i}"]["bias"]
        h, w = np.maximum(h, 0), params[f"conv{i}"]["w"]
        out = np.zeros_like(h)
        for b, r, c in np.ndindex(h.shape[:3]):
            for i_, j in np.ndindex(3, 3):
                row, column = r + i_ - 1, c + j - 1
                if 0 <= row < h.shape[1] and 0 <= column < h.shape[2]:
                    out[b, r, c] += h[b, row, column] @ w[i_, j]
        seen = residual_conv(x, params)[1][f"norm{i}"]
        np.testing.assert_allclose((seen["mean"], seen["variance"]), (mean, variance), rtol=1e-12, atol=1e-15)
        h = out
    np.testing.assert_allclose(residual_conv(x, params)[0], x + h, rtol=1e-12)


# The loop over layers of any kind.


def counting(carry: Any, params: Any, x: Any) -> Any:
    """Shows which layer ran when: carry is a list of tags in base 10."""
    return {"tags": carry["tags"] * 10 + params["tag"]}, (carry["tags"], [x, None])


@pytest.mark.parametrize("reverse", [False, True])
def test_ys_are_in_the_order_of_the_layers_also_in_reverse(reverse: bool) -> None:
    params, xs = {"tag": np.array([1, 2, 3])}, np.array([7, 8, 9])
    carry, (before, rest) = run_layers(counting, params, {"tags": np.array(0)}, xs, reverse=reverse)
    assert carry["tags"] == (321 if reverse else 123)
    assert before.tolist() == ([32, 3, 0] if reverse else [0, 1, 12])
    assert rest[0].tolist() == [7, 8, 9]
    assert rest[1] is None


def test_no_layers_give_empty_ys_of_the_right_shapes() -> None:
    params, xs = {"tag": np.zeros(0, np.int32)}, np.zeros((0, 4), np.float32)
    carry, ys = run_layers(counting, params, {"tags": np.array(5)}, xs)
    assert carry["tags"] == 5
    assert (ys[0].shape, ys[1][0].shape, ys[1][0].dtype, ys[1][1]) == ((0,), (0, 4), np.float32, None)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", [0, 1, 4])
def test_the_loops_vjp_is_the_transpose_of_its_derivative(N: int, reverse: bool) -> None:
    stack, tangents = (  # of params and init
        (tree_map(lambda a: a.astype(float), layer_params("mlp", seed, N, **SIZES["mlp"])), example("mlp", seed)[0])
        for seed in (0, 1)
    )
    cotangent, _ = example("mlp", 2)
    outputs, (dparams, dinit, dxs) = run_layers_vjp(mlp, mlp_vjp, *stack, cotangents=(cotangent, None), reverse=reverse)
    params, carry = stepped(stack, tangents)
    tangent = run_layers(mlp, params, carry, reverse=reverse)[0].imag / STEP
    np.testing.assert_allclose(inner(cotangent, tangent), inner((dparams, dinit), tangents), rtol=1e-12)
    assert np.array_equal(outputs[0], run_layers(mlp, stack[0], stack[1], reverse=reverse)[0])
    assert dxs is None


def test_trees_are_mapped_with_keys_in_order_and_none_in_place() -> None:
    tree: dict[str, Any] = {"b": [1, None], "a": (2, {})}
    assert tree_map(lambda a: 10 * a, tree) == {"a": (20, {}), "b": [10, None]}
    assert tree_map(lambda a, b: (a, b), tree, {"b": None, "a": (3, {})}) == {"a": ((2, 3), {}), "b": [(1, None), None]}


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
