"""Every option, depth and transform of a stack in every form of call that users have, by the compiler that they have.

No quicker backend, no option of ours. Each form has seven rows, and three times as many in a thorough run, but for
torch: Inductor takes up to fifteen seconds for a program. In float64, so that what differs is wrong, not rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from implementations.check.dialect import flat, from_numpy, ops, pullback, to_numpy
from implementations.check.problems import complex_step_gradient
from reference.stack import run_layers, tree_map
from tests.conftest import loaded

D, INNER, BATCH = 3, 2, 2  # width; layers of the inner stack of a nested one; members of a batch

OPTIONS: dict[str, tuple[Any, ...]] = {
    "N": (1, 2, 3, 4, 5),
    "transform": ("forward", "gradient", "vjp_layers", "jvp_layers", "vmap_layers", "hvp_layers", "vmap_vjp_layers"),
    "unroll": (1, 2, 3),
    "remat": (False, True, 2),
    "reverse": (False, True),
    "has_xs": (False, True),
    "has_ys": (True, False),
    "nested": (False, True),
}


class Row(NamedTuple):
    N: int
    transform: str
    unroll: int
    remat: bool | int
    reverse: bool
    has_xs: bool
    has_ys: bool
    nested: bool

    def __str__(self):
        return "-".join(f"{name}={value}" for name, value in self._asdict().items())


def rows(seed):
    """Seven rows, in which each option runs through all of its values, in an order of its own."""
    draw = np.random.default_rng(seed)
    columns = [[values[i % len(values)] for i in draw.permutation(7)] for values in OPTIONS.values()]
    return [Row(*row) for row in zip(*columns, strict=True)]


def forms():
    """Form -> (framework, how a function is called in it, seeds of its rows)."""

    def of(module: str, wrap: Callable[..., Any]) -> Callable[..., Any]:
        return lambda function: wrap(importlib.import_module(module), function)

    return {
        "jax, as it stands": ("jax_scan", lambda function: function, range(1, 4)),
        "jax.jit": ("jax_scan", of("jax", lambda jax, f: jax.jit(f)), range(1, 4)),
        "torch, as it stands": ("torch_compile", lambda function: function, range(1, 2)),
        "torch.compile": ("torch_compile", of("torch", lambda torch, f: torch.compile(f)), range(3, 4)),
        "tf, as it stands": ("tf_while", lambda function: function, range(1, 4)),
        "tf.function": ("tf_while", of("tensorflow", lambda tf, f: tf.function(f)), range(1, 4)),
        "tf.function, XLA": ("tf_while", of("tensorflow", lambda tf, f: tf.function(f, jit_compile=True)), range(1, 4)),
    }


FORMS = forms()
SWEEP = [(form, row) for form, (_, _, seeds) in FORMS.items() for row in rows(seeds[0])]
MORE = [(form, row) for form, (_, _, seeds) in FORMS.items() for seed in seeds[1:] for row in rows(seed)]
# As many layers as a step holds, which torch went wrong with, alone and as a stack of stacks.
WHOLE = [
    Row(2, "gradient", 1, 2, reverse=False, has_xs=False, has_ys=True, nested=False),
    Row(2, "gradient", 2, True, reverse=True, has_xs=True, has_ys=True, nested=True),
]
SWEEP += [(form, row) for form in ("torch, as it stands", "torch.compile") for row in WHOLE]
# One layer left over by steps, or by groups, of two.
LEFT_OVER = {
    "unroll": Row(5, "gradient", 2, False, reverse=False, has_xs=False, has_ys=False, nested=False),
    "remat": Row(5, "gradient", 1, 2, reverse=False, has_xs=False, has_ys=False, nested=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_value_of_each_option_meets_each_form(form):
    for name, values in OPTIONS.items():
        assert {getattr(row, name) for found, row in SWEEP if found == form} == set(values)


def layer_of(o, row, scan):
    """A layer, or one that is a stack of two of them, whose every input counts, and counts in its place."""

    def layer(carry, params, x=None):
        new = o.tanh(carry * params + (0.5 if x is None else x))
        return new, carry * params if row.has_ys else None

    return (lambda carry, params, x=None: scan(layer, params, carry, x)) if row.nested else layer


def arrays(row):
    """(stacked_params, init, xs), the same twice: values and tangents."""
    draw = np.random.default_rng(0).normal
    shape = (row.N, INNER, D) if row.nested else (row.N, D)
    return [(draw(size=shape), draw(size=D), draw(size=shape) if row.has_xs else None) for _ in range(2)]


def by_numpy(row, params, init, xs=None):
    scan = partial(run_layers, reverse=row.reverse)
    return scan(layer_of(ops("numpy"), row, scan), params, init, xs)


def by_complex_step(row, inputs, tangents):
    """The exact derivative of (carry, ys) in that direction."""
    step = 1e-30
    moved = tree_map(lambda a, t: a + 1j * step * t, inputs, tangents)
    return tree_map(lambda a: np.imag(a) / step, by_numpy(row, *moved))


def by_differences(function, inputs, tangents):
    """The derivative of `function` in that direction, to some 1e-12: `function` has spent the complex step."""
    step, weights = 0.004, {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}

    def at(k):
        return function(tree_map(lambda a, t: a + k * step * t, inputs, tangents))

    parts = [
        tree_map(lambda ahead, behind, w=w: w * (ahead - behind) / step, at(k), at(-k)) for k, w in weights.items()
    ]
    return tree_map(lambda *parts: sum(parts), *parts)


def stacked(members):
    return tree_map(lambda *arrays: np.stack(arrays), *members)


def batch_of(init):
    return np.stack([init * (b + 1) for b in range(BATCH)])


def cotangents_of(outputs):
    return tree_map(lambda a: 0.5 + np.arange(a.size).reshape(a.shape) / a.size, outputs)


def right_of(row):
    """What is to come out, and the cotangents of it that go in."""
    inputs, tangents = arrays(row)
    function = partial(by_numpy, row)
    outputs = function(*inputs)
    cotangents = cotangents_of(outputs)

    def gradient(inputs, cotangents):
        return complex_step_gradient(lambda inputs: function(*inputs), inputs, cotangents)

    def of_loss(inputs):  # half the sum of all squares: its cotangents are the outputs
        return gradient(inputs, function(*inputs))

    if row.transform == "forward":
        return outputs, None
    if row.transform == "jvp_layers":
        return (outputs, by_complex_step(row, inputs, tangents)), None
    if row.transform == "hvp_layers":
        return (of_loss(inputs), by_differences(of_loss, inputs, tangents)), None
    if not row.transform.startswith("vmap"):
        return (outputs, gradient(inputs, cotangents)), cotangents
    members = [(inputs[0], init, inputs[2]) for init in batch_of(inputs[1])]
    outputs = stacked(function(*member) for member in members)
    if row.transform == "vmap_layers":
        return outputs, None
    cotangents = cotangents_of(outputs)
    of_members = [tree_map(lambda a, b=b: a[b], cotangents) for b in range(BATCH)]
    return (outputs, stacked(map(gradient, members, of_members))), cotangents


def run(implementation, wrap, row, cotangents):
    """What the framework says, as NumPy arrays."""
    inputs, tangents = arrays(row)
    options = {"unroll": row.unroll, "remat": row.remat, "reverse": row.reverse}
    o = ops(implementation.__name__)
    layer = layer_of(o, row, partial(implementation.scan_layers, **options))
    if row.transform == "gradient":  # the framework's own, of what users call
        stack = wrap(lambda *given: implementation.scan_layers(layer, *given, **options))
        return pullback(implementation, stack, inputs, cotangents)

    def loss(carry, ys):
        return (o.sum(carry * carry) + (0 if ys is None else o.sum(ys * ys))) / 2

    function = getattr(implementation, "scan_layers" if row.transform == "forward" else row.transform)
    static = (layer, loss) if row.transform == "hvp_layers" else (layer,)
    if row.transform.startswith("vmap"):
        inputs = (inputs[0], batch_of(inputs[1]), inputs[2])
    more = {} if cotangents is None else {"cotangents": cotangents}
    if row.transform in ("jvp_layers", "hvp_layers"):
        more = {"tangents": tangents}
    # all arrays are arguments of the user's function
    users = wrap(lambda given, more: function(*static, *given, **options, **more))
    return to_numpy(implementation, users(from_numpy(implementation, inputs), from_numpy(implementation, more)))


@pytest.mark.parametrize(
    ("form", "row"), [*SWEEP, *(pytest.param(*each, marks=pytest.mark.thorough) for each in MORE)], ids=str
)
def test_every_option_in_every_form(request, form, row):
    if form == "tf.function, XLA" and row.transform.startswith("vmap") and row.nested:
        # tf.vectorized_map makes, of the list in which an inner stack keeps its ys, a list of lists
        raises = importlib.import_module("tensorflow").errors.InvalidArgumentError
        request.applymarker(pytest.mark.xfail(raises=raises, reason="XLA knows no list of lists", strict=True))
    name, wrap, _ = FORMS[form]
    check(loaded(name), wrap, row)


@pytest.mark.parametrize(
    "option",
    [pytest.param(o, marks=pytest.mark.covers(f"{o}=k, where k does not divide N")) for o in LEFT_OVER],
)
def test_a_layer_is_left_over(implementation, option):
    check(implementation, lambda function: function, LEFT_OVER[option])


def check(implementation, wrap, row):
    if implementation.__name__ == "torch_compile":
        assert importlib.import_module("torch_compile.edges").BACKEND == "inductor"
        importlib.import_module("torch")._dynamo.reset()  # else rows would share torch's limit of eight programs
    right, cotangents = right_of(row)
    found = run(implementation, wrap, row, cotangents)
    assert tree_map(np.shape, found) == tree_map(np.shape, right)
    for got, want in zip(flat(found), flat(right), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11 if row.transform == "hvp_layers" else 1e-13)
