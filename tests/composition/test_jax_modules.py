"""Callable pytrees of JAX, scanned: registered dataclasses, and the modules of libraries where they are installed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tests.conftest import loaded


@pytest.fixture
def jax_scan():
    return loaded("jax_scan")


@functools.cache
def scaling():
    import jax

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Scaling:
        """Of a carry by an array, a number and a function."""

        w: Any
        rate: float
        function: Any = dataclasses.field(metadata={"static": True})

        def __call__(self, carry):
            return self.function(carry * self.w * self.rate)

    return Scaling


def plus_one(x):
    return x + 1


def test_two_modules_by_hand(jax_scan):
    """2 * 1 * 10 + 1 = 21, 3 * 21 * 10 + 1 = 631; what is no array stays in the modules."""
    import jax

    modules = [scaling()(jax.numpy.array(w), 10.0, plus_one) for w in (2.0,)]
    modules.append(dataclasses.replace(modules[0], w=jax.numpy.array(3.0)))
    layer, stacked_params = jax_scan.from_modules(modules)
    assert (stacked_params.w.tolist(), stacked_params.rate) == ([2, 3], None)
    y, ys = jax_scan.scan_layers(layer, stacked_params, jax.numpy.array(1.0))
    assert (float(y), ys) == (631, None)
    written = jax_scan.to_modules(jax.tree.map(lambda a: a + 1, stacked_params), modules)
    assert [(float(m.w), m.rate, m.function) for m in written] == [(3, 10, plus_one), (4, 10, plus_one)]
    dw = jax.grad(lambda stack: stack(jax.numpy.array(1.0)))(jax_scan.scanned(modules)).stacked_params.w
    assert dw.tolist() == [300, 210]


def test_a_module_that_changes_itself(jax_scan):
    """Its new arrays come out as ys, and the modules stay as they are; modules as one have no place for them."""
    import jax

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Counting:
        w: Any
        calls: Any

        def __call__(self, carry):
            self.calls = self.calls + carry
            return carry * self.w

    w, calls = jax.numpy.array([2.0, 3.0]), jax.numpy.array([0.0, 10.0])
    modules = [Counting(w[i], calls[i]) for i in range(2)]
    layer, stacked_params = jax_scan.from_modules(modules)
    y, ys = jax_scan.scan_layers(layer, stacked_params, jax.numpy.array(5.0))
    assert (float(y), ys.w, ys.calls.tolist()) == (30, None, [5, 20])
    assert [float(module.calls) for module in modules] == [0, 10]
    with pytest.raises(TypeError) as caught:
        jax_scan.scanned(modules)(jax.numpy.array(5.0))
    words = "modules: expected ones that change no array of theirs, got Counting; from_modules has it in ys"
    assert str(caught.value) == words


def test_one_size_at_every_depth(jax_scan):
    """Modules as one are an argument of the program, and their gradient has their shape."""
    import jax

    def size(N, cotangent):
        stack = jax_scan.scanned([scaling()(jax.numpy.array(float(i)), 0.5, jax.numpy.tanh) for i in range(N)])
        x = jax.numpy.ones(3)
        return jax_scan.graph_size(lambda stack, x: stack(x), stack, x, cotangent=x if cotangent else None)

    for cotangent in (False, True):
        sizes = [{**size(N, cotangent), "temp_bytes": 0} for N in (2, 5, 64)]
        assert sizes[0] == sizes[1] == sizes[2]
        assert sizes[0]["loops"] == 1 + cotangent


def test_stacks_of_modules_that_are_alike_are_alike(jax_scan):
    """As pytrees, so that a checkpoint of one is one of the other; of another rate, they are not."""
    import jax

    def stack(rate, **options):
        return jax_scan.scanned([scaling()(jax.numpy.array(1.0), rate, plus_one)] * 2, **options)

    found: list[Any] = [jax.tree.structure(one) for one in (stack(0.1), stack(0.1), stack(0.2), stack(0.1, remat=True))]
    assert [found[0] == other for other in found] == [True, True, False, False]
    both = jax.tree.map(lambda a, b: a + b, stack(0.1), stack(0.1))
    np.testing.assert_allclose(both(jax.numpy.array(1.0)), 0.2 * (0.2 + 1) + 1)


def test_what_differs_is_named(jax_scan):
    import jax

    first = scaling()(jax.numpy.array(1.0), 10.0, plus_one)
    for change, words in (
        ({"rate": 0.5}, "modules[1].rate: expected 10.0 (that of modules[0]), got 0.5"),
        ({"w": jax.numpy.ones(2)}, "modules[1].w: expected float64[] (that of modules[0]), got float64[2]"),
        (
            {"function": abs},
            "modules[1]: expected Scaling(w=*, rate=None) (that of modules[0]), got another Scaling(w=*, rate=None)",
        ),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            jax_scan.from_modules([first, dataclasses.replace(first, **change)])
        assert str(caught.value) == words


def of_equinox(eqx: Any, jax: Any):
    """An encoder's block of Equinox's attention, with dropout, whose key is an x."""

    class Block(eqx.Module):
        norm: Any
        attention: Any
        mlp: Any
        dropout: Any

        def __init__(self, key):
            keys = jax.random.split(key, 2)
            self.norm, self.dropout = eqx.nn.LayerNorm(8), eqx.nn.Dropout(0.2)
            self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[0])
            self.mlp = eqx.nn.MLP(8, 8, 16, 1, key=keys[1])

        def __call__(self, x, key):
            h = jax.vmap(self.norm)(x)
            x = x + self.attention(h, h, h)
            return x + self.dropout(jax.vmap(self.mlp)(x), key=key)

    return Block


def test_modules_of_equinox(jax_scan):
    """Values, gradients and 20 steps of an optimizer are those of the loop, rolled with a key for each layer."""
    eqx: Any = pytest.importorskip("equinox")
    import jax
    import optax

    block = of_equinox(eqx, jax)
    modules = [block(key) for key in jax.random.split(jax.random.key(0), 3)]
    x, keys = jax.random.normal(jax.random.key(1), (5, 8)), jax.random.split(jax.random.key(2), 3)

    def loop(modules):
        carry = x
        for i, module in enumerate(modules):
            carry = module(carry, keys[i])
        return (carry**2).sum()

    results: list[Any] = []
    for model, loss in ((jax_scan.scanned(modules), lambda stack: (stack(x, xs=keys) ** 2).sum()), (modules, loop)):
        optimizer = optax.adam(1e-2)
        state = optimizer.init(eqx.filter(model, eqx.is_array))
        step = eqx.filter_jit(eqx.filter_value_and_grad(loss))
        for _ in range(20):
            value, gradient = step(model)
            updates, state = optimizer.update(gradient, state)
            model = eqx.apply_updates(model, updates)
        results.append((value, model))
    (value, stack), (right, each) = results
    np.testing.assert_allclose(value, right, rtol=1e-5)
    arrays = jax.tree.leaves(eqx.filter(jax_scan.to_modules(stack.stacked_params, modules), eqx.is_array))
    for a, b in zip(arrays, jax.tree.leaves(eqx.filter(each, eqx.is_array)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_modules_of_flax_that_change_themselves(jax_scan):
    """Running statistics and the counts of a dropout's keys come out as ys."""
    nnx: Any = pytest.importorskip("flax.nnx")
    import jax

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(8, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            return x + self.dropout(self.norm(self.linear(x)))

    modules = [Block(nnx.Rngs(seed)) for seed in range(3)]
    layer, stacked_params = jax_scan.from_modules(modules)
    x = right = jax.random.normal(jax.random.key(1), (5, 8))
    y, ys = jax_scan.scan_layers(layer, stacked_params, x)
    for module in modules:
        right = module(right)
    np.testing.assert_allclose(y, right, rtol=1e-4, atol=1e-5)
    written = jax.tree.leaves(ys)
    assert len(written) == 3  # mean, variance, count
    np.testing.assert_allclose(ys.norm.mean[...][2], modules[2].norm.mean[...], rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="modules: expected ones that change no array of theirs, got Block"):
        jax_scan.scanned(modules)(x)
