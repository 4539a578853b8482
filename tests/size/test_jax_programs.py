"""A stack of jax_scan called as it stands: one program for layers that do the same, none that is stale, no leak.

And what JAX alone has: a checkpoint policy of the layer's own, complex numbers and nothing at all, with unroll=k too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import random
import re
import weakref
from typing import Any

import numpy as np
import pytest

from reference.cases import layer_params
from tests.conftest import loaded, raw

OPTIONS: list[dict[str, int]] = [
    {},
    {"unroll": 2},
    {"remat": True},
    {"remat": 2},
    {"unroll": 2, "remat": True},
]  # of three or five layers
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
CALLS = ["scan_layers", "vjp_layers", "jvp_layers", "vmap_layers", "jax.grad", "jax.jit"]
each_call = pytest.mark.parametrize("name", CALLS)


def call(name, layer, **options):
    """Every entry on a layer that multiplies: what it does to two ones in three layers of one, as a list."""
    import jax
    from jax import numpy as jnp

    stack = loaded("jax_scan")
    w, x = jnp.ones(3), jnp.ones(2)
    run = functools.partial(stack.scan_layers, layer, **options)
    return {
        "scan_layers": lambda: run(w, x)[0],
        "vjp_layers": lambda: stack.vjp_layers(layer, w, x, cotangents=(x, None), **options)[1][1],
        "jvp_layers": lambda: stack.jvp_layers(layer, w, x, tangents=(None, x, None), **options)[1][0],
        "vmap_layers": lambda: stack.vmap_layers(layer, w, x[None], **options)[0][0],
        "jax.grad": lambda: jax.grad(lambda x: run(w, x)[0].sum())(x),
        "jax.jit": lambda: jax.jit(lambda x: run(w, x)[0])(x),  # another function of the user's at each call
    }[name]().tolist()


@contextlib.contextmanager
def compilations():
    """What JAX compiles meanwhile."""
    import jax

    names: list[str] = []
    is_open = [True]  # JAX takes no listener back

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if is_open[0] and "backend_compile" in event:
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    is_open[0] = False


# What a layer reads and has changed since. Each is (layer, change to a number): three layers multiply by it.

NUMBER = 1.0


class Scaled:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, c, p):
        return c * p * self.scale, None

    def method(self, c, p):
        return self(c, p)


@dataclasses.dataclass
class Data(Scaled):  # compares by value, so it has no hash
    scale: float = 1.0


def of_a_global(c, p):
    return c * p * NUMBER, None


def changing(kind):
    import jax

    scaled, data, cell, mask = Scaled(), Data(), [1.0], np.ones(2, np.float32)

    def of_an_array(c, p):
        return c * p * mask, None

    def of_a_flag(c, p):
        return (c * p * 2 if cell[0] == 2 else c * p * cell[0]), None

    return {
        "object": (scaled, lambda v: setattr(scaled, "scale", v)),
        "dataclass": (data, lambda v: setattr(data, "scale", v)),
        "bound method": (scaled.method, lambda v: setattr(scaled, "scale", v)),
        "partial": (functools.partial(Scaled.method, scaled), lambda v: setattr(scaled, "scale", v)),
        "closure": (of_a_flag, lambda v: cell.__setitem__(0, v)),
        "array of NumPy, in place": (of_an_array, lambda v: mask.__setitem__(slice(None), v)),
        "array of JAX": (scaled, lambda v: setattr(scaled, "scale", jax.numpy.float32(v))),
        "global": (of_a_global, lambda v: globals().__setitem__("NUMBER", v)),
    }[kind]


KINDS = [
    "object",
    "dataclass",
    "bound method",
    "partial",
    "closure",
    "array of NumPy, in place",
    "array of JAX",
    "global",
]


@each_call
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_a_layer_reads_is_that_of_now(kind, name):
    layer, change = changing(kind)
    for value in (1.0, 2.0, 3.0, 2.0):
        change(value)
        assert call(name, layer) == [value**3] * 2


@each_option
def test_a_value_that_a_layer_reads_is_that_of_now_with_every_option(options):
    for kind in ("bound method", "closure", "array of NumPy, in place"):
        layer, change = changing(kind)
        for value in (1.0, 2.0, 3.0):
            change(value)
            assert call("jax.grad", layer, **options) == [value**3] * 2, kind


@pytest.mark.parametrize("kind", ["x64", "matmul precision"])
def test_settings_of_jax_are_those_of_now(kind):
    jax = importlib.import_module("jax")
    stack = loaded("jax_scan")
    w, x = jax.numpy.ones((2, 2, 2), "float32"), jax.numpy.ones(2, "float32")

    def layer(c, p):
        return p @ c, jax.numpy.zeros(())  # of the default dtype

    context: Any
    values: Any
    context, values = {
        "x64": (jax.enable_x64, (False, True)),
        "matmul precision": (jax.default_matmul_precision, ("float32", "bfloat16")),
    }[kind]
    seen = []
    for value in (*values, *values):
        with context(value), compilations() as compiled:
            seen.append((str(stack.scan_layers(layer, w, x)[1].dtype), bool(compiled)))
    # a program for each setting, and no third
    assert [compiled for _, compiled in seen] == [True, True, False, False]
    if kind == "x64":
        assert [dtype for dtype, _ in seen] == ["float32", "float64"] * 2


# Programs.


@pytest.mark.parametrize("name", CALLS[:4])  # the rest are programs of the user's own
@each_option
def test_a_fresh_lambda_finds_its_program(options, name):
    w = np.arange(2, dtype=np.float32)
    for i in range(2):
        with compilations() as compiled:
            right = call(name, lambda c, p: (c * p + w * c, None), **options)
            for _ in range(3):
                assert call(name, lambda c, p: (c * p + w * c, None), **options) == right
        # two that differ in their place in the file are two; within the loop each is compiled once
        assert i == 0 or not compiled


def test_nothing_is_sent_to_the_device():
    """2 * 3 * 5, in a process that forbids it: all is there, and stays there."""
    jax = importlib.import_module("jax")
    stack, (w, x) = loaded("jax_scan"), jax.device_put((np.array([3.0, 5.0]), np.array(2.0)))
    with jax.transfer_guard("disallow_explicit"):
        carry, _ = stack.scan_layers(lambda c, p: (c * p, None), w, x)
        _, (dw, dx, _) = stack.vjp_layers(lambda c, p: (c * p, None), w, x, cotangents=(x, None))
    assert (carry.tolist(), dw.tolist(), dx.tolist()) == (30, [2 * 5 * 2, 2 * 3 * 2], 30)


def test_a_call_costs_one_trace_and_one_compilation():
    jax = importlib.import_module("jax")
    stack = loaded("jax_scan")
    w, x, traces = jax.numpy.ones((3, 2)), jax.numpy.ones(2), [0]

    def layer(c, p):
        traces[0] += 1  # which changes what the layer is made of
        return c * p, None

    jax.block_until_ready(stack.scan_layers(layer, w, x))
    first = traces[0]
    with compilations() as compiled:
        for _ in range(5):
            stack.scan_layers(layer, w, x)
    assert not compiled
    assert traces[0] == first > 0


def test_nothing_leaks_over_many_calls(monkeypatch):
    """Neither layers, nor arrays that they close over, nor programs without end."""
    jax = importlib.import_module("jax")
    programs = importlib.import_module("jax_scan.programs")
    monkeypatch.setattr(programs._programs, "most", 5)
    objects, arrays = [], []
    for i in range(15):
        layer, array = Scaled(float(i)), jax.numpy.full((2,), float(i))
        objects.append(weakref.ref(layer))
        arrays.append(weakref.ref(array))
        call("scan_layers", lambda c, p, layer=layer, array=array: (layer(c, p)[0] * array, None))
    del layer, array
    gc.collect()
    assert len(programs._programs) == 5
    assert not any(refer() is not None for refer in (*objects, *arrays))


def test_what_is_within_an_object_of_a_package_is_read_when_it_is_traced():
    """As jax.jit has it: the one thing that is not seen, as the docstring of scan_layers says."""
    draw = random.Random(0)

    def layer(c, p):
        return c * p * draw.random(), None

    first = call("scan_layers", layer)
    assert call("scan_layers", layer) == first
    assert "within an object of an installed package" in " ".join(loaded("jax_scan").scan_layers.__doc__.split())


# unroll=k: complex numbers, and what the layer itself says is to be kept. Five layers, so that two do not divide them.


@each_option
@pytest.mark.parametrize("N", [4, 5])
def test_gradient_of_complex_numbers(N, options):
    jax = importlib.import_module("jax")
    stack = loaded("jax_scan")
    draw = np.random.default_rng(N).normal
    w, x = (jax.numpy.asarray(draw(size=n) + 1j * draw(size=n), "complex64") for n in (N, 2))

    def loss(stack, w, x, **options):
        carry, ys = stack(lambda c, p: (jax.numpy.sin(c) * p, c * p), w, x, **options)
        return (abs(carry) ** 2).sum() + ys.real.sum() + (2 * ys.imag).sum()

    right = jax.grad(functools.partial(loss, stack.unroll_layers), (0, 1))(w, x)
    for wrap in (lambda f: f, jax.jit):
        found = wrap(jax.grad(lambda w, x: loss(stack.scan_layers, w, x, **options), (0, 1)))(w, x)
        for a, b in zip(found, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("unroll", [1, 2, 3])
@pytest.mark.parametrize(("policy", "kept"), [("nothing", 1), ("a name", 2), ("everything", 3), ("no checkpoint", 3)])
def test_a_layers_own_policy_says_what_is_kept(policy, kept, unroll):
    """Arrays of the size of five carries that the gradient has of the forward pass: the carries, and what is named."""
    jax = importlib.import_module("jax")
    residuals = importlib.import_module("jax._src.ad_checkpoint").saved_residuals
    name, policies = importlib.import_module("jax.ad_checkpoint").checkpoint_name, jax.checkpoint_policies
    stack = loaded("jax_scan")

    def layer(c, p):
        return jax.numpy.sin(name(jax.numpy.sin(c) * p, "a")), None

    choices = {
        "nothing": policies.nothing_saveable,
        "a name": policies.save_only_these_names("a"),
        "everything": policies.everything_saveable,
    }
    wrapped = jax.checkpoint(layer, policy=choices[policy]) if policy in choices else layer
    w, x = jax.numpy.linspace(0.5, 1.0, 5), jax.numpy.ones(7)
    stacked = [
        shape for shape, _ in residuals(lambda w, x: stack.scan_layers(wrapped, w, x, unroll=unroll)[0].sum(), w, x)
    ]
    assert sum(a.shape == (5, 7) for a in stacked) == kept
    gradient = jax.grad(lambda w: stack.scan_layers(wrapped, w, x, unroll=unroll)[0].sum())(w)
    right = jax.grad(lambda w: stack.unroll_layers(layer, w, x)[0].sum())(w)
    np.testing.assert_allclose(gradient, right, rtol=1e-5)


# Nothing at all.


@each_option
@pytest.mark.parametrize("N", [0, 1, 3])
@pytest.mark.parametrize("jit", [True, False], ids=["", "disable_jit"])
def test_arrays_of_no_elements_and_stacks_of_no_layers(N, jit, options):
    jax = importlib.import_module("jax")
    jnp, stack = jax.numpy, loaded("jax_scan")
    params, init = {"w": jnp.ones((N, 3)) * 2, "none": jnp.ones((N, 0))}, {"a": jnp.ones(3), "none": jnp.zeros((0, 2))}

    def layer(c, p):
        return {"a": c["a"] * p["w"], "none": c["none"]}, (p["none"], jnp.zeros((2, 0)), c["a"])

    with contextlib.nullcontext() if jit else jax.disable_jit():
        carry, ys = stack.scan_layers(layer, params, init, **options)
        cotangents = jax.tree.map(jnp.ones_like, (carry, ys))
        _, (dparams, dinit, _) = stack.vjp_layers(layer, params, init, cotangents=cotangents, **options)
        _, (tangent, _) = stack.jvp_layers(layer, params, init, tangents=(None, init, None), **options)
    assert carry["a"].tolist() == [2.0**N] * 3
    assert [y.shape for y in ys] == [(N, 0), (N, 2, 0), (N, 3)]
    assert ys[2].tolist() == [[2.0**i] * 3 for i in range(N)]
    assert dparams["none"].shape == (N, 0)
    assert dinit["none"].shape == (0, 2)
    assert dinit["a"].tolist() == [2.0 ** (N + 1) - 1] * 3  # of the carry 2^N, of each y 2^i
    assert tangent["a"].tolist() == [2.0**N] * 3


def test_the_dense_stack_of_no_layers_without_jit():
    jax = importlib.import_module("jax")
    with jax.disable_jit():
        found = loaded("jax_scan").scan_apply_layers(jax.numpy.ones((0, 3, 3)), jax.numpy.arange(3.0))
    assert found.tolist() == [0, 1, 2]


# What XLA on the CPU makes of a layer in a loop.


def orders_of_convolutions(layer):
    """Of which axes, in the compiled gradient of three layers, of params {conv1, conv2}, and of x [2, 6, 6, 4]."""
    jax = importlib.import_module("jax")
    stack, w = loaded("jax_scan"), jax.numpy.ones((3, 3, 3, 4, 4), "float32")
    run = jax.jit(jax.grad(lambda w, x: (stack.scan_layers(layer, w, x)[0] ** 2).sum(), (0, 1)))
    return set(
        re.findall(r"dim_labels=(\S+?),", run.lower(w, jax.numpy.ones((2, 6, 6, 4), "float32")).compile().as_text())
    )


def test_a_convolution_is_differentiated_alike_on_every_platform(monkeypatch):
    """Not on the CPU, by JAX's own rules: gradients, tangents, Hessian products, equal because all are integers."""
    jax = importlib.import_module("jax")
    conv, draw = importlib.import_module("jax_scan.layers")._conv, np.random.default_rng(0).integers
    (x, tx), (w, tw) = (jax.numpy.asarray(draw(-3, 4, (2, *s)), "float32") for s in ((2, 5, 6, 3), (3, 3, 3, 4)))
    gradient = jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))

    def found():
        return jax.tree.leaves((gradient(x, w), jax.jvp(conv, (x, w), (tx, tw)), jax.jvp(gradient, (x, w), (tx, tw))))

    here = found()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for a, b in zip(found(), here, strict=True):
        np.testing.assert_array_equal(a, b)


