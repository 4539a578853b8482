"""What torch compiles and keeps where a stack is called as it stands: by what the layer is made of, and open in sizes.

Programs are counted as Dynamo captures them; `test_by_inductor` is the sibling that compiles them as users do.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from typing import Any

import pytest

from reference.made_of import Kept
from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("eager")  # which program serves which call is the question here


@pytest.fixture
def torch_compile(monkeypatch):
    module = loaded("torch_compile")
    monkeypatch.setattr(importlib.import_module("torch_compile.programs"), "_programs", Kept(128))
    return module


def kept():
    return importlib.import_module("torch_compile.programs")._programs


def captured():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@dataclasses.dataclass
class Scaled:
    """A layer without a hash, whose value may change."""

    scale: float

    def __call__(self, c, p):
        return c * p * self.scale, None

    def method(self, c, p):
        return self(c, p)


@functools.cache
def a_module():
    import torch

    class Module(torch.nn.Module):
        def forward(self, c, p):
            return c * p * self.scale, None

    return Module()


def changed_module(scale):
    a_module().scale = scale
    return a_module()


SCALE = 1.0


def reads_a_global(c, p):
    return c * p * SCALE, None


def of_a_global(scale):
    global SCALE
    SCALE = scale
    return reads_a_global


CHANGED = Scaled(1.0)


def changed(scale):
    CHANGED.scale = scale
    return CHANGED


LAYERS = {
    "lambda": lambda scale: lambda c, p: (c * p * scale, None),
    "default": lambda scale: lambda c, p, scale=scale: (c * p * scale, None),
    "dataclass": Scaled,
    "one object": changed,
    "bound method": lambda scale: Scaled(scale).method,
    "partial": lambda scale: functools.partial(lambda scale, c, p: (c * p * scale, None), scale),
    "list": lambda scale: lambda c, p, scales=[scale]: (c * p * scales[0], None),
    "global": of_a_global,
    "one module": changed_module,
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_value_is_that_of_the_call_and_an_equal_layer_finds_its_program(torch_compile, kind):
    import torch

    w, x, before = torch.ones(2), torch.ones(1), captured()
    for scale in (2.0, 3.0) * 3:
        y, _ = torch_compile.scan_layers(LAYERS[kind](scale), w, x)
        assert y.item() == scale**2
    assert captured() - before == 2


def test_more_values_than_torch_keeps_programs_in_one_object(torch_compile):
    import torch

    rate = torch.ones(1)
    for scale in range(20):  # torch's limit is 8
        y, _ = torch_compile.scan_layers(lambda c, p, scale=scale: (c * p * scale * rate, None), torch.ones(2), rate)
        assert y.item() == scale**2


def test_values_that_only_torch_sees(torch_compile):
    """Of an object of an installed package, attributes deep within are checked at each call by Dynamo."""
    import torch

    module: Any = torch.nn.Dropout(0.0).eval()
    for scale in range(12):
        module.scale = float(scale)
        y, _ = torch_compile.scan_layers(
            lambda c, p: (module(c * p) * module.scale, None), torch.ones(2), torch.ones(1)
        )
        assert y.item() == scale**2


def test_more_layers_than_torch_makes_programs_of_one_code(torch_compile):
    import torch

    with torch._dynamo.config.patch(accumulated_recompile_limit=4):  # as it comes 256
        for scale in range(8):
            layer = lambda c, p, scale=scale: (c * p * scale, None)  # noqa: E731
            assert torch_compile.scan_layers(layer, torch.ones(2), torch.ones(1))[0].item() == scale**2


def test_a_layer_is_looked_at_once(torch_compile, monkeypatch):
    import torch

    looks, counted = importlib.import_module("torch_compile.looks"), []
    look = looks._eagerly

    def counting(*given):
        counted.append(given)
        return look(*given)

    monkeypatch.setattr(looks, "_eagerly", counting)
    monkeypatch.setattr(looks, "_looks", Kept(128))
    for i in range(5):
        w, x, mask = torch.full((2, 3), 2.0), torch.full((3,), float(i)), torch.ones(3)
        y, _ = torch_compile.scan_layers(lambda c, p, mask=mask: (c * p * mask, None), w, x)
        assert y.tolist() == [4.0 * i] * 3
    assert len(counted) == 1
    with pytest.raises(ValueError, match="carry: expected"):  # what is new to Dynamo is looked at again
        torch_compile.scan_layers(lambda c, p, mask=mask: (c * p * mask, None), torch.ones(2, 1, 3), torch.ones(3))
    assert len(counted) == 2


def becomes(part):
    """(a layer of one part that `made_of` does not see, the part), and what is wrong of it with remat."""
    import torch

    outside = torch.zeros(3)
    hidden: Any = torch.nn.Identity()
    hidden.part = "plain"

    def layer(c, p):
        c = torch.tanh(c * p)
        if hidden.part == "writes":
            outside.copy_(c)
        if hidden.part == "draws":
            c = torch.dropout(c, 0.5, True)
        y = {"one more y": c * 2, "of integers": (c * 3).int()}.get(hidden.part)
        return c[:1] if hidden.part == "another shape" else c, y

    return layer, hidden, outside


@pytest.mark.parametrize("part", ["one more y", "of integers", "another shape", "writes", "draws"])
def test_a_layer_that_changes_where_only_torch_sees_it_is_looked_at_again(torch_compile, part):
    """Also where both have programs already."""
    import torch

    layer, hidden, outside = becomes(part)
    for now in ("plain", "plain", part, "plain", part):
        hidden.part = now
        w, x = torch.full((4, 3), 0.5, requires_grad=True), torch.ones(3)
        if now in ("another shape", "writes", "draws"):
            with pytest.raises((TypeError, ValueError), match=r"(carry|layer): expected"):
                torch_compile.scan_layers(layer, w, x, remat=True)
            assert not outside.any()
            continue
        result, twin = (scan(layer, w, x) for scan in (torch_compile.scan_layers, torch_compile.unroll_layers))
        torch.testing.assert_close(result, twin)
        gradients = [torch.autograd.grad(y.sum(), w)[0] for y, _ in (result, twin)]
        torch.testing.assert_close(*gradients)


def test_a_module_that_is_frozen_and_trained_again(torch_compile):
    """A layer closes over it: Dynamo does not see of a module's parameter that it requires a gradient now."""
    import torch

    module, w, x = torch.nn.Linear(3, 3), torch.ones(4, 3), torch.ones(3)
    for is_trained in (False, True, False, True):
        module.requires_grad_(is_trained)
        y, twin = (
            scan(lambda c, p: (torch.tanh(module(c) * p), None), w, x)[0]
            for scan in (torch_compile.scan_layers, torch_compile.unroll_layers)
        )
        torch.testing.assert_close(y, twin)
        assert y.requires_grad == is_trained
        if is_trained:
            gradients = [torch.autograd.grad(a.sum(), list(module.parameters())) for a in (y, twin)]
            torch.testing.assert_close(*gradients)


