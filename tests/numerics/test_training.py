"""A stack of LayerNorm + MLP blocks trains: the losses are those of NumPy's loop, in each framework's own idiom."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from reference.cases import layer_params
from reference.layers import mlp, mlp_vjp
from reference.stack import run_layers, run_layers_vjp, tree_map
from tests.support.comparator import assert_trees
from tests.support.dialect import flat, from_numpy, to_numpy, with_arrays

N, B, D, F, STEPS, RATE = 3, 4, 8, 16, 20, 0.1
PARAMS = layer_params("mlp", 0, N, d=D, f=F)
X = np.random.default_rng(0).standard_normal((B, D)).astype(np.float32)
TARGET = run_layers(mlp, layer_params("mlp", 1, N, d=D, f=F), X)[0]  # another stack is to be imitated


def train(step, params, x, target):
    """STEPS of `step(params, x, target) -> (loss before it, new params)`: the losses, [STEPS], and the last params."""
    losses = []
    for _ in range(STEPS):
        loss, params = step(params, x, target)
        losses.append(loss)
    return losses, params


def numpy_step(params, x, target):
    (y, _), _ = run_layers_vjp(mlp, mlp_vjp, params, x, cotangents=(np.zeros_like(x), None))
    difference = y - target
    _, (gradient, _, _) = run_layers_vjp(mlp, mlp_vjp, params, x, cotangents=(2 * difference / x.size, None))
    return (difference**2).mean(), tree_map(lambda p, g: p - RATE * g, params, gradient)


@functools.cache
def right(dtype):
    losses, params = train(numpy_step, *tree_map(lambda a: a.astype(dtype), (PARAMS, X, TARGET)))
    return {"losses": np.array(losses), "params": params}


# One step of each framework, as its users write it.


def jax_scan_step(implementation, apply):
    import jax

    @jax.jit
    def step(params, x, target):
        loss, gradient = jax.value_and_grad(lambda params: ((apply(params, x) - target) ** 2).mean())(params)
        return loss, jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    return step


def torch_compile_step(implementation, apply):
    import torch

    loss_of = implementation.compile(lambda params, x, target: ((apply(params, x) - target) ** 2).mean())

    def step(params, x, target):
        params = tree_map(lambda p: p.detach().requires_grad_(), params)
        loss = loss_of(params, x, target)
        loss.backward()
        with torch.no_grad():
            return loss.detach(), tree_map(lambda p: p - RATE * p.grad, params)

    return step


def tf_while_step(implementation, apply):
    import tensorflow as tf

    @implementation.compile
    def step(params, x, target):
        with tf.GradientTape() as tape:
            tape.watch(params)
            loss = tf.reduce_mean((apply(params, x) - target) ** 2)
        gradients = tape.gradient(loss, flat(params))
        return loss, with_arrays(params, [p - RATE * g for p, g in zip(flat(params), gradients, strict=True)])

    return step


def check(implementation, form, dtype):
    layer, stack = implementation.LAYERS["mlp"], getattr(implementation, form)
    make_step = globals()[f"{implementation.__name__}_step"]
    step = make_step(implementation, lambda params, x: stack(layer, params, x)[0])
    inputs = from_numpy(implementation, tree_map(lambda a: a.astype(dtype), (PARAMS, X, TARGET)))
    losses, params = train(step, *inputs)
    actual = {
        "losses": np.array([implementation.to_numpy(loss) for loss in losses]),
        "params": to_numpy(implementation, params),
    }
    who = f"{implementation.__name__}, {form}, {dtype}"
    assert_trees(who, actual, right("float64"), right("float32"), dtype=dtype, stacked=("losses", "params"))


def test_numpy_learns():
    losses = right("float64")["losses"]
    assert losses[-1] < losses[0] / 10
    assert (np.diff(losses) < 0).all()


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize(
    ("form", "dtype"), [("scan_layers", "float32"), ("scan_layers", "float64"), ("unroll_layers", "float64")]
)
def test_the_losses_are_those_of_numpy(implementation, form, dtype):
    """In torch as captured; by Inductor: tests/numerics/test_training_parity.py, tests/numerics/test_models.py."""
    check(implementation, form, dtype)
