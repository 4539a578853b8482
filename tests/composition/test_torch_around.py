"""PyTorch: what users put around a stack that is called as it stands: threads, modes, nested transforms, no compiler.

What is right is the twin, a plain loop, in the same place. In float64, so that what differs is wrong, not rounding.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from implementations import ROOT
from tests.conftest import loaded

N, BATCH, D = 4, 2, 3


def problem():
    """(torch, layer, w, x)."""
    torch_compile = loaded("torch_compile")
    import torch

    draw = np.random.default_rng(0).normal
    w, x = (torch_compile.from_numpy(draw(size=shape)) for shape in ((N, D, D), (BATCH, D)))
    return torch, lambda carry, w: (torch.tanh(carry @ w), None), w, x


def stacks(**options):
    """The stack and its twin, each as a function of w and x; and w and x."""
    torch, layer, w, x = problem()
    torch_compile = loaded("torch_compile")
    forms = functools.partial(torch_compile.scan_layers, **options), torch_compile.unroll_layers
    return torch, [functools.partial(_carry, form, layer) for form in forms], w, x


def _carry(form, layer, w, x):
    return form(layer, w, x)[0]


def gradient_in_thread(torch, stack, w, x):
    w, found = w.clone().requires_grad_(), []

    def run():
        y = stack(w, x)
        y.square().sum().backward(retain_graph=True)
        found.append(w.grad)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]  # empty: the thread raised


def gradient_within(context):
    def gradient(torch, stack, w, x):
        w = w.clone().requires_grad_()
        with context(torch):
            stack(w, x).square().sum().backward()
        return w.grad

    return gradient


def selective_checkpoint(torch, stack, w, x):
    from torch.utils import checkpoint

    save, again = checkpoint.CheckpointPolicy.MUST_SAVE, checkpoint.CheckpointPolicy.PREFER_RECOMPUTE
    contexts = functools.partial(
        checkpoint.create_selective_checkpoint_contexts,
        lambda _context, op, *_, **__: save if op == torch.ops.aten.mm.default else again,
    )
    w = w.clone().requires_grad_()
    checkpoint.checkpoint(stack, w, x, use_reentrant=False, context_fn=contexts).square().sum().backward()
    return w.grad


def batched_gradients(torch, stack, w, x):
    w = w.clone().requires_grad_()
    cotangents = torch.eye(BATCH * D, dtype=w.dtype).reshape(-1, BATCH, D)
    return torch.autograd.grad(stack(w, x), w, cotangents, is_grads_batched=True)[0]


def captured_within(context):
    """A stack that is captured and no more: while torch's engine runs backwards, its derivative is traced."""
    return lambda torch, stack, w, x: gradient_within(context)(torch, torch.compile(stack, backend="eager"), w, x)


def dual_level(torch, stack, w, x):
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        return forward_ad.unpack_dual(stack(forward_ad.make_dual(w, w + 1), x)).tangent


