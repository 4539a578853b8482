"""What runs where no program of the user's is being compiled, and layer by layer where no program can be.

A stack called as it stands is compiled here and kept (programs.py). Its program differentiates itself; the Functions
below hand that derivative to `.backward()`, `torch.autograd.grad` and `torch.func`. Forward mode and second derivatives
differentiate the plain loop: right to any order, of size N, not compiled. JAX needs none of this.
Source: https://docs.pytorch.org/docs/2.13/notes/extending.func.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from reference import arguments
from torch_compile.loops import Plan, nothing, unrolled
from torch_compile.primitive import Arrays, Step, donate_nothing, let_gradients_be_traced, owned, split
from torch_compile.private import (
    dynamo,
    get_current_dispatch_mode,
    get_unwrapped,
    in_forward_mode,
    in_functorch,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    pytree,
    scan,
    within_checkpoint,
)
from torch_compile.programs import run_compiled
from torch_compile.trees import with_floats

_in_loop = ContextVar("_in_loop", default=False)  # whether layers run one by one, to be differentiated again


@torch.compiler.disable
def as_it_stands(program: Callable[..., Any], plan: Plan, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """(carry, ys) of `program(plan, stacked, init)`, compiled, or where that cannot be, layer by layer."""
    arrays, closed = [*stacked, *init], list(plan.seen.closed_over)
    if stacked[0].shape[0] == 0:
        return nothing(plan.step, stacked, init)
    arrays += closed
    wanted = tuple(torch.is_grad_enabled() and requires_grad(a) for a in arrays)
    check_seen(plan, any(wanted))
    # What sees every operation, as make_fx or a FlopCounterMode does, sees none of those in a compiled program.
    is_watched = get_current_dispatch_mode() is not None
    is_in_loop = _in_loop.get()  # as the stack around it
    if is_in_loop or dynamo.config.disable or is_watched or in_forward_mode() or (closed and in_functorch()):
        return unrolled(plan.step, stacked, init, plan.reverse)
    run = _Run(program, plan, (len(stacked), len(init)), wanted)
    carry, ys = split(_Stack.apply(run, *arrays), len(init))
    return carry, ys


def requires_grad(array: torch.Tensor) -> bool:
    """At some level of torch.func: what one has batched does not say that another differentiates by it."""
    while not array.requires_grad and is_functorch_wrapped_tensor(array):
        array = get_unwrapped(array)
    return array.requires_grad


def exported(plan: Plan, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """(carry, ys) by torch's own scan operator, which a file can hold: it knows none of ours. Forwards alone."""

    def body(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = plan.step(carry, slices)
        return owned(new_carry), owned(y) or [torch.empty(0)]  # of no ys it makes no loop

    carry, ys = scan(body, init, stacked, reverse=plan.reverse)
    return carry, ys


def check_seen(plan: Plan, is_differentiated: bool) -> None:
    """Refuse what the loop cannot do, and what cannot be where the backward pass runs the layer again."""
    seen = plan.seen
    if seen.writes:
        raise arguments.writes_outside(seen.writes)
    if seen.reads:
        raise arguments.complex_outside(seen.reads)
    if seen.raises:
        raise arguments.raises_within(seen.raises)
    if seen.draws and is_differentiated and plan.remat:
        raise arguments.runs_twice(seen.draws)
    if seen.has_checkpoint and is_differentiated:
        raise arguments.checkpoint_within("torch.utils.checkpoint")


def _as_it_is(array: torch.Tensor) -> torch.Tensor:
    return array


class _Run:
    """A stack, and what its forward pass has kept for its backward pass."""

    def __init__(
        self, program: Callable[..., Any], plan: Plan, counts: tuple[int, int], wanted: tuple[bool, ...]
    ) -> None:
        self.program, self.plan, self.counts, self.wanted = program, plan, counts, wanted
        self.leaves: Arrays = []
        self.outputs: Arrays = []

    def forward(self, arrays: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # in a checkpoint nothing is to be kept, and what is saved while a program is traced is none of its arrays
        return self._run(arrays, any(self.wanted) and not within_checkpoint())

    def _run(self, arrays: Sequence[torch.Tensor], keeps: bool) -> tuple[torch.Tensor, ...]:
        stacked, init, closed = split(arrays, *self.counts)
        plan = self.plan._replace(seen=self.plan.seen._replace(closed_over=()))
        wanted = self.wanted if keeps else (False,) * len(arrays)
        leaves, outputs = run_compiled(self.program, plan, stacked, init, wanted)
        if keeps:
            self.leaves, self.outputs = [*leaves, *closed], outputs
        return tuple(a.detach() for a in outputs)

    def backward(self, arrays: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if not self.outputs:  # another level of torch.func ran forwards, or a checkpoint
            check_seen(self.plan._replace(remat=1), True)
            with saved_tensors_hooks(_as_it_is, _as_it_is) if within_checkpoint() else contextlib.nullcontext():
                self._run(arrays, True)
        floats = [a for a in self.outputs if a.is_floating_point()]
        pairs = [(a, d) for a, d in zip(floats, cotangents, strict=True) if a.requires_grad]
        leaves = [a for a, is_wanted in zip(self.leaves, self.wanted, strict=True) if is_wanted]
        outputs, given = [a for a, _ in pairs], [d for _, d in pairs]
        donate_nothing()  # else torch refuses to retain a graph in another thread than that which compiled it
        return torch.autograd.grad(outputs, leaves, given, retain_graph=True, materialize_grads=True)

    def anew(self, step: Step, wanted: tuple[bool, ...]) -> _Run:
        return _Run(self.program, self.plan._replace(step=step), self.counts, wanted)

    def loop(self, arrays: Sequence[torch.Tensor]) -> tuple[Callable[..., Any], list[int]]:
        """The floating-point outputs as a function of the floating-point `arrays`, layer by layer; which those are."""
        check_seen(self.plan._replace(remat=1), True)
        moving, closed = [i for i, a in enumerate(arrays) if a.is_floating_point()], self.plan.seen.closed_over

        def run(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
            stacked, init, instead = split(with_floats(arrays, moved), *self.counts)
            token = _in_loop.set(True)
            try:
                with _Instead(closed, instead):
                    carry, ys = unrolled(self.plan.step, stacked, init, self.plan.reverse)
            finally:
                _in_loop.reset(token)
            # clone: a function that returns its argument has no derivative of its own
            return tuple(array.clone() for array in (*carry, *ys) if array.is_floating_point())

        return run, moving

    def loop_vjp(self, arrays: Sequence[torch.Tensor]) -> tuple[Callable[..., Any], list[int]]:
        """The same for its gradients; after the stack's own arrays come the cotangents."""
        run, inputs = self.loop(arrays[: len(self.wanted)])
        wanted = [self.wanted[i] for i in inputs]

        def run_vjp(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
            gradients = torch.func.vjp(run, *moved[: len(inputs)])[1](moved[len(inputs) :])
            return tuple(g for g, is_wanted in zip(gradients, wanted, strict=True) if is_wanted)

        return run_vjp, [*inputs, *range(len(self.wanted), len(arrays))]


class _Instead(TorchFunctionMode):
    """Operations read other arrays in the place of some."""

    def __init__(self, arrays: Sequence[torch.Tensor], instead: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.instead = {id(a): b for a, b in zip(arrays, instead, strict=True)}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.instead:
            args, kwargs = pytree.tree_map(lambda a: self.instead.get(id(a), a), (args, kwargs))
        return function(*args, **(kwargs or {}))


class _Stack(torch.autograd.Function):
    """(stacked, init, closed_over) -> (carry, ys)."""

    @staticmethod
    def forward(run, *arrays):
        return run.forward(arrays)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.run, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.is_float = [array.is_floating_point() for array in output]
        ctx.mark_non_differentiable(*(array for array in output if not array.is_floating_point()))

    @staticmethod
    def backward(ctx, *cotangents):
        given = [ct for ct, is_float in zip(cotangents, ctx.is_float, strict=True) if is_float]
        arrays = [*ctx.saved_tensors, *given]
        if any(map(is_legacy_batchedtensor, given)):  # by is_grads_batched, which knows no rule of a Function
            function, moving = ctx.run.loop_vjp(arrays)
            gradients = iter(function(*(arrays[i] for i in moving)))
        else:
            gradients = iter(_StackVjp.apply(ctx.run, *arrays))
        return None, *(next(gradients) if is_wanted else None for is_wanted in ctx.run.wanted)

    @staticmethod
    def vmap(info, in_dims, run, *arrays):
        (stacked, init, _), (stacked_dims, init_dims, _) = split(arrays, *run.counts), split(in_dims[1:], *run.counts)
        stacked = [a if dim is None else a.movedim(dim, 1) for a, dim in zip(stacked, stacked_dims, strict=True)]
        # The carry of a batched stack is batched, whatever init was.
        init = [_batch(info, a, dim, 0) for a, dim in zip(init, init_dims, strict=True)]
        is_batched = tuple(dim is not None for dim in stacked_dims)
        run = run.anew(batched(run.plan.step, is_batched, info.randomness), run.wanted)
        outputs = _Stack.apply(run, *stacked, *init)
        return outputs, (*[0] * len(init), *[1] * (len(outputs) - len(init)))


class _StackVjp(torch.autograd.Function):
    """(stacked, init, closed_over, dcarry, dys) -> gradients: a Function, so that `torch.func` finds its rules too."""

    @staticmethod
    def forward(run, *arrays):
        return run.backward(*split(arrays, len(run.wanted)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.run, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.save_for_forward(*arrays)

    @staticmethod
    def backward(ctx, *cotangents):
        function, moving = ctx.run.loop_vjp(ctx.saved_tensors)
        _, pullback = torch.func.vjp(function, *(ctx.saved_tensors[i] for i in moving))  # type: ignore[misc]
        gradients = dict(zip(moving, pullback(cotangents), strict=True))
        return None, *(gradients.get(i) for i in range(len(ctx.saved_tensors)))

    @staticmethod
    def jvp(ctx, _run, *tangents):
        function, moving = ctx.run.loop_vjp(ctx.saved_tensors)
        return tuple(_jvp(function, moving, ctx.saved_tensors, tangents))

    @staticmethod
    def vmap(info, in_dims, run, *arrays):
        # Everything batched: shared parameters too have one gradient for each member of the batch.
        num_carry = run.counts[1]
        num_dcarry = sum(a.is_floating_point() for a in arrays[run.counts[0] :][:num_carry])
        places = [1] * run.counts[0] + [0] * num_carry + [0] * num_dcarry
        places += [1] * (len(arrays) - len(places))
        together = [_batch(info, *each) for each in zip(arrays, in_dims[1:], places, strict=True)]
        anew = run.anew(batched(run.plan.step, (True,) * run.counts[0], info.randomness), run.wanted)
        gradients = _StackVjp.apply(anew, *together)
        num_stacked = sum(run.wanted[: run.counts[0]])
        return gradients, (*[1] * num_stacked, *[0] * (len(gradients) - num_stacked))


def pullback_of(run: Callable[[Arrays], Any], arrays: Arrays) -> tuple[Any, Callable[[Arrays], Any]]:
    """(results, pullback) of lists of arrays: those of floating point have cotangents and gradients."""
    floats = lambda results: tuple(a for part in results for a in part if a.is_floating_point())  # noqa: E731
    primals = floats([arrays])
    if not primals:  # of which torch.func and torch.autograd know no gradient
        return [[a.detach() for a in part] for part in run(arrays)], lambda given: ()
    if in_functorch():  # where nothing may be told to require a gradient

        def moved(*values: torch.Tensor) -> tuple[Any, Any]:
            results = run(with_floats(arrays, values))
            return floats(results) or values[:1], results

        _, by_func, results = torch.func.vjp(moved, *primals, has_aux=True)  # type: ignore[misc]
        return results, lambda given: by_func(tuple(given) or (torch.zeros_like(primals[0]),))
    leaves = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in arrays]
    with torch.enable_grad():
        results = run(leaves)

    def by_autograd(given: Arrays) -> Any:
        pairs = [(a, ct) for a, ct in zip(floats(results), given, strict=True) if a.requires_grad]
        of, wrt, was = [a for a, _ in pairs], [a for a in leaves if a.requires_grad], let_gradients_be_traced(True)
        grads = torch.autograd.grad(of, wrt, [ct for _, ct in pairs], materialize_grads=True)
        let_gradients_be_traced(was)
        return grads

    return [[a.detach() for a in part] for part in results], by_autograd


def batched(step: Step, is_batched: tuple[bool, ...], randomness: str = "error") -> Step:
    """`step` for a batch of carries, and of those slices that are batched."""

    def moved(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        dims = [0] * len(carry), [0 if has_batch else None for has_batch in is_batched]
        return torch.func.vmap(step, in_dims=dims, randomness=randomness)(carry, slices)

    return moved


def _jvp(function: Callable[..., Any], moving: list[int], primals: Any, tangents: Any) -> Any:
    primals, tangents = [primals[i] for i in moving], [tangents[i] for i in moving]
    tangents = [torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return torch.func.jvp(function, tuple(primals), tuple(tangents))[1]


def _batch(info: Any, array: torch.Tensor, dim: int | None, to: int) -> torch.Tensor:
    if dim is not None:
        return array.movedim(dim, to)
    return array.unsqueeze(to).expand(*array.shape[:to], info.batch_size, *array.shape[to:])
