"""Layers as users of torch write them: dropout, batch norm, complex numbers, derivatives of their own, checkpoints.

Each in a stack called as it stands and in a plain `torch.compile`, against the loop in plain Python. Programs stop
short of Inductor, except in those tests that say so.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("aot_eager")
by_inductor = pytest.mark.torch_backend("inductor")
FORMS = pytest.mark.parametrize("form", ["as it stands", "in torch.compile"])


@pytest.fixture
def torch_compile():
    return loaded("torch_compile")


def test_a_value_that_a_layer_closes_over_by_hand(torch_compile):
    """Layers of 2 and 3, each times 10, make 600 of 1: the gradient of the 10 is that of 6 * 10^2."""
    import torch

    w, scale = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor(10.0, requires_grad=True)
    y, _ = torch_compile.scan_layers(lambda c, p: (c * p * scale, None), w, torch.tensor(1.0))
    dw, dscale = torch.autograd.grad(y, (w, scale))
    assert (y.item(), dw.tolist(), dscale.item()) == (600, [300, 200], 120)


def in_form(form, function):
    import torch

    from torch_compile import edges

    torch._dynamo.reset()
    return torch.compile(function, backend=edges.BACKEND) if form == "in torch.compile" else function


def arrays(*shapes, dtype=None):
    import torch

    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=draw, dtype=dtype or torch.float64) / 2 for shape in shapes]


def loop(layer, w, x):
    for p in w.unbind():
        x, _ = layer(x, p)
    return x


def gradients(function, *arrays):
    import torch

    leaves = [a.clone().requires_grad_() for a in arrays]
    y = function(*leaves)
    y = torch.view_as_real(y) if y.is_complex() else y
    return torch.autograd.grad(y.square().sum(), leaves)


def assert_same(found, right):
    import torch

    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b)


def same_gradients(torch_compile, form, layer, w, x, **options):
    def stack(w, x):
        return torch_compile.scan_layers(layer, w, x, **options)[0]

    assert_same(gradients(in_form(form, stack), w, x), gradients(lambda w, x: loop(layer, w, x), w, x))


# What a layer draws or writes.


def drawing():
    import torch
    from torch.nn import functional as F

    drop, scan_layers = torch.nn.Dropout(0.5), loaded("torch_compile").scan_layers
    return {
        "a module": lambda c, p: (drop(c @ p), None),
        "a function": lambda c, p: (c @ p * torch.rand_like(c), None),
        "attention": lambda c, p: (F.scaled_dot_product_attention(c[None], c[None], p[None], dropout_p=0.5)[0], None),
        "in a stack": lambda c, p: (
            scan_layers(lambda c, q: (drop(c * q), None), p, c)[0],
            None,
        ),
    }


@FORMS
@pytest.mark.parametrize(
    ("name", "remat"),
    [(name, True) for name in ("a module", "a function", "attention", "in a stack")] + [("a module", 2)],
)
def test_a_layer_that_draws_is_refused_where_it_would_draw_again(torch_compile, remat, name, form):
    layer, (w, x) = drawing()[name], arrays((3, 4, 4), (4, 4))
    run = in_form(form, lambda w, x: torch_compile.scan_layers(layer, w, x, remat=remat)[0])
    with pytest.raises(TypeError, match=r"layer: expected no random numbers and no state .* got aten\..*layer_keys"):
        gradients(run, w, x)
    assert run(w, x).shape == x.shape  # without a gradient it draws once
    with pytest.raises(TypeError, match="layer: expected no random numbers"):
        torch_compile.vjp_layers(layer, w, x, cotangents=(x, None), remat=remat)


def masking(name):
    """Layers that multiply by a mask of 0 and 2, which ys show."""
    import torch
    from torch.nn import functional as F

    drop, scan_layers = torch.nn.Dropout(0.5), loaded("torch_compile").scan_layers

    def in_a_stack(c, p):
        dropped, _ = scan_layers(lambda c, _: (drop(c), None), p[None], c)
        return dropped * p, dropped * p

    return {
        "a module": lambda c, p: (drop(c) * p,) * 2,
        "a function": lambda c, p: (F.dropout(c, 0.5) * p,) * 2,
        "drawn": lambda c, p: (c * (torch.rand_like(c) > 0.5) * 2 * p,) * 2,
        "in a stack": in_a_stack,
    }[name]


@FORMS
@pytest.mark.parametrize(
    ("name", "unroll"), [(name, 1) for name in ("a module", "a function", "drawn", "in a stack")] + [("in a stack", 2)]
)
def test_the_gradient_is_that_of_the_masks_of_the_forward_pass(torch_compile, unroll, name, form):
    gradient_of_masks(in_form(form, lambda w, x: torch_compile.scan_layers(masking(name), w, x, unroll=unroll)))


@by_inductor
@pytest.mark.parametrize("name", [pytest.param("a module", marks=pytest.mark.thorough), "in a stack"])
def test_the_gradient_is_that_of_the_masks_by_inductor(torch_compile, name):
    gradient_of_masks(in_form("in torch.compile", lambda w, x: torch_compile.scan_layers(masking(name), w, x)))


def gradient_of_masks(stack):
    import torch

    w, x = (a.abs() + 0.1 for a in arrays((3, 5, 40), (5, 40)))
    w, x = w.requires_grad_(), x.requires_grad_()
    y, ys = stack(w, x)
    found = torch.autograd.grad(y.square().sum(), (w, x))
    masks, c, right = [], x.detach(), x
    for each, p in zip(ys.detach(), w.unbind(), strict=True):
        masks.append(torch.where(c == 0, 0, each / (c * p.detach())).round())
        c, right = each, right * masks[-1] * p
    assert {0.0, 2.0} == set(torch.stack(masks).unique().tolist())
    assert not torch.equal(masks[0], masks[1])
    assert_same([y, *found], [right, *torch.autograd.grad(right.square().sum(), (w, x))])


@FORMS
def test_what_could_draw_and_does_not_has_its_gradient(torch_compile, form):
    import torch
    from torch.nn import functional as F

    drop, (w, x) = torch.nn.Dropout(0.5).eval(), arrays((3, 4, 4), (4, 4))

    def layer(c, p):
        attended = F.scaled_dot_product_attention(c[None], c[None], (c @ p)[None])[0]  # dropout_p is 0
        return drop(F.dropout(attended, 0.5, training=False)), None

    same_gradients(torch_compile, form, layer, w, x)


def writing():
    import torch
    from torch.nn import functional as F

    calls, mean, var = torch.zeros(4), torch.zeros(4), torch.ones(4)
    norm = torch.nn.BatchNorm1d(4).requires_grad_(False)
    return {
        "a buffer": lambda c, p: (c @ p + calls.add_(1), None),
        "its carry": lambda c, p: (c.add_(1) @ p, None),
        "statistics": lambda c, p: (F.batch_norm(c @ p, mean, var, training=True), None),
        "a module": lambda c, p: (norm(c @ p), None),
    }


@FORMS
@pytest.mark.parametrize("name", ["a buffer", "its carry", "statistics", "a module"])
def test_a_layer_that_writes_is_refused(torch_compile, name, form):
    layer, (w, x) = writing()[name], arrays((3, 4, 4), (2, 4), dtype=loaded_torch().float32)
    run = in_form(form, lambda w, x: torch_compile.scan_layers(layer, w, x)[0])
    for function in (lambda: run(w, x), lambda: gradients(run, w, x)):
        with pytest.raises(TypeError, match="layer: expected arrays from outside left as they are, got aten"):
            function()


def loaded_torch():
    import torch

    return torch


@FORMS
def test_a_layer_may_write_into_what_it_has_made(torch_compile, form):
    w, x = arrays((3, 4, 4), (2, 4))
    same_gradients(torch_compile, form, lambda c, p: ((c @ p).add_(1).mul_(0.5), None), w, x)


@FORMS
@pytest.mark.parametrize("name", ["inv", "solve", "cholesky"])
def test_an_operation_that_looks_at_its_result_is_refused(torch_compile, name, form):
    """Its siblings look at none; compiled, the check has no place in the body of a loop."""
    linalg, (w, x) = loaded_torch().linalg, arrays((3, 4, 4), (2, 4))

    def layer(suffix):
        function = getattr(linalg, name + suffix)
        result = lambda *args: function(*args)[0] if suffix else function(*args)  # noqa: E731
        if name == "solve":
            return lambda c, p: (result(p, c.mT).mT, None)
        return lambda c, p: (c @ result(p @ p.mT + 1), None)

    same_gradients(torch_compile, form, layer("_ex"), w, x)
    run = in_form(form, lambda w, x: torch_compile.scan_layers(layer(""), w, x)[0])
    with pytest.raises(TypeError, match="layer: expected operations that do not look at their results, got aten"):
        run(w, x)


def test_the_run_without_values_leaves_nothing_in_a_users_program(torch_compile):
    """Its operations would run once more at every call, on memory that holds anything."""
    import torch
    from torch._dynamo.testing import EagerAndRecordGraphs

    w, x = arrays((3, 4, 4), (2, 4))
    torch._dynamo.reset()
    recorded, layer = EagerAndRecordGraphs(), lambda c, p: (torch.sin(c @ p), None)
    torch.compile(lambda w, x: torch_compile.scan_layers(layer, w, x)[0], backend=recorded)(w, x)
    outside = [str(node.target) for node in recorded.graphs[0].graph.nodes]
    assert not [target for target in outside if "sin" in target or "empty" in target]


# Complex numbers: pairs of real ones in the loop.


def complex_layers():
    import torch

    def rotary(c, p):  # a carry and params
        return c * torch.exp(1j * p["angle"]) + p["shift"], c.abs()

    def spectral(c, p):  # a real carry, complex ys
        z = torch.fft.rfft(c) * p["angle"]
        return torch.fft.irfft(z * p["shift"], n=4), z

    return rotary, spectral


@FORMS
@pytest.mark.parametrize("which", [0, 1], ids=["carry", "ys"])
@pytest.mark.parametrize("options", [{}, {"unroll": 2, "reverse": True}, {"remat": 2}], ids=str)
def test_complex_numbers(torch_compile, which, form, options):
    import torch

    layer, size = complex_layers()[which], (4, 3)[which]
    angle, real, imag, x = arrays((3, size), (3, size), (3, size), (4,))
    x = torch.complex(x, x.flip(0)) if which == 0 else x
    reverse = {"reverse": options.get("reverse", False)}

    def loss(scan, options, angle, shift, x):
        carry, ys = scan(layer, {"angle": angle, "shift": shift}, x, **options)
        return carry.abs().square().sum() + ys.abs().sum() + (ys.imag.sum() if ys.is_complex() else 0)

    inputs = angle, torch.complex(real, imag), x
    run = in_form(form, functools.partial(loss, torch_compile.scan_layers, options))
    right = functools.partial(loss, torch_compile.unroll_layers, reverse)
    assert_same(gradients(run, *inputs), gradients(right, *inputs))


def test_complex_numbers_by_inductor(torch_compile):
    import torch

    layer, (angle, real, imag, x) = complex_layers()[0], arrays((3, 4), (3, 4), (3, 4), (4,))
    inputs = angle, torch.complex(real, imag), torch.complex(x, x.flip(0))

    def stack(scan, angle, shift, x):
        return scan(layer, {"angle": angle, "shift": shift}, x)[0]

    run = torch.compile(functools.partial(stack, torch_compile.scan_layers))
    assert_same(gradients(run, *inputs), gradients(functools.partial(stack, torch_compile.unroll_layers), *inputs))


def test_transforms_of_complex_numbers(torch_compile):
    import torch

    layer, (angle, real, imag, x) = complex_layers()[0], arrays((3, 4), (3, 4), (3, 4), (2, 4))
    params, x = {"angle": angle, "shift": torch.complex(real, imag)}, torch.complex(x, x.flip(1))
    carry, ys = torch_compile.vmap_layers(layer, params, x)
    for i in range(2):
        right = torch_compile.unroll_layers(layer, params, x[i])
        assert_same((carry[i], ys[i]), right)
        run = lambda init: torch_compile.unroll_layers(layer, params, init)[0]  # noqa: E731
        _, (moved, _) = torch_compile.jvp_layers(layer, params, x[i], tangents=(None, x[1 - i], None))
        assert_same([moved], [torch.func.jvp(run, (x[i],), (x[1 - i],))[1]])
        _, (_, dinit, _) = torch_compile.vjp_layers(layer, params, x[i], cotangents=(x[1 - i], None))
        assert_same([dinit], torch.func.vjp(run, x[i])[1](x[1 - i]))


@FORMS
@pytest.mark.parametrize("options", [{}, {"remat": 2}], ids=str)
def test_a_complex_array_that_a_layer_closes_over(torch_compile, form, options):
    """A table of rotations, say. One that is to be trained is refused, and told how to be taken."""
    import torch

    (w, x), table = arrays((3, 4, 4), (2, 4)), torch.polar(torch.ones(2), torch.ones(2)).to(torch.complex128)

    def layer(table, c, p):
        return torch.view_as_real(torch.view_as_complex((c @ p).unflatten(1, (2, 2))) * table()).flatten(1), None

    same_gradients(torch_compile, form, functools.partial(layer, lambda: table), w, x, **options)
    trained = table.clone().requires_grad_()
    with pytest.raises(TypeError, match="what requires a gradient, got complex128; close over view_as_real of it"):
        in_form(form, lambda w, x: torch_compile.scan_layers(functools.partial(layer, lambda: trained), w, x)[0])(w, x)


# What a layer closes over.


def closing_over():
    """Ways to read arrays from outside: name -> (layer, arrays)."""
    import torch

    (scale, shift) = (a.requires_grad_() for a in arrays((4,), (4,)))
    module = torch.nn.Linear(4, 4, dtype=torch.float64)

    class Holder:
        def __init__(self):
            self.scale = scale

        def layer(self, c, p):
            return torch.tanh(c @ p) * self.scale, None

    return {
        "a closure": (lambda c, p: (torch.tanh(c @ p * scale) + shift, None), [scale, shift]),
        "a bound method": (Holder().layer, [scale]),
        "a partial": (functools.partial(lambda scale, c, p: (torch.sin(c @ p) * scale, None), scale), [scale]),
        "a module": (lambda c, p: (module(torch.tanh(c @ p)), None), [*module.parameters()]),
        "what is computed": (lambda c, p: (torch.tanh(c @ p) * doubled[0], None), [scale]),
        "one and a stack's": (lambda c, p: (torch.tanh(c @ p) * shift + c * shift.sum(), c @ p), [shift]),
    }, lambda: doubled.__setitem__(0, scale * 2)


doubled: list[Any] = [None]
CLOSED = ["a closure", "a bound method", "a partial", "a module", "what is computed", "one and a stack's"]


@FORMS
@pytest.mark.parametrize(
    ("name", "options"),
    [
        # what is closed over is found before any option counts: one way of it meets them all
        pytest.param(name, options, marks=pytest.mark.thorough() if options and name != "one and a stack's" else ())
        for name in CLOSED
        for options in ({}, {"remat": True}, {"remat": 2, "unroll": 2}, {"unroll": 2})
    ],
    ids=str,
)
def test_what_a_layer_closes_over_gets_its_gradient(torch_compile, options, name, form):
    closed_over(torch_compile, in_form(form, lambda f, *a: f(*a)), name, options)


@by_inductor
@pytest.mark.parametrize("name", [pytest.param("a bound method", marks=pytest.mark.thorough), "a module"])
def test_what_a_layer_closes_over_gets_its_gradient_by_inductor(torch_compile, name):
    closed_over(torch_compile, in_form("in torch.compile", lambda f, *a: f(*a)), name, {})


def closed_over(torch_compile, form, name, options):
    """Through two stacks that share it, beside a use of its own."""
    import torch

    layers, compute = closing_over()
    layer, closed = layers[name]
    w, x = (a.requires_grad_() for a in arrays((3, 4, 4), (2, 4)))

    def twice(scan, w, x):
        y, ys = scan(layer, w, x)
        z, _ = scan(layer, w.flip(0), y)
        return z.square().sum() + (0 if ys is None else ys.sum()) + closed[0].sum()

    def loss(w, x):
        return twice(lambda *a: torch_compile.scan_layers(*a, **options), w, x)

    compute()
    found = torch.autograd.grad(form(loss, w, x), (w, x, *closed))
    compute()
    assert_same(found, torch.autograd.grad(twice(torch_compile.unroll_layers, w, x), (w, x, *closed)))


@pytest.mark.parametrize("name", CLOSED)
def test_further_derivatives_by_what_a_layer_closes_over(torch_compile, name):
    import torch

    layers, compute = closing_over()
    layer, closed = layers[name]
    w, x = (a.requires_grad_() for a in arrays((3, 4, 4), (2, 4)))

    def second(scan):
        compute()
        first = torch.autograd.grad(scan(layer, w, x)[0].square().sum(), (w, x, *closed), create_graph=True)
        return [*first, *torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), (w, x, *closed))]

    assert_same(second(torch_compile.scan_layers), second(torch_compile.unroll_layers))


@FORMS
def test_torch_func_by_what_a_layer_closes_over(torch_compile, form):
    import torch

    (w, x), (scale,) = arrays((3, 4, 4), (2, 4)), arrays((4,))

    def loss(scan, scale, x):
        return scan(lambda c, p: (torch.tanh(c @ p) * scale, None), w, x)[0].square().sum()

    def of(transform):
        stack, twin = (
            functools.partial(loss, scan) for scan in (torch_compile.scan_layers, torch_compile.unroll_layers)
        )
        run = in_form(form, lambda *a: transform(stack)(*a))
        return run, transform(twin)

    for transform in (
        torch.func.grad,
        lambda f: torch.func.vmap(torch.func.grad(f), (None, 0)),
        lambda f: lambda a, x: torch.func.jvp(f, (a, x), (a, x))[1],
    ):
        found, right = of(transform)
        assert_same([found(scale, x)], [right(scale, x)])
    if form == "as it stands":
        with torch.autograd.forward_ad.dual_level():
            moved = torch.autograd.forward_ad.make_dual(scale, scale)
            found, right = (
                torch.autograd.forward_ad.unpack_dual(loss(scan, moved, x)).tangent
                for scan in (torch_compile.scan_layers, torch_compile.unroll_layers)
            )
        assert_same([found], [right])


# The user's own derivative.


@functools.cache
def rule(has_jvp, is_legacy):
    """The identity with a derivative of 2, so that it can be told from that of its forward code."""
    import torch

    class Twice(torch.autograd.Function):
        if is_legacy:

            @staticmethod
            def forward(ctx, x):
                return x.clone()
        else:

            @staticmethod
            def forward(x):  # type: ignore[misc]
                return x.clone()

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

        @staticmethod
        def backward(ctx, cotangent):
            return 2 * cotangent

        if has_jvp:

            @staticmethod
            def jvp(ctx, tangent):
                return 2 * tangent

    return Twice


@FORMS
@pytest.mark.parametrize("of", ["carry", "params"])
@pytest.mark.parametrize(("has_jvp", "is_legacy"), [(False, False), (False, True), (True, False)])
def test_a_derivative_of_the_users_own(torch_compile, has_jvp, is_legacy, of, form):
    w, x = arrays((3, 2, 2), (2, 2))
    twice = rule(has_jvp, is_legacy)
    layers = {"carry": lambda c, p: (twice.apply(c) @ p, None), "params": lambda c, p: (c @ twice.apply(p), None)}
    if has_jvp:  # as users mark it for their own compiled functions; a stack called as it stands does it by itself
        torch_compile.scan_layers(layers[of], w, x)
    same_gradients(torch_compile, form, layers[of], w, x)


@FORMS
def test_forward_mode_by_a_rule_of_the_users_own(torch_compile, form):
    (w, x), twice = arrays((3, 2, 2), (2, 2)), rule(True, False)
    layer = lambda c, p: (twice.apply(c) @ p, None)  # noqa: E731
    torch_compile.scan_layers(layer, w, x)
    run = in_form(form, lambda w, x: torch_compile.jvp_layers(layer, w, x, tangents=(None, x, None)))
    assert_same([run(w, x)[1][0]], [8 * loop(layer, w, x)])  # linear in the carry, three times doubled


@FORMS
def test_forward_mode_without_a_rule_is_refused(torch_compile, form):
    (w, x), twice = arrays((3, 2, 2), (2, 2)), rule(False, False)
    layer = lambda c, p: (twice.apply(c) @ p, None)  # noqa: E731
    run = in_form(form, lambda w, x: torch_compile.jvp_layers(layer, w, x, tangents=(None, x, None)))
    with pytest.raises(TypeError, match="layer: expected a jvp of whatever has its own derivative, got none of"):
        run(w, x)


@by_inductor
def test_a_derivative_of_the_users_own_by_inductor(torch_compile):
    (w, x), twice = arrays((3, 2, 2), (2, 2)), rule(False, False)
    layer = lambda c, p: (c @ twice.apply(p), None)  # noqa: E731
    run = in_form("in torch.compile", lambda w, x: torch_compile.scan_layers(layer, w, x)[0])
    assert_same(gradients(run, w, x), gradients(lambda w, x: loop(layer, w, x), w, x))


# Checkpoints and modules of torch.


@FORMS
@pytest.mark.parametrize("options", [{"remat": 2}, {"unroll": 2}], ids=str)
def test_a_checkpoint_around_a_stack(torch_compile, form, options):
    checkpoint_around(torch_compile, form, options)


@by_inductor
@FORMS
def test_a_checkpoint_around_a_stack_by_inductor(torch_compile, form):
    checkpoint_around(torch_compile, form, {})


def checkpoint_around(torch_compile, form, options):
    import torch
    from torch.utils.checkpoint import checkpoint

    (w, x), layer = arrays((3, 4, 4), (2, 4)), lambda c, p: (torch.tanh(c @ p), None)

    def around(w, x):
        return checkpoint(lambda *a: torch_compile.scan_layers(layer, *a, **options)[0], w, x, use_reentrant=False)

    run = in_form(form, around)
    for _ in range(2):  # as it stands the second goes by what the first has seen
        assert_same(gradients(run, w, x), gradients(lambda w, x: loop(layer, w, x), w, x))


@FORMS
@pytest.mark.parametrize("remat", [False, 2])
def test_a_checkpoint_within_a_layer(torch_compile, remat, form):
    import torch
    from torch.utils.checkpoint import checkpoint

    def layer(c, p):
        return checkpoint(lambda c, p: torch.tanh(torch.sin(c @ p)), c, p, use_reentrant=False) * 2, None

    same_gradients(torch_compile, form, layer, *arrays((3, 4, 4), (2, 4)), remat=remat)


def test_a_reentrant_checkpoint_within_a_layer_is_refused_where_it_is_differentiated(torch_compile):
    """In a user's own program torch.compile itself refuses it."""
    import torch
    from torch.utils.checkpoint import checkpoint

    layer = lambda c, p: (checkpoint(lambda c, p: torch.tanh(c @ p), c, p, use_reentrant=True), None)  # noqa: E731
    run, (w, x) = lambda w, x: torch_compile.scan_layers(layer, w, x)[0], arrays((3, 4, 4), (2, 4))
    with pytest.raises(TypeError, match=r"got torch\.utils\.checkpoint; use remat=True"):
        gradients(run, w, x)
    with torch.no_grad():
        assert_same([run(w, x)], [loop(layer, w, x)])


@FORMS
def test_an_encoder_layer_in_eval_mode(torch_compile, form):
    """In inference it takes a path of its own that has no gradient."""
    import torch
    from torch.func import functional_call, stack_module_state

    modules = [torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval() for _ in range(2)]
    params, _ = stack_module_state(modules)
    (x,) = arrays((2, 3, 8), dtype=torch.float32)

    def stack(x):
        return torch_compile.scan_layers(lambda c, p: (functional_call(modules[0], p, (c,)), None), params, x)[0]

    (found,), (right,) = gradients(in_form(form, stack), x), gradients(lambda x: modules[1](modules[0](x)), x)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
