"""Random layers, in every way a stack is called: equal, to the last bit, to the unrolled twin and to NumPy's loop.

Torch is compiled by Inductor, as users have it: that is why it has few layers. With --thorough each form has many more.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from implementations.check.comparator import assert_close
from implementations.check.dialect import flat, from_numpy, pullback, to_numpy
from implementations.check.problems import is_float
from reference.stack import run_layers, tree_map
from tests.conftest import loaded
from tests.support.random_layers import LARGEST, language, random_layers

# Form -> framework, how the stack is called, random layers in the default run and in a thorough one.
FORMS = {
    "jax": ("jax_scan", lambda function: function, 20, 300),
    "jax.jit": ("jax_scan", lambda function: _jax().jit(function), 15, 300),
    "torch": ("torch_compile", lambda function: function, 4, 40),
    "torch.compile": ("torch_compile", lambda function: _torch().compile(function), 4, 40),
    "tf": ("tf_while", lambda function: function, 20, 300),
    "tf.function": ("tf_while", lambda function: _tf().function(function), 40, 300),
    "tf.function(jit_compile=True)": ("tf_while", lambda function: _tf().function(function, jit_compile=True), 15, 300),
}
GRADIENTS = {"jax_scan": (15, 100), "torch_compile": (2, 30), "tf_while": (15, 100)}


def _jax():
    import jax

    return jax


def _torch():
    import torch

    return torch


def _tf():
    import tensorflow as tf

    return tf


def bounded(numbers, config):
    """The same layers in every run. Not shrunk: each step is a program to compile."""
    return settings(
        max_examples=numbers[config.getoption("--thorough")],
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def by_numpy(drawn):
    params, init, xs = drawn.arrays()
    return run_layers(drawn.layer(language("numpy")), params, init, xs, drawn.reverse)


def check(implementation, wrap, drawn):
    inputs = drawn.arrays()
    right = by_numpy(drawn)
    layer = drawn.layer(language(implementation.__name__))
    given = from_numpy(implementation, inputs)
    unrolled = implementation.unroll_layers(layer, *given, reverse=drawn.reverse)
    assert_close(f"unrolled, {drawn}", to_numpy(implementation, unrolled), right, 0)
    stack = wrap(partial(implementation.scan_layers, layer, reverse=drawn.reverse))
    assert_close(f"{drawn}", to_numpy(implementation, stack(*given)), right, 0)


@pytest.mark.parametrize("form", FORMS)
def test_a_random_layer_is_the_same_in_every_form(form, request):
    name, wrap, *numbers = FORMS[form]
    implementation = loaded(name)

    @bounded(numbers, request.config)
    @given(random_layers())
    def equal(drawn):
        check(implementation, wrap, drawn)

    equal()


def check_gradients(implementation, drawn, wrap=lambda function: function):
    inputs = drawn.arrays()
    right = by_numpy(drawn)
    rng = np.random.default_rng(drawn.seed)
    cotangents = tree_map(lambda a: rng.integers(-1, 2, np.shape(a)).astype(a.dtype) if is_float(a) else None, right)
    layer = drawn.layer(language(implementation.__name__))
    unroll = partial(implementation.unroll_layers, layer, reverse=drawn.reverse)
    _, twins = pullback(implementation, unroll, inputs, cotangents)
    assume(all(abs(array).max(initial=0.0) < LARGEST[str(array.dtype)] for array in flat(twins)))
    run = wrap(
        lambda inputs, cotangents: implementation.vjp_layers(
            layer, *inputs, cotangents=cotangents, reverse=drawn.reverse
        )
    )
    outputs, gradients = run(from_numpy(implementation, inputs), from_numpy(implementation, cotangents))
    assert_close(f"{drawn}", to_numpy(implementation, outputs), right, 0)
    assert_close(f"gradients, {drawn}", to_numpy(implementation, gradients), twins, 0)


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_of_a_random_layer_is_its_twins(name, request):
    """In float32 and float64, where integers beyond those of bfloat16 are exact; integers have none."""
    implementation = loaded(name)

    @bounded(GRADIENTS[name], request.config)
    @given(random_layers(dtypes=("float32", "float32", "float64", "int32")))
    def equal(drawn):
        check_gradients(implementation, drawn)

    equal()


@pytest.mark.thorough
def test_the_gradient_in_a_users_program_of_torch_is_too(request):
    """Without what a C++ compiler builds: it is what AOTAutograd takes for granted that goes wrong."""
    implementation = loaded("torch_compile")

    def compiled(function):
        _torch()._dynamo.reset()
        return _torch().compile(function, backend="aot_eager")

    @bounded((0, 100), request.config)
    @given(random_layers(dtypes=("float32", "float32", "float64", "int32")))
    def equal(drawn):
        check_gradients(implementation, drawn, compiled)

    equal()
