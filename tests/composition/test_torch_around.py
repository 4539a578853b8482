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


def stacks():
    """The stack and its twin, each as a function of w and x; and w and x."""
    torch, layer, w, x = problem()
    torch_compile = loaded("torch_compile")
    forms = torch_compile.scan_layers, torch_compile.unroll_layers
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


def vectorized_hessian(torch, stack, w, x):
    return torch.autograd.functional.hessian(functools.partial(energy(stack), w), x, vectorize=True)


AROUND = {
    "in a thread": gradient_in_thread,
    "set_stance": gradient_within(lambda torch: torch.compiler.set_stance("force_eager")),
    "eager_on_recompile": gradient_within(lambda torch: torch.compiler.set_stance("eager_on_recompile")),
    "config.disable": gradient_within(lambda torch: torch._dynamo.config.patch(disable=True)),
    "selective checkpoint": selective_checkpoint,
    "is_grads_batched": batched_gradients,
    "dual_level": dual_level,
    "FlopCounterMode": counted,
    "make_fx": traced,
    "jacfwd of jacfwd": twice("jacfwd", "jacfwd"),
    "jacrev of jacfwd": twice("jacrev", "jacfwd"),
    "jacfwd of jacrev": twice("jacfwd", "jacrev"),
    "jacrev of jacrev": twice("jacrev", "jacrev"),
    "a vectorized hessian": vectorized_hessian,
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
