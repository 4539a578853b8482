"""Probes of the capability table: what it says of `scan_layers` and its gradients, tried out, a few lines for each row.

A probe is a function of an implementation and compares with NumPy in float64: the loop, its derivative by hand or by
complex step. `make(o, scan)` writes a stack once, for NumPy (o, scan = its operations, the loop) and each framework.
"""

from __future__ import annotations

import contextlib
import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from reference.arguments import leaves
from reference.stack import run_layers, run_layers_vjp
from tests.support import outside
from tests.support.dialect import from_numpy, layer_of, ops, pullback
from tests.support.problems import ACTIVATIONS, complex_step_gradient, make_cell, problem

STEP = 1e-30  # of the complex step: its square is below the last bit of any result
N, D = 5, 3
_rng = np.random.default_rng(0)
W, TW = _rng.standard_normal((2, N, D, D))
TWO_EACH = _rng.standard_normal((N, 2, D, D))
X, TX, B = _rng.standard_normal((3, D))


def make_tanh(o):
    return lambda carry, w: (o.tanh(o.matvec(w, carry)), None)


def tanh_vjp(carry, w, dcarry, dy):
    dsum = dcarry * (1 - np.tanh(w @ carry) ** 2)
    return w.T @ dsum, np.outer(dsum, carry)


def quick(probe):
    """`probe` with a compiler that takes a tenth of the time, where the claim is not about Inductor's code."""

    def run(implementation):
        with quick_compiler(implementation):
            probe(implementation)

    return run


@contextlib.contextmanager
def quick_compiler(implementation):
    with pytest.MonkeyPatch.context() as patch:
        if implementation.__name__ == "torch_compile":
            edges = importlib.import_module("torch_compile.edges")
            patch.setattr(edges, "BACKEND", "eager", raising=False)
        yield


def assert_close(implementation, actual, expected, atol=1e-13):
    """The same structure, and every array within `atol` times the largest element of the expected one."""
    found, wanted = (dict(leaves("result", tree)) for tree in (actual, expected))
    assert list(found) == list(wanted), f"{implementation.__name__}: observed {list(found)}, allowed {list(wanted)}"
    for path, array in found.items():
        got, right = implementation.to_numpy(array), np.asarray(wanted[path])
        assert got.shape == right.shape, f"{path}: observed shape {got.shape}, allowed {right.shape}"
        scale = abs(right).max(initial=0) or 1
        np.testing.assert_allclose(got / scale, right / scale, rtol=0, atol=atol, err_msg=path)


def words(name):
    """`ops(name)`, and the repetition along a new first axis."""
    return SimpleNamespace(**vars(ops(name)), repeat=getattr(outside, name).repeat)


def layer(implementation, make):
    """A layer of this probe's own, so that no program compiled for another test is found again."""
    made, own = make(ops(implementation.__name__)), object()
    return lambda *args, own=own: made(*args)


# Values and gradients of `scan_layers`.


def loop(layer, stacked_params, init, xs=None, *, reverse=False, **_):
    return run_layers(layer, stacked_params, init, xs, reverse)


def as_it_is(probe):
    """`probe` by the framework's real compiler: the claim is about what it makes of the options."""
    return probe


def values(make_layer=make_cell, name="cell", depths=(N,), **options):
    """`scan_layers(..., **options)` and the framework's gradient of it are those of the loop."""

    def probe(implementation):
        for depth in depths:
            given = problem(name, depth, "float64")

            def make(o, scan):
                return lambda *inputs: scan(make_layer(o), *inputs, **options)

            differentiated(implementation, make, given.inputs, given.cotangents)

    return quick(probe)


def differentiated(implementation, make, inputs, cotangents, **how):
    """Outputs and gradients of the stack that `make` writes, by the framework's own reverse mode."""
    right = make(words("numpy"), loop)
    stack = make(words(implementation.__name__), implementation.scan_layers)
    results = pullback(implementation, stack, inputs, cotangents, **how)
    expected = right(*inputs), complex_step_gradient(lambda inputs: right(*inputs), inputs, cotangents)
    if how.get("wanted") is not None:
        expected[1][:] = [g if i in how["wanted"] else None for i, g in enumerate(expected[1])]
    assert_close(implementation, from_numpy(implementation, results), expected)


def gradient_of(make, *inputs, compiled=False, compiler=quick):
    """The same for a stack from arrays to one array [d]."""
    return compiler(lambda implementation: differentiated(implementation, make, [*inputs], TX, compiled=compiled))


def with_options(**options):
    return lambda o, scan: lambda w, x: scan(make_tanh(o), w, x, **options)[0]


def scan_in_scan(o, scan):
    def block(carry, ws):  # ws [2, d, d]
        return scan(make_tanh(o), ws, carry)[0], None

    return lambda ws, x: scan(block, ws, x)[0]  # ws [N, 2, d, d]


def used_twice(o, scan):
    def stack(w, x, b):
        repeated = o.repeat(b, len(w))
        return scan(lambda c, p: (o.tanh(o.matvec(p[0], c) + p[1]), None), (w, repeated), x)[0]

    return lambda w, x, b: stack(w, stack(w, x, b), b)


def shared_parameter(o, scan):
    def shared(carry, params):
        return o.tanh(o.matvec(params["w"], carry) + params["b"]), None

    return lambda w, x, b: scan(shared, {"w": w, "b": o.repeat(b, len(w))}, x)[0]


def closed_over(o, scan):
    return lambda w, x, b: scan(lambda carry, w: (o.tanh(o.matvec(w, carry) + b), None), w, x)[0]


def one_stack(o, scan):
    return lambda w, x: scan(make_tanh(o), w, x)[0]


def activations(o, scan):
    """Four stacks in one program, side by side: one after the other, exp would drive softmax to its limit."""
    return lambda w, x: sum(scan(make(o), w / 2, x)[0] for make in ACTIVATIONS.values())


@quick
def gradient_of_a_compiled_stack(implementation):
    """A user compiles the stack, and differentiates what is compiled."""
    program = implementation.compile(one_stack(ops(implementation.__name__), implementation.scan_layers))
    results = implementation.gradient(program)(*from_numpy(implementation, (W, X, TX)))
    assert_close(implementation, tuple(results), (one_stack(ops("numpy"), loop)(W, X), *tanh_gradient(W, X, TX)))


@quick
def frozen(implementation):
    """Only the parameters, or only the carry, are differentiated."""
    for wanted in ((0,), (1,)):
        differentiated(implementation, one_stack, [W, X], TX, wanted=wanted)


def tanh_gradient(w, x, cotangent):
    """(dw, dx) of the stack of `make_tanh`."""
    layer = layer_of(make_tanh, "numpy")
    return run_layers_vjp(layer, tanh_vjp, w, x, cotangents=(cotangent, None))[1][:2]