def test_convolutions_of_a_gradient_in_a_loop_are_in_the_order_that_is_fast():
    conv = importlib.import_module("jax_scan.layers")._conv
    assert orders_of_convolutions(lambda c, w: (conv(c, w), None)) == {"b01f_01io->b01f"}


@raw("XLA brings convolutions into order outside of loops alone: https://github.com/jax-ml/jax/issues/12868")
def test_jax_alone_has_others():
    lax, order = importlib.import_module("jax").lax, ("NHWC", "HWIO", "NHWC")
    layer = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=order)
    assert orders_of_convolutions(lambda c, w: (layer(c, w), None)) == {"b01f_01io->b01f"}


def test_an_activation_is_kept_as_its_argument():
    """Without the value, of which no gradient is asked for here. JAX alone keeps something of each step of gelu."""
    jax = importlib.import_module("jax")
    stack = loaded("jax_scan")
    params = jax.tree.map(jax.numpy.asarray, layer_params("mlp", 0, 3, d=4, f=10))
    _, pull = jax.vjp(lambda c: stack.scan_layers(stack.LAYERS["mlp"], params, c)[0], jax.numpy.ones((2, 4), "float32"))
    assert sum(a.shape == (3, 2, 10) for a in jax.tree.leaves(pull)) == 1  # of params the gradient is not asked for
