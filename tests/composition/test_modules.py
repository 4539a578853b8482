"""A list of modules becomes a layer and its stacked parameters, in each framework, and goes back."""

from __future__ import annotations

import numpy as np
import pytest

from implementations.check.comparator import assert_close
from implementations.check.dialect import from_numpy, to_numpy
from reference.stack import run_layers_vjp
from tests.support.modules import D, affine, arrays_of, by_name, layer, layer_vjp, weights

pytestmark = pytest.mark.torch_backend("eager")


def test_two_modules_by_hand(implementation):
    """x + tanh(x * 0 + atanh(0.5)), twice, from 1: 2."""
    half = np.full(1, np.arctanh(0.5))
    modules = [affine(implementation, np.zeros((1, 1)), half) for _ in range(2)]
    one, stacked_params = implementation.from_modules(modules)
    y, _ = implementation.scan_layers(one, stacked_params, implementation.from_numpy(np.ones((1, 1))))
    assert implementation.to_numpy(y).tolist() == [[2.0]]


def problem(N, with_xs, seed=0):
    rng = np.random.default_rng(seed)
    init, dcarry = rng.standard_normal((2, 3, D))
    xs = rng.standard_normal((N, 3, D)) if with_xs else np.zeros((N, 3, D))
    each = weights(N)
    stacked = {name: np.stack([one[name] for one in each]) for name in ("w", "b")}
    (y, _), (dparams, dinit, dxs) = run_layers_vjp(layer, layer_vjp, stacked, init, xs, cotangents=(dcarry, [None] * N))
    return each, (init, xs if with_xs else None, dcarry), (y, dparams, dinit, dxs if with_xs else None)


def modules_of(implementation, each):
    return [affine(implementation, one["w"], one["b"]) for one in each]


@pytest.mark.covers("a list of modules to a stack, and back")
@pytest.mark.parametrize("with_xs", [False, True])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_values_and_gradients_are_those_of_the_loop(implementation, N, with_xs):
    each, given, right = problem(N, with_xs)
    one, stacked_params = implementation.from_modules(modules_of(implementation, each))
    init, xs, dcarry = from_numpy(implementation, given)
    (y, ys), gradients = implementation.vjp_layers(one, stacked_params, init, xs, cotangents=(dcarry, None))
    assert ys is None
    found = to_numpy(implementation, (y, by_name(gradients[0]), *gradients[1:]))
    assert_close(implementation.__name__, found, right)


@pytest.mark.parametrize("with_xs", [False, True])
def test_modules_as_one(implementation, with_xs):
    each, given, right = problem(3, with_xs)
    stack = implementation.scanned(modules_of(implementation, each), remat=True)
    init, xs, dcarry = from_numpy(implementation, given)
    y, *gradients = implementation.gradient(lambda init: stack(init, xs=xs))(init, dcarry)
    assert_close(implementation.__name__, to_numpy(implementation, (y, *gradients)), (right[0], right[2]))
    assert by_name(stack.stacked_params)["w"].shape == (3, D, D)


def test_what_all_layers_are_given(implementation):
    """By closing over it in a layer, and as a further argument of modules as one."""
    each, (init, xs, _), _ = problem(3, True)
    modules, (x, init) = modules_of(implementation, each), from_numpy(implementation, (xs[0], init))
    one, stacked_params = implementation.from_modules(modules)
    closed, _ = implementation.scan_layers(lambda c, p: one(c, p, x), stacked_params, init)
    expected = to_numpy(implementation, (init,))[0]
    for params in each:
        expected, _ = layer(expected, params, xs[0])
    stack = implementation.scanned(modules)
    for y in (closed, stack(init, x), stack(init, x=x)):
        assert_close(implementation.__name__, to_numpy(implementation, (y,)), (expected,))


def test_parameters_go_back_to_their_modules(implementation):
    before, after = weights(3), weights(3, seed=1)
    modules = modules_of(implementation, before)
    _, stacked_params = implementation.from_modules(modules_of(implementation, after))
    written = implementation.to_modules(stacked_params, modules)
    assert_close("written", [arrays_of(implementation, module) for module in written], after, 0)
    # in JAX the old ones stay as they are, for arrays there do
    kept = before if implementation.__name__ == "jax_scan" else after
    assert_close("modules", [arrays_of(implementation, module) for module in modules], kept, 0)
