"""What a user writes: a small model with a stack in it, compiled as the framework has it, and trained.

Nothing is set and no option is given. A plain loop over the layers, trained alike, is right.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.conftest import loaded

N, B, D, STEPS, RATE = 3, 4, 3, 20, 0.3


def data():
    draw = np.random.default_rng(0).normal
    return draw(size=(N, D, D)) / 2, draw(size=D), draw(size=(B, D)), draw(size=B)  # weights, head, inputs, targets


def assert_near(found, right):
    for got, want in zip(found, right, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)  # float64: a wrong gradient is far beyond


def torch_model():
    stack = loaded("torch_compile")
    torch: Any = importlib.import_module("torch")
    weights, head, x, target = map(torch.from_numpy, data())

    class Model(torch.nn.Module):
        def __init__(self, rolled):
            super().__init__()
            self.weights, self.head = torch.nn.Parameter(weights.clone()), torch.nn.Parameter(head.clone())
            self.rolled = rolled

        def forward(self, x):
            if self.rolled:
                x = stack.scan_layers(lambda x, w: (torch.tanh(x @ w) + x, None), self.weights, x)[0]
            else:
                for w in self.weights:
                    x = torch.tanh(x @ w) + x
            return x @ self.head

    return torch, Model, x, target


def trained(torch, model, run, x, target):
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=RATE), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = ((run(x) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, *(parameter.detach().numpy() for parameter in model.parameters())


def test_a_module_of_torch_trains_under_plain_compile():
    torch, model_of, x, target = torch_model()
    torch._dynamo.reset()
    rolled, plain = model_of(True), model_of(False)
    right = trained(torch, plain, plain, x, target)
    assert right[0][-1] < right[0][0] / 2  # it learns
    assert_near(trained(torch, rolled, torch.compile(rolled), x, target), right)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "reduce-overhead", "dynamic", "static", "graph breaks"])
def test_a_compiled_module_of_torch_is_called(how):
    torch, model_of, x, _ = torch_model()
    torch._dynamo.reset()
    rolled, right = model_of(True), model_of(False)(x).detach()
    options = {"reduce-overhead": {"mode": how}, "dynamic": {"dynamic": True}, "static": {"dynamic": False}}

    def broken(x):
        torch._dynamo.graph_break()
        y = rolled(x)
        torch._dynamo.graph_break()
        return y

    run = torch.compile(broken if how == "graph breaks" else rolled, **options.get(how, {}))
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
    with context():
        assert_near([run(x).detach().numpy()], [right.numpy()])


def test_a_module_of_tensorflow_trains_under_function():
    stack = loaded("tf_while")
    tf: Any = importlib.import_module("tensorflow")
    weights, head, x, target = map(tf.constant, data())

    class Model(tf.Module):
        def __init__(self, rolled):
            super().__init__()
            self.weights, self.head, self.rolled = tf.Variable(weights), tf.Variable(head), rolled

        def __call__(self, x):
            if self.rolled:
                x = stack.scan_layers(lambda x, w: (tf.tanh(x @ w) + x, None), self.weights, x)[0]
            else:
                for i in range(N):
                    x = tf.tanh(x @ self.weights[i]) + x
            return tf.linalg.matvec(x, self.head)

    def train(model, wrap):
        @wrap
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - target) ** 2)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(RATE * gradient)
            return loss

        variables = [model.weights, model.head]
        losses = [float(step()) for _ in range(STEPS)]
        return losses, *(variable.numpy() for variable in variables)

    right = train(Model(False), lambda step: step)
    assert right[0][-1] < right[0][0] / 2
    assert_near(train(Model(True), tf.function), right)
    assert_near(train(Model(True), tf.function(jit_compile=True)), right)


def test_a_train_step_of_jax_under_jit():
    stack = loaded("jax_scan")
    jax = importlib.import_module("jax")
    weights, head, x, target = map(jax.numpy.asarray, data())

    def rolled(params, x):
        return stack.scan_layers(lambda x, w: (jax.numpy.tanh(x @ w) + x, None), params[0], x)[0] @ params[1]

    def plain(params, x):
        for w in params[0]:
            x = jax.numpy.tanh(x @ w) + x
        return x @ params[1]

    def train(model):
        @jax.jit
        def step(params):
            loss, gradients = jax.value_and_grad(lambda params: ((model(params, x) - target) ** 2).mean())(params)
            return loss, jax.tree.map(lambda p, g: p - RATE * g, params, gradients)

        params, losses = (weights, head), []
        for _ in range(STEPS):
            loss, params = step(params)
            losses.append(float(loss))
        return losses, *params

    right = train(plain)
    assert right[0][-1] < right[0][0] / 2
    assert_near(train(rolled), right)
