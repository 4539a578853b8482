"""The framework's ordinary autodiff from outside, and the rule by which it goes through a stack.

torch's scan operator has a gradient that is silently wrong, copies every stack, and knows no `torch.func`. So what JAX
does for `jax.grad` is written out: layer and derivative, traced as one graph, are cut in two (residuals.py).
Source: https://docs.pytorch.org/docs/2.13/notes/extending.func.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from torch_compile.edges import compile
from torch_compile.fallback import as_it_stands, check_seen, exported
from torch_compile.loops import Plan, nothing, scan, scan_vjp, unrolled
from torch_compile.primitive import Arrays, Shapes, joined, layers, let_inductor_count, lowered_by, split
from torch_compile.private import (
    active_fake_mode,
    below_autograd,
    get_proxy_mode,
    in_functorch,
    pytree,
    save_values_for_backward,
    saved_values,
)
from torch_compile.residuals import as_read, differentiated, is_wanted, plain
from torch_compile.trees import map_arrays, tangents_like

Apply = Callable[..., Any]


def gradient(apply: Apply) -> Callable[..., tuple[Any, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, all trees; None in dargs for what is no float."""

    def run(*args_and_cotangent: Any) -> tuple[Any, ...]:
        *args, cotangent = args_and_cotangent
        # Leaves of their own: the caller's tensors keep their history and their requires_grad.
        leaves = map_arrays(lambda a: a.detach().requires_grad_(a.is_floating_point() or a.is_complex()), args)
        y = apply(*leaves)
        (cotangent,) = tangents_like("cotangent", (cotangent,), (y,), ("y",))
        outputs, spec = pytree.tree_flatten(y)
        pairs = zip(outputs, spec.flatten_up_to(cotangent), strict=True)  # a dict keeps no order
        # clone: without layers the cotangent itself would come back as dx
        moved = [(a, d.clone()) for a, d in pairs if a is not None and a.requires_grad]
        of, cotangents = [a for a, _ in moved], [d for _, d in moved]
        wrt = [a for a in pytree.tree_leaves(leaves) if a is not None and a.requires_grad]
        grads = iter(torch.autograd.grad(of, wrt, cotangents, materialize_grads=True) if wrt else ())
        dargs = map_arrays(lambda a: next(grads) if a.requires_grad else None, leaves)
        return map_arrays(torch.Tensor.detach, y), *dargs

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[Any, ...]]:
    """`gradient(apply)`, compiled: autograd stays outside, its forward and its backward are each a compiled program."""
    return gradient(compile(apply))


def differentiable(plan: Plan, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """(carry, ys) of the scan of `plan.step` over axis 0 of `stacked`, with a gradient of its own."""
    # not is_compiling, which is also true while another thread compiles
    if not torch.compiler.is_dynamo_compiling() and active_fake_mode() is None:
        return as_it_stands(differentiable, plan, stacked, init)
    if stacked[0].shape[0] == 0:
        return nothing(plan.step, stacked, init)
    if in_functorch():  # torch.func sees into no operator like ours: layer by layer
        return unrolled(plan.step, stacked, init, plan.reverse)
    check_seen(plan, torch.is_grad_enabled() and any(a.requires_grad for a in (*stacked, *init)))
    if torch.compiler.is_exporting():
        return exported(plan, stacked, init)

    def layer(*arrays: torch.Tensor) -> Arrays:
        new_carry, y = plan.step(list(arrays[: len(init)]), list(arrays[len(init) :]))
        return [*new_carry, *y]

    carry, ys = split(layers(layer, init, stacked, [], plan.reverse, plan.unroll, plan.remat), len(init))
    return carry, ys


def _lowered(layer: Any, carry: Any, stacked: Any, closed: Any, reverse: bool, unroll: int, remat: int) -> Any:
    """(carry, ys) of a stack where a program is lowered, in loops that have a derivative if one may be asked for."""
    if get_proxy_mode() is None and active_fake_mode() is not None:  # only shapes are asked for
        return Shapes.apply(layer, (len(carry), len(stacked)), *carry, *stacked, *closed)
    if not torch.is_grad_enabled() or not any(map(is_wanted, (*carry, *stacked, *closed))):
        with below_autograd():
            return _without_derivative(layer, carry, stacked, closed, reverse, unroll, remat)
    let_inductor_count()
    layer, closed = as_read(layer, closed)
    plan = Plan(layer, reverse, unroll, remat, rule=differentiated(layer, carry, stacked, closed, remat))
    closed = [*closed, *plan.rule.constants]
    return _Stack.apply(plan, (len(carry), len(stacked), len(closed)), *carry, *stacked, *closed)


def _without_derivative(layer: Any, carry: Any, stacked: Any, closed: Any, reverse: bool, unroll: int, _: int) -> Any:
    let_inductor_count()
    layer, closed = as_read(layer, closed)
    plan = Plan(layer, reverse, unroll, rule=plain(layer, carry, stacked, closed))
    return joined(scan(plan, list(stacked), list(carry), [*closed, *plan.rule.constants], keep=False)[:2])


lowered_by(_lowered, _without_derivative)


class _Stack(torch.autograd.Function):
    """(carry, stacked, closed) -> (carry, ys)."""

    @staticmethod
    def forward(ctx, plan, counts, *arrays):
        init, stacked, closed, _ = split(arrays, *counts)
        carry, ys, kept = scan(plan, stacked, init, closed, keep=True)
        ctx.plan, ctx.counts = plan, (*counts[1:], len(kept))
        ctx.is_float = [a.is_floating_point() for a in (*carry, *ys)]
        ctx.wanted = [*ctx.is_float[: len(init)], *map(is_wanted, (*stacked, *closed))]
        save_values_for_backward(ctx, [*stacked, *closed, *kept])
        ctx.mark_non_differentiable(*(a for a in (*carry, *ys) if not a.is_floating_point()))
        return *carry, *ys

    @staticmethod
    @once_differentiable
    def backward(ctx, *cotangents):
        stacked, closed, kept, _ = split(saved_values(ctx), *ctx.counts)
        num_carry = len(ctx.wanted) - len(stacked) - len(closed)
        given = [d for d, is_float in zip(cotangents, ctx.is_float, strict=True) if is_float]
        dcarry, dys = split(given, sum(ctx.is_float[:num_carry]))
        dstacked, dinit, dclosed = scan_vjp(ctx.plan, stacked, closed, kept, dcarry, dys)
        gradients = iter([*dinit, *dstacked, *dclosed])
        return None, None, *(next(gradients) if has_one else None for has_one in ctx.wanted)
