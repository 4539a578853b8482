"""The framework's ordinary autodiff from outside, and the rule by which it goes through a stack.

torch's scan operator has a gradient of its own, which is silently wrong for a loss as common as `.sum()`, and does not
compose with `torch.func`. So an autograd.Function makes `scan` and `scan_vjp` the gradient of the stack, for
`.backward()`, `torch.autograd.grad`, `torch.func` in eager mode, and inside a user's own compiled function.
Source: https://docs.pytorch.org/docs/2.13/notes/extending.func.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reference import arguments
from torch_compile.edges import compile
from torch_compile.loops import Arrays, Seen, Stack, Step, scan, scan_vjp, unrolled, with_floats
from torch_compile.primitive import owned
from torch_compile.programs import run_compiled

Apply = Callable[..., Any]

# In a user's own compiled program Inductor may write into what the forward pass keeps while a scan of the backward pass
# still reads it: gradients of a stack that is used three times would be silently wrong.
torch._functorch.config.donated_buffer = False


def gradient(apply: Apply) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, for an `apply` from arrays to one array."""

    def run(*args_and_cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *args, cotangent = args_and_cotangent
        # Leaves of their own: the caller's tensors keep their history and their requires_grad.
        leaves = [arg.detach().requires_grad_() for arg in args]
        y = apply(*leaves)
        # clone: without layers the cotangent itself would come back as dx
        return y.detach(), *torch.autograd.grad(y, leaves, cotangent.clone(), materialize_grads=True)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`gradient(apply)`, compiled: autograd stays outside, its forward and its backward are each a compiled program."""
    return gradient(compile(apply))


def differentiable(stack: Stack, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """(carry, ys) of `scan`, with a gradient of its own."""
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        # The operator does not compose with torch.func from outside, and Dynamo with no Function there: layer by layer.
        # So a stack within a layer is unrolled in the backward pass of the stack around it.
        return unrolled(stack.step, stacked, init, stack.reverse)
    keep = torch.is_grad_enabled() and any(array.requires_grad for array in (*stacked, *init))
    check_seen(stack.seen, runs_twice=keep)
    if torch.compiler.is_compiling() and not keep:  # Dynamo takes no Function without a gradient
        carry, ys, _ = scan(stack, stacked, init, False)
        return carry, ys
    arrays = [*stacked, *init]
    # a view of its own for what comes twice: Dynamo refuses to hand a Function one tensor twice
    arrays = [a.view_as(a) if any(a is b for b in arrays[:i]) else a for i, a in enumerate(arrays)]
    rule = _Stack if torch.compiler.is_compiling() else _StackJvp  # Dynamo refuses a Function with forward mode
    outputs = rule.apply(stack, (len(stacked), len(init)), keep, *arrays)
    carry, ys, _ = _parts(outputs, (len(init), len(stack.y_floats)))
    return carry, ys


def check_seen(seen: Seen, runs_twice: bool) -> None:
    """Refuse what the loop cannot do, and what cannot be where the backward pass runs the layer again."""
    if seen.writes:
        raise arguments.writes_outside(seen.writes)
    if seen.reads:
        raise arguments.complex_outside(seen.reads)
    if seen.draws and runs_twice:
        raise arguments.runs_twice(seen.draws)
    if seen.has_checkpoint and runs_twice:
        raise arguments.checkpoint_within("torch.utils.checkpoint")


class _Stack(torch.autograd.Function):
    """(stacked, init) -> (carry, ys, kept), all as flat arguments."""

    @staticmethod
    def forward(stack, counts, keep, *arrays):
        stacked, init, _ = _parts(arrays, counts)
        outputs = run_compiled(scan, stack, stacked, init, keep)
        return tuple(array for arrays in outputs for array in arrays)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.stack, ctx.counts, _, *arrays = inputs
        num_outputs = ctx.counts[1] + len(ctx.stack.y_floats)
        ctx.is_float = [array.is_floating_point() for array in output[:num_outputs]]
        ctx.save_for_backward(*arrays, *output[num_outputs:])
        constants = [array for array in output[:num_outputs] if not array.is_floating_point()]
        ctx.mark_non_differentiable(*constants, *output[num_outputs:])

    @staticmethod
    def backward(ctx, *cotangents):
        stacked, init, kept = _parts(ctx.saved_tensors, ctx.counts)
        wanted = [
            needed and a.is_floating_point() for needed, a in zip(ctx.needs_input_grad[3:], stacked, strict=False)
        ]
        stack = ctx.stack._replace(wanted=tuple(wanted))
        given = [ct for ct, is_float in zip(cotangents, ctx.is_float, strict=False) if is_float]
        counts = len(stacked), len(init), len(kept), sum(carry.is_floating_point() for carry in init)
        if torch.compiler.is_compiling():
            dcarry, dys = given[: counts[3]], given[counts[3] :]
            gradients = iter([g for part in scan_vjp(stack, stacked, kept, dcarry, dys) for g in part])
        else:
            gradients = iter(_StackVjp.apply(stack, counts, *stacked, *init, *kept, *given))
        dstacked = [next(gradients) if is_wanted else None for is_wanted in wanted]
        return None, None, None, *dstacked, *(next(gradients) if c.is_floating_point() else None for c in init)

    @staticmethod
    def vmap(info, in_dims, stack, counts, keep, *arrays):
        stacked, init, _ = _parts(arrays, counts)
        stacked_dims, init_dims, _ = _parts(in_dims[3:], counts)
        stacked = [a if dim is None else a.movedim(dim, 1) for a, dim in zip(stacked, stacked_dims, strict=True)]
        # The carry of a batched stack is batched, whatever init was.
        init = [_batch(info, a, dim, 0) for a, dim in zip(init, init_dims, strict=True)]
        step = vmap_step(stack.step, tuple(dim is not None for dim in stacked_dims))
        outputs = _StackJvp.apply(stack._replace(step=step), counts, keep, *stacked, *init)
        num_init = len(init)
        return outputs, (*[0] * num_init, *[1] * (len(outputs) - num_init))


class _StackVjp(torch.autograd.Function):
    """(stacked, init, kept, dcarry, dys) -> (dstacked, dinit): a Function, so that `torch.func` finds its rules too."""

    @staticmethod
    def forward(stack, counts, *arrays):
        stacked, _, kept, dcarry, dys = _parts(arrays, counts)
        outputs = run_compiled(vjp_program, stack, [*stacked, *kept, *dys], owned(dcarry), len(stacked), len(kept))
        return tuple(array for arrays in outputs for array in arrays)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.stack, ctx.counts, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.save_for_forward(*arrays)

    @staticmethod
    def backward(ctx, *cotangents):
        function, moving = _loop_vjp(ctx.stack, ctx.counts, ctx.saved_tensors)
        _, pullback = torch.func.vjp(function, *(ctx.saved_tensors[i] for i in moving))  # type: ignore[misc]
        gradients = dict(zip(moving, pullback(cotangents), strict=True))
        return None, None, *(gradients.get(i) for i in range(len(ctx.saved_tensors)))

    @staticmethod
    def jvp(ctx, _stack, _counts, *tangents):
        function, moving = _loop_vjp(ctx.stack, ctx.counts, ctx.saved_tensors)
        return tuple(_jvp(function, moving, ctx.saved_tensors, tangents))

    @staticmethod
    def vmap(info, in_dims, stack, counts, *arrays):
        # Everything batched: shared parameters too have one gradient for each member of the batch.
        along = [1, 0, 1, 0, 1]  # of stacked, init, kept, dcarry, dys
        parts = zip(_parts(arrays, counts), _parts(in_dims[2:], counts), along, strict=True)
        batched = [_batch(info, a, dim, to) for part, dims, to in parts for a, dim in zip(part, dims, strict=True)]
        step = vmap_step(stack.step, (True,) * counts[0])
        gradients = _StackVjp.apply(stack._replace(step=step), counts, *batched)
        num_wanted = sum(stack.wanted)
        return gradients, (*[1] * num_wanted, *[0] * (len(gradients) - num_wanted))


class _StackJvp(_Stack):
    """`_Stack` with forward mode, for eager programs."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Stack.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[3:])
        ctx.num_outputs = len(output)

    @staticmethod
    def jvp(ctx, _stack, _counts, _keep, *tangents):
        check_seen(ctx.stack.seen, runs_twice=True)
        function, moving = _loop(ctx.stack, ctx.counts, ctx.saved_tensors)
        out = iter(_jvp(function, moving, ctx.saved_tensors, tangents))
        moved = [next(out) if is_float else None for is_float in ctx.is_float]
        return *moved, *[None] * (ctx.num_outputs - len(moved))


def vjp_program(stack: Stack, arrays: Arrays, dcarry: Arrays, num_stacked: int, num_kept: int) -> tuple[Arrays, Arrays]:
    stacked, kept, dys = _parts(arrays, (num_stacked, num_kept))
    return scan_vjp(stack, stacked, kept, dcarry, dys)


# Forward mode and second derivatives differentiate the plain loop: right to any order, of size N, not compiled.


def _loop(
    stack: Stack, counts: tuple[int, ...], arrays: Sequence[torch.Tensor]
) -> tuple[Callable[..., Any], list[int]]:
    """The floating-point outputs as a function of the floating-point ones among `arrays`, and which those are."""
    moving = [i for i, array in enumerate(arrays[: sum(counts[:2])]) if array.is_floating_point()]

    def run(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stacked, init, *_ = _parts(with_floats(arrays[: sum(counts[:2])], moved), counts)
        carry, ys = unrolled(stack.step, stacked, init, stack.reverse)
        # clone: a function that returns its argument has no derivative of its own
        return tuple(array.clone() for array in (*carry, *ys) if array.is_floating_point())

    return run, moving


def _loop_vjp(
    stack: Stack, counts: tuple[int, ...], arrays: Sequence[torch.Tensor]
) -> tuple[Callable[..., Any], list[int]]:
    run, inputs = _loop(stack, counts, arrays)
    moving = [*inputs, *range(sum(counts[:3]), len(arrays))]  # and the cotangents
    wanted = [i >= counts[0] or stack.wanted[i] for i in inputs]

    def run_vjp(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gradients = torch.func.vjp(run, *moved[: len(inputs)])[1](moved[len(inputs) :])
        return tuple(g for g, is_wanted in zip(gradients, wanted, strict=True) if is_wanted)

    return run_vjp, moving


def _jvp(function: Callable[..., Any], moving: list[int], primals: Any, tangents: Any) -> Any:
    primals, tangents = [primals[i] for i in moving], [tangents[i] for i in moving]
    tangents = [torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return torch.func.jvp(function, tuple(primals), tuple(tangents))[1]


def jvp_step(step: Step, num_carries: int, num_slices: int) -> Step:
    """`step` with tangents behind the arrays of floating point: in carry, slices and y."""

    def moved(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        primals, tangents = [*carry[:num_carries], *slices[:num_slices]], [*carry[num_carries:], *slices[num_slices:]]

        def run(*values: torch.Tensor) -> tuple[Any, Any]:
            arrays = with_floats(primals, [value.view_as(value) for value in values])
            outputs = step(arrays[:num_carries], arrays[num_carries:])
            return tuple(tuple(a for a in part if a.is_floating_point()) for part in outputs), outputs

        floats = tuple(a for a in primals if a.is_floating_point())
        _, (tcarry, ty), (new_carry, y) = torch.func.jvp(run, floats, tuple(tangents), has_aux=True)  # type: ignore[misc]
        return [*new_carry, *tcarry], [*y, *ty]

    return moved


def vmap_step(step: Step, is_batched: tuple[bool, ...]) -> Step:
    """`step` for a batch of carries, and of those slices that are batched."""

    def batched(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        dims = [0] * len(carry), [0 if batched else None for batched in is_batched]
        return torch.func.vmap(step, in_dims=dims)(carry, slices)

    return batched


def _parts(arrays: Sequence[Any], counts: tuple[int, ...]) -> Any:
    """Consecutive lists of `counts` arrays, and the rest."""
    parts: list[list[Any]] = []
    start = 0
    for count in counts:
        parts.append(list(arrays[start : start + count]))
        start += count
    return [*parts, list(arrays[start:])]


def _batch(info: Any, array: torch.Tensor, dim: int | None, to: int) -> torch.Tensor:
    if dim is not None:
        return array.movedim(dim, to)
    return array.unsqueeze(to).expand(*array.shape[:to], info.batch_size, *array.shape[to:])
