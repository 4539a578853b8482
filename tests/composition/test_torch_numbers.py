"""Numbers that a layer of torch's has in it: arrays made of them, and floats from outside that change between calls."""

from __future__ import annotations

import pytest

from tests.conftest import loaded
from tests.support.torch_modules import torch


@pytest.fixture
def scan_layers():
    scan_layers = loaded("torch_compile").scan_layers
    torch()._dynamo.reset()
    return scan_layers


@pytest.mark.parametrize("form", ["as it stands", "in torch.compile"])
def test_an_array_that_a_layer_makes_of_numbers_by_hand(scan_layers, form):
    """Layers of 2 and 3, each of which swaps the places of a pair: (1, 10) is (20, 2) after one, (6, 60) after both.

    In the body of a loop Inductor takes no array of two axes, or of more than eight numbers, that is part of it."""

    def layer(carry, w):
        return w * carry @ torch().tensor([[0.0, 1.0], [1.0, 0.0]]), carry

    run = lambda w, x: scan_layers(layer, w, x)  # noqa: E731
    w, x = torch().tensor([2.0, 3.0], requires_grad=True), torch().tensor([1.0, 10.0])
    y, ys = (torch().compile(run) if form == "in torch.compile" else run)(w, x)
    (dw,) = torch().autograd.grad(y.sum(), w)
    assert (y.tolist(), ys.tolist(), dw.tolist()) == ([6, 60], [[1, 10], [20, 2]], [33, 22])


def assert_is_the_loop(stack, layer, w, x):
    def twin(w, x):
        for p in w.unbind():
            x, _ = layer(x, p)
        return x

    def gradients(run):
        leaves = [a.clone().requires_grad_() for a in (w, x)]
        y = run(*leaves)
        return [y, *torch().autograd.grad(y.square().sum(), leaves)]

    torch().testing.assert_close(gradients(stack), gradients(twin))


def making(scan_layers):
    tensor = torch().tensor
    table = [[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3], [4, 5, 6, 7]]
    turns = [[1j, 1, 1j, 1], [1, 1j, 1, -1j]]

    def complex_numbers(c, p):
        return torch().tanh(torch().view_as_real((c @ p) * tensor(turns, dtype=torch().complex128)).sum(-1)), None

    def in_a_stack(c, p):
        return scan_layers(lambda c, q: (torch().tanh(c @ c.new_tensor(table) / 10 + q), None), p, c)[0], None

    return {
        "indices": lambda c, p: ((c @ p).gather(1, tensor([[0, 1, 2, 3], [1, 0, 3, 2]])), None),
        "complex numbers": complex_numbers,
        "in a stack": in_a_stack,
    }


@pytest.mark.parametrize(
    ("name", "options"), [("indices", {"unroll": 2}), ("complex numbers", {"remat": True}), ("in a stack", {})]
)
def test_arrays_of_numbers_in_a_users_program(scan_layers, name, options):
    layer, draw = making(scan_layers)[name], torch().Generator().manual_seed(0)
    w, x = (torch().randn(shape, generator=draw, dtype=torch().float64) / 2 for shape in ((3, 4, 4), (2, 4)))
    assert_is_the_loop(torch().compile(lambda w, x: scan_layers(layer, w, x, **options)[0]), layer, w, x)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_float_from_outside_may_change_from_call_to_call(scan_layers, dynamic):
    """A temperature, say: at its second value torch would leave it open, which its loops do not take."""
    from torch_compile.edges import BACKEND

    scale = [0.5]
    layer = lambda c, p: (torch().tanh(c @ p) * scale[0], None)  # noqa: E731
    run = torch().compile(lambda w, x: scan_layers(layer, w, x)[0], backend=BACKEND, dynamic=dynamic)
    w, x = torch().full((3, 2, 2), 0.5, dtype=torch().float64), torch().ones(1, 2, dtype=torch().float64)
    for scale[0] in (0.5, 2.0, 3.0):
        assert_is_the_loop(run, layer, w, x)
