"""Defects of PyTorch 2.13 that the stack here must not share: each shown raw, beside the stack that is right.

A raw one is a strict xfail, so that a fix upstream is noticed.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

from reference import cases
from reference.stack import apply_layers_vjp
from tests.conftest import loaded, raw


def as_users_compile():
    return importlib.import_module("torch_compile.alternatives").as_it_comes  # without the options that we set


CASE = cases.case("orthogonal_3x7", "float32")
EXPECTED = apply_layers_vjp(CASE.weights, CASE.x, np.ones_like(CASE.x))[2]


# torch 2.13, Inductor: a broadcast cotangent.


def gradient_of_sum(apply) -> np.ndarray:
    """dx of `apply(weights, x).sum()` compiled as one: its cotangent is a scalar, broadcast with stride 0."""
    torch_compile = loaded("torch_compile")
    weights, x, _ = map(torch_compile.from_numpy, CASE.inputs)
    x.requires_grad_()
    as_users_compile()(lambda weights, x: apply(weights, x).sum())(weights, x).backward()
    return torch_compile.to_numpy(x.grad)


def test_gradient_of_sum():
    np.testing.assert_allclose(gradient_of_sum(loaded("torch_compile").scan_apply_layers), EXPECTED, atol=1e-5)


@raw("torch 2.13: Inductor's scan misreads a stride of 0")
def test_gradient_of_sum_by_the_operator_itself():
    np.testing.assert_allclose(
        gradient_of_sum(loaded("torch_compile").ALTERNATIVES["raw scan"][0]), EXPECTED, atol=1e-5
    )


# torch 2.13, Inductor: a parameter shared by all layers, in a stack that is used several times.


def gradient_of_shared(stack, uses):
    """The gradient of b, all ones, of |y|^2 / 2, where y is `uses` stacks of 3 layers `carry * w * b` of all ones."""
    torch_compile = loaded("torch_compile")
    w, x, b = (torch_compile.from_numpy(np.ones(shape, np.float32)) for shape in ((3, 4), (4,), (4,)))
    b.requires_grad_()

    def loss(w, x, b):
        for _ in range(uses):
            x = stack(w, x, b)
        return x.square().sum() / 2

    as_users_compile()(loss)(w, x, b).backward()
    return torch_compile.to_numpy(b.grad).tolist()


def shared_by_scan_layers():
    scan_layers = loaded("torch_compile").scan_layers
    return lambda w, x, b: scan_layers(lambda c, p: (c * p[0] * p[1], None), (w, b.expand(3, 4)), x)[0]


def shared_by_the_operator(w, x, b):
    from torch._higher_order_ops.scan import scan

    return scan(lambda c, w: (c * w * b, c.new_zeros(())), x, w)[0]


@pytest.mark.parametrize("uses", [1, 2])
def test_gradient_of_a_shared_parameter(uses):
    assert gradient_of_shared(shared_by_scan_layers(), uses) == [3 * uses] * 4


@raw("torch 2.13: Inductor multiplies the gradient by the number of uses, pytorch#153679")
def test_gradient_of_a_shared_parameter_by_the_operator_itself():
    loaded("torch_compile")
    import torch

    with torch._functorch.config.patch(donated_buffer=True):  # as torch has it; torch_compile turns it off
        found = gradient_of_shared(shared_by_the_operator, 2)
    assert found == [3 * 2] * 4


def test_one_use_of_the_operator_is_right():
    """So it is the second use that breaks it."""
    loaded("torch_compile")
    import torch

    with torch._functorch.config.patch(donated_buffer=True):
        assert gradient_of_shared(shared_by_the_operator, 1) == [3] * 4


# torch 2.13, Inductor: a layer that keeps its own output for the derivative.


def gradient_of_tanh(stack):
    """dx of 3 layers tanh(carry * w)."""
    torch_compile = loaded("torch_compile")
    w, x = torch_compile.from_numpy(np.full((3, 4), 0.5)), torch_compile.from_numpy(np.arange(4.0))
    x.requires_grad_()
    as_users_compile()(lambda w, x: stack(w, x).square().sum())(w, x).backward()
    return torch_compile.to_numpy(x.grad)


def tanh_by_hand():
    y, slope = np.arange(4.0), np.ones(4)
    for _ in range(3):
        y = np.tanh(y * 0.5)
        slope = slope * 0.5 * (1 - y**2)
    return 2 * y * slope


def test_gradient_of_tanh():
    scan_layers = loaded("torch_compile").scan_layers

    def stack(w, x):
        return scan_layers(lambda c, w: ((c * w).tanh(), None), w, x)[0]

    np.testing.assert_allclose(gradient_of_tanh(stack), tanh_by_hand(), rtol=1e-12)


@raw("torch 2.13: scan might be aliasing the input or the output, pytorch#195977")
def test_gradient_of_tanh_by_the_operator_itself():
    from torch._higher_order_ops.scan import scan

    def stack(w, x):
        return scan(lambda c, w: ((c * w).tanh(), c.new_zeros(())), x, w)[0]

    # this failure, and no other
    assert "scan might be aliasing the input or the output" not in failure(gradient_of_tanh, stack)


def failure(run, *args) -> str:
    """The words of the exception that `run` raises; none for none."""
    try:
        run(*args)
    except Exception as error:
        return str(error)
    return ""


# torch 2.13: the derivative of forward mode.


def torch_and_inputs():
    loaded("torch_compile")
    torch = importlib.import_module("torch")
    draw = torch.Generator().manual_seed(0)
    return torch, *(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((1, 4, 4), (3, 4)))


def layer_wrong_twice(name):
    torch, *_ = torch_and_inputs()
    functional, linalg = torch.nn.functional, torch.linalg
    return {
        "layer norm": lambda c, w: (functional.layer_norm(c @ w, (4,)), None),
        "batch norm": lambda c, w: (functional.batch_norm(c @ w, None, None, training=True), None),
        "det": lambda c, w: (c @ w * linalg.det(w), None),
        "slogdet": lambda c, w: (c @ w * linalg.slogdet(w)[1], None),
        "solve": lambda c, w: (linalg.solve_ex(w, c.mT)[0].mT, None),
    }[name]


wrong_twice = pytest.mark.parametrize("name", ["layer norm", "batch norm", "det", "slogdet", "solve"])


@wrong_twice
@raw("torch 2.13: what an operation keeps for its derivative is constant to that of its forward mode")
def test_a_hessian_product_by_the_gradient_of_the_jvp_itself(name):
    (torch, w, x), layer = torch_and_inputs(), layer_wrong_twice(name)
    loss = lambda w: torch.sin(layer(x, w[0])[0]).sum()  # noqa: E731
    found = torch.func.grad(lambda w: torch.func.jvp(loss, (w,), (w,))[1])(w)
    _, pullback = torch.func.vjp(torch.func.grad(loss), w)
    torch.testing.assert_close(found, *pullback(w))


@pytest.mark.parametrize("compiled", [False, True])
@wrong_twice
def test_a_hessian_product_that_would_be_wrong_is_refused(name, compiled):
    (torch, w, x), layer, hvp_layers = torch_and_inputs(), layer_wrong_twice(name), loaded("torch_compile").hvp_layers
    run = lambda w, x: hvp_layers(layer, lambda c, _: torch.sin(c).sum(), w, x, tangents=(w, x, None))  # noqa: E731
    with pytest.raises(TypeError, match="layer: expected operations whose second derivative is right, got aten"):
        (torch.compile(run, backend="eager") if compiled else run)(w, x)


# torch 2.13, Inductor: a carry that is a piece of a concatenation, 24 bytes from where that begins.


def piece(c):
    import torch

    return torch.cat([torch.tanh(c), torch.sin(c)])[3:]


def sin_of_sin_compiled(stack):
    """`stack(x)` of two layers `piece`, and its gradient, compiled as users do; beside what they are."""
    torch_compile, x = loaded("torch_compile"), np.array([1.0, 2.0, 3.0])
    torch = importlib.import_module("torch")
    torch._dynamo.reset()
    given = torch_compile.from_numpy(x).requires_grad_()
    y = torch.compile(stack)(given)
    np.testing.assert_allclose(y.detach(), np.sin(np.sin(x)), rtol=1e-14)
    y.sum().backward()
    np.testing.assert_allclose(given.grad, np.cos(np.sin(x)) * np.cos(x), rtol=1e-14)


def test_a_carry_that_is_a_piece():
    torch_compile, nothing = loaded("torch_compile"), importlib.import_module("torch").zeros(2, 0)
    sin_of_sin_compiled(lambda x: torch_compile.scan_layers(lambda c, _: (piece(c), None), nothing, x)[0])


@raw("torch 2.13: Inductor asserts that a carry begins at a multiple of 16 bytes, and puts it elsewhere")
def test_a_carry_that_is_a_piece_by_the_operator_itself(monkeypatch):
    primitive = importlib.import_module("torch_compile.primitive")
    for operator, lowered in primitive.as_inductor_has_them.items():
        monkeypatch.setitem(primitive.lowerings, operator, lowered)
    import torch

    goes_on, step = (lambda i, _: i < 2), (lambda i, c: (i + 1, piece(c)))
    with torch.no_grad():
        torch.compile(lambda x: torch.while_loop(goes_on, step, (torch.tensor(0), x))[1])(torch.ones(3).double())


def test_what_a_compiled_stack_sets_is_set_back():
    torch_compile, primitive = loaded("torch_compile"), importlib.import_module("torch_compile.primitive")
    config = importlib.import_module("torch")._functorch.config
    primitive.let_inductor_count()
    assert (config.donated_buffer, primitive.lowerings[primitive.while_loop_op]) == (
        False,
        primitive.mended[primitive.while_loop_op],
    )
    assert primitive.rules_of_loop[primitive.FakeTensorMode] is not primitive.as_torch_has_it
    torch_compile.set_back()
    assert config.donated_buffer
    assert primitive.rules_of_loop[primitive.FakeTensorMode] is primitive.as_torch_has_it
    for operator, lowered in primitive.as_inductor_has_them.items():
        assert primitive.lowerings[operator] is lowered


def test_no_layer_runs_once_more_for_the_shapes_of_a_loop(monkeypatch):
    """torch has the body of a loop run for them, several times while this is compiled. A loop of the user's that
    carries what is not in order in memory, it still has."""
    torch_compile, primitive = loaded("torch_compile"), importlib.import_module("torch_compile.primitive")
    import torch

    asked: list[str] = []
    rule = primitive.as_torch_has_it

    def counted(*args):
        asked.append("once more")
        return rule(*args)

    monkeypatch.setattr(primitive, "as_torch_has_it", counted)
    weights, x = torch.ones(2, 3, 3).requires_grad_(), torch.ones(3)
    torch.compile(lambda w, x: torch_compile.scan_layers(lambda c, w: (torch.tanh(w @ c), c), w, x)[0].sum())(
        weights, x
    ).backward()
    assert asked == []
    transposed = torch.compile(
        lambda x: torch.while_loop(lambda i, _: i < 3, lambda i, c: (i + 1, c + i), (torch.tensor(0), x.t()))[1]
    )
    square = torch.arange(9.0).reshape(3, 3)
    assert torch.equal(transposed(square), square.t() + 3)
    assert transposed(square).stride() == (1, 3)
    assert asked


# torch 2.13, Inductor's C++: carries that are equal, or whose cotangents are.


def test_equal_carries_and_cotangents():
    """(a, b) -> (s, s) with s = (a + b) * w, twice: 2 (a + b) w v. What goes wrong here ends the process."""
    torch_compile = loaded("torch_compile")
    w, a, b = map(torch_compile.from_numpy, (np.array([[2.0], [3.0]]), np.array([1.0]), np.array([4.0])))

    def layer(carry, w):
        both = (carry[0] + carry[1]) * w
        return (both, both), None

    assert [float(y) for y in torch_compile.scan_layers(layer, w, (a, b))[0]] == [60, 60]
    (_, (dw, (da, db), _)) = torch_compile.vjp_layers(layer, w, (a, b), cotangents=((a, 0 * a), None))
    assert (dw.flatten().tolist(), float(da), float(db)) == ([30, 20], 12, 12)


def test_equal_results_of_a_branch():
    torch_compile, torch = loaded("torch_compile"), importlib.import_module("torch")
    w, a = torch_compile.from_numpy(np.array([[2.0], [3.0]])), torch_compile.from_numpy(np.array([5.0]))

    def twice(a, w):
        product = a * w
        return product.clone(), product.clone()

    def layer(carry, w):
        return tuple(torch.cond(carry[1].sum() > 0, twice, twice, (carry[0], w))), None

    assert [float(y) for y in torch_compile.scan_layers(layer, w, (a, a))[0]] == [30, 30]


RETURNS_ONE_ARRAY_TWICE = """
import torch
goes_on, step = (lambda i, a, b: i < 2), (lambda i, a, b: (i + 1, (s := a + b).clone(), s.clone()))
run = lambda x: torch.while_loop(goes_on, step, (torch.tensor(0), x, 2 * x))[1]
with torch.no_grad():
    print(torch.compile(run, options={"cpp_wrapper": True})(torch.ones(3)))
"""


@pytest.mark.thorough
@raw("torch 2.13: Inductor's C++ hands over the one result of a body twice, the second time from nowhere")
def test_equal_carries_by_the_operator_itself():
    loaded("torch_compile")
    assert subprocess.run([sys.executable, "-c", RETURNS_ONE_ARRAY_TWICE], capture_output=True).returncode == 0