def test_an_array_that_a_layer_reads_is_an_argument_of_its_program(torch_compile):
    import torch

    before = captured()
    for scale in range(12):
        mask = torch.full((1,), float(scale))
        y, _ = torch_compile.scan_layers(lambda c, p, mask=mask: (c * p * mask, None), torch.ones(2), torch.ones(1))
        assert y.item() == scale**2
    assert captured() - before == 1


def test_programs_are_bounded_in_number(torch_compile, monkeypatch):
    import torch

    monkeypatch.setattr(kept(), "most", 3)
    for scale in range(6):
        torch_compile.scan_layers(lambda c, p, scale=scale: (c * p * scale, None), torch.ones(2), torch.ones(1))
    assert len(kept()) == 3


def of_sizes(torch_compile, B, T):
    """Whether vjp_layers of a batch B of length T is the loop's."""
    import torch

    draw = torch.Generator().manual_seed(B * 16 + T)
    w, x, xs = (torch.randn(*size, generator=draw) / 2 for size in ((3, 4, 4), (B, T, 4), (3, B, T, 4)))
    layer = lambda c, p, x: (torch.tanh(c @ p + x), c.sum((0, 1)))  # noqa: E731
    ones = torch.ones(B, T, 4), torch.ones(3, 4)
    (carry, ys), gradients = torch_compile.vjp_layers(layer, w, x, xs, cotangents=ones)
    leaves = [a.clone().requires_grad_() for a in (w, x, xs)]
    twin = torch_compile.unroll_layers(layer, *leaves)
    right = torch.autograd.grad([a.sum() for a in twin], leaves)
    for a, b in zip((carry, ys, *gradients), (*twin, *right), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


def test_many_batches_and_lengths_are_a_few_programs(torch_compile):
    before = captured()
    for B, T in itertools.product((1, 2, 3, 5, 8), (2, 3, 7)):
        of_sizes(torch_compile, B, T)
    # each way one for the first sizes, one with an open length, and with an open batch one for 1 and one for the others
    assert captured() - before <= 10


@pytest.mark.torch_backend("inductor")
def test_by_inductor(torch_compile):
    before = captured()
    for B, T in ((2, 5), (3, 5), (4, 6), (5, 8), (2, 9)):
        of_sizes(torch_compile, B, T)
    assert captured() - before <= 6


@pytest.mark.torch_backend("inductor")
def test_the_gradient_has_the_kernels_of_one_layer(torch_compile, monkeypatch):
    """And four of counters: a product is copied into its row without one, which would take a second to build."""
    import torch

    def layer(c, p):
        return torch.tanh(c @ p["up"]) @ p["down"], None

    written = set()
    kernels = importlib.import_module("torch._inductor.async_compile").AsyncCompile
    build = kernels.cpp_pybinding

    def noted(*given, **options):
        written.add(given[2])
        return build(*given, **options)

    monkeypatch.setattr(kernels, "cpp_pybinding", noted)
    params, x = {"up": torch.ones(3, 4, 6), "down": torch.ones(3, 6, 4)}, torch.ones(5, 4)
    found = []
    for run, leaves in (
        (lambda p, x: torch_compile.scan_layers(layer, p, x)[0], params),
        (lambda p, x: layer(x, p)[0], {name: p[0] for name, p in params.items()}),
    ):
        leaves = {name: p.clone().requires_grad_() for name, p in leaves.items()}
        torch.compile(run, fullgraph=True)(leaves, x.clone().requires_grad_()).sum().backward()
        found.append(len(written))
        written.clear()
    assert found[0] <= found[1] + 4