def counted(torch, stack, w, x):
    """Floating-point operations, which a compiled program hides: of N products 2 B D D each, and twice as many."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        stack(w.clone().requires_grad_(), x).sum().backward()
    return torch.tensor(counter.get_total_flops())


def traced(torch, stack, w, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(stack)(w, x)(w + 1, x)


def energy(stack):
    return lambda w, x: stack(w, x).square().sum()


def twice(outer, inner):
    """A second derivative of the energy by x; of each two modes."""

    def derivative(torch, stack, w, x):
        of_x = functools.partial(energy(stack), w)
        return getattr(torch.func, outer)(getattr(torch.func, inner)(of_x))(x)

    return derivative


def forward_over_a_pullback(torch, stack, w, x):
    pullback = torch.func.vjp(functools.partial(stack, w), x)[1]
    return torch.func.jvp(lambda ct: pullback(ct)[0], (x,), (x + 1,))[1]


def vectorized_hessian(torch, stack, w, x):
    return torch.autograd.functional.hessian(functools.partial(energy(stack), w), x, vectorize=True)


AROUND = {
    "in a thread": gradient_in_thread,
    "set_stance": gradient_within(lambda torch: torch.compiler.set_stance("force_eager")),
    "eager_on_recompile": gradient_within(lambda torch: torch.compiler.set_stance("eager_on_recompile")),
    "config.disable": gradient_within(lambda torch: torch._dynamo.config.patch(disable=True)),
    "selective checkpoint": selective_checkpoint,
    "is_grads_batched": batched_gradients,
    "detect_anomaly": captured_within(lambda torch: torch.autograd.detect_anomaly()),
    "activation_memory_budget": captured_within(
        lambda torch: torch._functorch.config.patch(activation_memory_budget=0.3)
    ),
    "dual_level": dual_level,
    "FlopCounterMode": counted,
    "make_fx": traced,
    "jacfwd of jacfwd": twice("jacfwd", "jacfwd"),
    "jacrev of jacfwd": twice("jacrev", "jacfwd"),
    "jacfwd of jacrev": twice("jacfwd", "jacrev"),
    "jacrev of jacrev": twice("jacrev", "jacrev"),
    "a vectorized hessian": vectorized_hessian,
    "jvp of a pullback": forward_over_a_pullback,
}


def test_flops_by_hand():
    """4 products of [2, 3] and [3, 3], 36 operations each; the gradient has two of each."""
    torch, (stack, _), w, x = stacks()
    assert counted(torch, stack, w, x) == 3 * 4 * 36


@pytest.mark.parametrize("around", AROUND)
def test_it_is_the_loop(around):
    torch, (stack, twin), w, x = stacks()
    found, right = (AROUND[around](torch, form, w, x) for form in (stack, twin))
    assert torch.count_nonzero(right) > 0
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-13)


def test_many_threads_compile_at_once():
    """torch's own flag that something is compiled is one for all threads."""
    torch, _, w, x = stacks()
    scan_layers, start = loaded("torch_compile").scan_layers, threading.Barrier(4)
    done, wrong = [], []

    def run(scale):
        params = w.clone().requires_grad_()
        start.wait(60)
        y, _ = scan_layers(lambda carry, w: (torch.tanh(carry @ w) * scale, None), params, x)
        y.sum().backward()
        carry = x
        for i in range(N):
            carry = torch.tanh(carry @ w[i]) * scale
        if not torch.allclose(carry, y):
            wrong.append(scale)
        done.append(scale)

    threads = [threading.Thread(target=run, args=(scale,)) for scale in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(done), wrong) == ([1, 2, 3, 4], [])


