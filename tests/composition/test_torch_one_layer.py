"""PyTorch is told of a stack's shapes by one layer of it. What else one layer shows need not be so of N: where carries
move along, parameters reach a result after several layers alone, and a gradient leaves one layer as it came."""

from __future__ import annotations

import pytest

from tests.conftest import loaded

forms = pytest.mark.parametrize("form", ["as it stands", "torch.compile"])


def compiled(form, function):
    import torch

    return torch.compile(function) if form == "torch.compile" else function


@forms
@pytest.mark.parametrize(
    ("layer", "right"),
    [
        (lambda c, p: ((c[1], p + 0 * c[0], c[2]), None), [0, 0, 2, 0]),
        (lambda c, p: ((c[1], c[2], p + 0 * c[0]), None), [0, 2, 0, 0]),
        (lambda c, p: ((c[0] + c[1], c[1] + c[2], p + c[2]), None), [6, 2, 0, 0]),
    ],
    ids=["after two layers", "after three", "sums"],
)
def test_parameters_reach_a_result_after_several_layers(layer, right, form):
    """The first carry, of two numbers, by each of four parameters; what goes in asks for no gradient."""
    stack = loaded("torch_compile")
    import torch

    p, init = torch.ones(4, requires_grad=True), (torch.ones(2), torch.ones(2), torch.ones(2))
    total = compiled(form, lambda p: stack.scan_layers(layer, p, init)[0][0].sum())(p)
    assert torch.autograd.grad(total, p)[0].tolist() == right


@forms
@pytest.mark.parametrize("N", [1, 2, 3])
@pytest.mark.parametrize("last", ["a number", "an integer", "closed over"])
def test_a_gradient_that_one_layer_passes_on_is_not_that_of_more(last, N, form):
    """Of (a, b) -> (b, something else): b's gradient is that of a where N is 1, and else 0."""
    stack = loaded("torch_compile")
    import torch

    outside, p = torch.full((2,), 3.0), torch.arange(N)
    made = {"a number": lambda p: torch.ones(2), "an integer": lambda p: p.float().expand(2)}
    made["closed over"] = lambda p: outside

    def layer(c, p):
        return (c[1], made[last](p)), None

    def run(init, cotangents):
        return stack.vjp_layers(layer, p, init, cotangents=(cotangents, None))[1][1]

    da, db = compiled(form, run)((torch.ones(2), torch.ones(2)), (torch.full((2,), 5.0), torch.full((2,), 7.0)))
    assert (da.tolist(), db.tolist()) == ([0, 0], [5, 5] if N == 1 else [0, 0])


@forms
def test_the_gradients_of_one_array_by_two_names_are_two(form):
    """And what a layer closes over and returns has the sum of what it is asked for."""
    stack = loaded("torch_compile")
    import torch

    w, a, b = torch.full((2,), 3.0, requires_grad=True), torch.ones(2), torch.ones(2)

    def run(w):
        return stack.scan_layers(lambda c, p: ((c[1], w * p), None), torch.ones(4), (a, b))[0]

    x, y = compiled(form, run)(w)
    assert torch.autograd.grad((5 * x + 7 * y).sum(), w)[0].tolist() == [12, 12]


def test_integers_of_parameters_within_a_batch_of_gradients():
    """`torch.func` wants one result at least that can have a derivative: here there is none, and zeros."""
    stack = loaded("torch_compile")
    import torch

    def gradient(p):
        return stack.vjp_layers(lambda c, p: (c + 1, None), p, torch.tensor([1, 2]), cotangents=(None, None))[1][0]

    assert torch.func.vmap(gradient)(torch.ones(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