def test_gradcheck_to_the_second_order():
    """Numerically, batched and in both modes."""
    torch, (stack, _), w, x = stacks()
    of = functools.partial(stack, x=x)
    w = w[:2].clone().requires_grad_()
    options = {"check_batched_grad": True, "check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(of, (w,), **options)
    assert torch.autograd.gradgradcheck(of, (w,))


def test_a_process_that_never_compiles():
    loaded("torch_compile")
    code = """
import torch, torch_compile
w, x = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor(1.0)
y, _ = torch_compile.scan_layers(lambda carry, w: (carry * w, None), w, x)
y.backward()
print(y.item(), w.grad.tolist())
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TORCH_COMPILE_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "6.0 [3.0, 2.0]\n", run.stderr


def test_a_trace_by_torch_jit_is_refused():
    torch, (stack, _), w, x = stacks()
    with pytest.raises(RuntimeError, match=r"^torch\.jit\.trace: expected none around a stack of layers"):
        torch.jit.trace(lambda w, x: stack(w, x), (w, x))


def of_batches():
    """The energy of a batch by what it shares and by what it does not, the batch within the derivative or around it."""
    import torch
    from torch.func import grad, jacrev, vmap

    def within(stack, axes):
        return grad(lambda w, x: vmap(stack, axes)(w, x).square().sum(), (0, 1))

    return {
        "of x": lambda stack, w, x: within(stack, (None, 0))(w[0], x),
        "of w": lambda stack, w, x: within(stack, (0, None))(w, x[0]),
        "of both": lambda stack, w, x: within(stack, (0, 0))(w, x),
        "of a batch of batches": lambda stack, w, x: vmap(within(stack, (None, 0)), (0, None))(w, x),
        "by backward": lambda stack, w, x: by_backward(torch, vmap(stack), w, x),
        "jacobian": lambda stack, w, x: jacrev(vmap(stack, (None, 0)), (0, 1))(w[0], x),
        "twice": lambda stack, w, x: grad(lambda x: within(stack, (None, 0))(w[0], x)[1].square().sum())(x),
    }


def by_backward(torch, function, *arrays):
    leaves = [a.clone().requires_grad_() for a in arrays]
    return torch.autograd.grad(function(*leaves).square().sum(), leaves)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("options", [{}, {"remat": 2, "unroll": 2}], ids=str)
@pytest.mark.parametrize(
    "name", ["of x", "of w", "of both", "of a batch of batches", "by backward", "jacobian", "twice"]
)
def test_gradients_of_a_batch(name, options):
    """What one level of torch.func batches does not say that another differentiates by it."""
    torch, forms, w, x = stacks(**options)
    found, right = (of_batches()[name](form, torch.stack([w, w + 1]), torch.stack([x, x - 1])) for form in forms)
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_random_numbers_of_a_batch(randomness):
    """Drawn as `torch.func.vmap` is asked to, of the loop the same ones."""
    torch_compile = loaded("torch_compile")
    import torch

    def run(scan):
        torch.manual_seed(0)
        stack = lambda x: scan(lambda c, w: (torch.tanh(c @ w) + torch.randn(3), None), torch.ones(4, 3, 3), x)[0]  # noqa: E731
        return torch.func.vmap(stack, randomness=randomness)(torch.ones(2, 3))

    y = run(torch_compile.scan_layers)
    assert torch.equal(y[0], y[1]) == (randomness == "same")
    torch.testing.assert_close(y, run(torch_compile.unroll_layers))


def test_second_derivatives_of_a_stack_in_a_stack():
    torch, layer, w, x = problem()

    def hessian(form):
        outer = lambda carry, params: (form(layer, params, carry)[0], None)  # noqa: E731
        of_x = lambda x: form(outer, torch.stack([w, w + 1]), x)[0].square().sum()  # noqa: E731
        return torch.func.jacrev(torch.func.jacrev(of_x))(x)

    torch_compile = loaded("torch_compile")
    found, right = hessian(torch_compile.scan_layers), hessian(torch_compile.unroll_layers)
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_vjp_layers_within_torch_func(is_compiled):
    """A batch of them, and the derivative of one, of which nothing may be told to require a gradient."""
    torch, layer, w, x = problem()
    torch_compile = loaded("torch_compile")

    def by_layers(w, x):
        return torch_compile.vjp_layers(layer, w, x, cotangents=(x, None))[1][0]

    def right(w, x):
        return torch.func.vjp(lambda w: torch_compile.unroll_layers(layer, w, x)[0], w)[1](x)[0]

    def around(dw):
        return torch.func.vmap(dw, (None, 0))(w, torch.stack([x, x + 1])), torch.func.grad(energy(dw), (0, 1))(w, x)

    run = torch.compile(around, backend="aot_eager") if is_compiled else around
    torch.testing.assert_close(run(by_layers), around(right), rtol=1e-11, atol=1e-11)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("remat", [False, True, 2])
def test_a_first_carry_in_another_order_in_memory(remat):
    torch, (stack, twin), w, x = stacks(remat=remat)
    columns = x.mT.contiguous()
    run = torch.compile(lambda w, x: stack(w, x.mT), backend="aot_eager")
    right = by_backward(torch, lambda w, x: twin(w, x.mT), w, columns)
    torch.testing.assert_close(by_backward(torch, run, w, columns), right, rtol=1e-11, atol=1e-13)
