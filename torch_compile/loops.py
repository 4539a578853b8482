"""The loops under `stack.py`, and the derivative of a whole stack: transform the layer, then scan it.

What JAX does behind `jax.grad` is written out: a scan forwards that keeps the carries, then a scan backwards of
`torch.func.vjp(layer)` that takes the cotangent from the last layer to the first, then the gradients of the parameters,
layer by layer. Trees are flat lists here. Everything works in the order in which layers run, "application order".
Source: https://docs.pytorch.org/docs/2.13/notes/extending.func.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._higher_order_ops.scan import scan as scan_operator

Layer = Callable[..., tuple[Any, Any]]
Arrays = list[torch.Tensor]
Step = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (carry, slices) -> (new_carry, y)


class Stack(NamedTuple):
    """What a program depends on beside its arrays; hashable, so that programs are kept by it."""

    step: Step
    y_floats: tuple[bool, ...]  # for each y, whether it has a derivative
    reverse: bool = False
    unroll: int = 1
    remat: int = 1  # one carry every so many layers is kept
    wanted: tuple[bool, ...] = ()  # for each stacked array, whether its gradient is asked for


def scan(stack: Stack, stacked: Arrays, init: Arrays, keep: bool) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept): with `keep`, the carries that `scan_vjp` starts from, in application order."""
    num_layers, num_ys, k = stacked[0].shape[0], len(stack.y_floats), stack.remat if keep else 1
    if num_layers == 0:  # the operator refuses an empty stack
        _, y = stack.step(init, [a.new_empty(a.shape[1:]) for a in stacked])
        return owned(init), [a.new_empty((0, *a.shape)) for a in y], [c.new_empty((0, *c.shape)) for c in init]
    if k == stack.unroll == 1 and not stack.reverse:
        carry, out = _scan(_keeping(stack.step) if keep else stack.step, init, stacked)
        return carry, out[:num_ys], out[num_ys:]
    # Else the steps are counted. `reverse=True` of the operator flips, and so copies, the whole stack; and Inductor
    # reads wrongly from what is left over of a stack, a view that begins in the middle of it.
    stacked = _distinct(stacked)

    def body(carry: Arrays, t: Arrays) -> tuple[Arrays, Arrays]:
        return stack.step(carry, _read(stack, stacked, t[0]))

    def group(carry: Arrays, g: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, ys = _loop(body, carry, g[0] * k, k, stack.unroll)
        return new_carry, [*ys, *carry]

    groups, parts, carry, kept = num_layers // k if k > 1 else 0, [], init, []
    if groups:
        carry, out = _scan(group, carry, [_count(0, groups, like=stacked)])
        parts.append([y.flatten(0, 1) for y in out[:num_ys]])
        kept = out[num_ys:]
    if groups * k < num_layers:
        first, count = _first(groups * k, stacked), num_layers - groups * k
        carry, out = _loop(_keeping(body) if keep else body, carry, first, count, stack.unroll)
        parts.append(out[:num_ys])
        kept = [*kept, *out[num_ys:]]
    ys = _joined(parts)
    return carry, [y.flip(0) for y in ys] if stack.reverse else ys, kept


def scan_vjp(stack: Stack, stacked: Arrays, kept: Arrays, dcarry: Arrays, dys: Arrays) -> tuple[Arrays, Arrays]:
    """(dstacked, dinit) for cotangents of the floating-point carries and ys; dstacked only of what is wanted."""
    num_layers, k = stacked[0].shape[0], stack.remat
    # owned: a cotangent broadcast from a scalar has stride 0, and Inductor's scan reads it wrongly
    dcarry, dys = owned(dcarry), [dy.flip(0) for dy in dys] if stack.reverse else owned(dys)
    if num_layers == 0:
        return [torch.zeros_like(a) for a, wanted in zip(stacked, stack.wanted, strict=True) if wanted], dcarry
    stacked = _distinct(stacked)
    if k == 1:
        return _pull(stack, stacked, _first(0, stacked), num_layers, kept, dcarry, dys)

    def body(carry: Arrays, t: Arrays) -> tuple[Arrays, Arrays]:
        return stack.step(carry, _read(stack, stacked, t[0]))

    def group(dcarry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - x[0]
        _, out = _loop(_keeping(body), _at(kept[:num_carries], g), g * k, k, stack.unroll)
        dslices, dcarry = _pull(stack, stacked, g * k, k, out[len(stack.y_floats) :], dcarry, dys)
        return dcarry, dslices

    groups, parts = num_layers // k, []
    rest = num_layers - groups * k
    num_carries = len(kept) // 2 if groups and rest else len(kept)
    if rest:
        first = _first(groups * k, stacked)
        dslices, dcarry = _pull(stack, stacked, first, rest, kept[-num_carries:], dcarry, dys)
        parts.append(dslices)
    if groups:
        dcarry, dslices = _scan(group, dcarry, [_count(0, groups, like=stacked)])
        # The last group comes first: the order of the layers if they run in reverse.
        parts.append([(d if stack.reverse else d.flip(0)).flatten(0, 1) for d in dslices])
    return _joined(parts if stack.reverse else parts[::-1]), dcarry


def unrolled(step: Step, stacked: Arrays, init: Arrays, reverse: bool) -> tuple[Arrays, Arrays]:
    """The same values as `scan`, with N layers in the graph."""
    num_layers = stacked[0].shape[0]
    if num_layers == 0:
        _, y = step(init, [a.new_empty(a.shape[1:]) for a in stacked])
        return init, [a.new_empty((0, *a.shape)) for a in y]
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    split = [a.unbind() for a in stacked]
    carry, ys = init, [[]] * num_layers  # type: ignore[var-annotated]
    for i in reversed(range(num_layers)) if reverse else range(num_layers):
        carry, ys[i] = step(carry, [parts[i] for parts in split])
    return carry, [torch.stack(parts) for parts in zip(*ys, strict=True)]


def owned(arrays: Arrays) -> Arrays:
    """Copies in memory and order of their own: scan refuses outputs that alias inputs and carries of other strides."""
    return [a.clone(memory_format=torch.contiguous_format) for a in arrays]


def _pull(
    stack: Stack, stacked: Arrays, first: torch.Tensor, count: int, carries: Arrays, dcarry: Arrays, dys: Arrays
) -> tuple[Arrays, Arrays]:
    """(dslices in the order of the layers, dcarry) of `count` steps from `first` [1]; carries [count, ...] entered."""
    moving = [i for i, carry in enumerate(carries) if carry.is_floating_point()]
    wanted = [i for i, is_wanted in enumerate(stack.wanted) if is_wanted]

    def outputs(carry: Arrays, slices: Arrays) -> tuple[torch.Tensor, ...]:
        new_carry, y = stack.step(carry, slices)
        return (*(new_carry[i] for i in moving), *(a for a, floats in zip(y, stack.y_floats, strict=True) if floats))

    def carry_body(dcarry: Arrays, j: Arrays) -> tuple[Arrays, Arrays]:
        last_first = count - 1 - j[0]
        carry, dy = _at(carries, last_first), _at(dys, first + last_first)
        slices = _read(stack, stacked, first + last_first)
        function = lambda *values: outputs(with_floats(carry, values), slices)  # noqa: E731
        _, pullback = torch.func.vjp(function, *(carry[i] for i in moving))  # type: ignore[misc]
        return list(pullback((*dcarry, *dy))), dcarry

    def params_body(none: Arrays, j: Arrays) -> tuple[Arrays, Arrays]:
        p = count - 1 - j[0] if stack.reverse else j[0]
        carry, dy, cotangent = _at(carries, p), _at(dys, first + p), _at(cotangents, count - 1 - p)
        slices = _read(stack, stacked, first + p)
        function = lambda *values: outputs(carry, _replaced(slices, wanted, values))  # noqa: E731
        _, pullback = torch.func.vjp(function, *(slices[i] for i in wanted))  # type: ignore[misc]
        return none, list(pullback((*cotangent, *dy)))

    # Only the cotangents depend on each other. Once they are known, the gradients of the parameters are made in the
    # order of the layers: made on the way down they would have to be flipped, and so copied.
    zero = _first(0, stacked)
    dcarry, cotangents = _loop(carry_body, dcarry, zero, count, stack.unroll) if moving else (dcarry, [])
    if not wanted:
        return [], dcarry
    # One at a time, whatever `unroll` says: what is left over would have to be appended, which copies.
    _, dslices = _loop(params_body, [], zero, count, 1)
    return dslices, dcarry


def _loop(body: Step, carry: Arrays, first: torch.Tensor, count: int, unroll: int) -> tuple[Arrays, Arrays]:
    """Scan `body(carry, [t])` over `count` steps from `first` [1], `unroll` at a time, and what is left one by one."""

    def several(carry: Arrays, t: Arrays) -> tuple[Arrays, Arrays]:
        ys = []
        for j in range(unroll):  # the layers that `unroll` asks for in one body
            carry, y = body(carry, [t[0] + j])
            ys.append(y)
        return carry, [torch.stack(y) for y in zip(*ys, strict=True)]

    whole, parts = count // unroll * unroll if unroll > 1 else 0, []
    if whole:
        carry, ys = _scan(several, carry, [first + _count(0, whole, unroll, like=[first])])
        parts.append([y.flatten(0, 1) for y in ys])
    if whole < count:
        carry, ys = _scan(body, carry, [first + _count(whole, count, like=[first])])
        parts.append(ys)
    return carry, _joined(parts)


def _scan(body: Step, carry: Arrays, xs: Arrays) -> tuple[Arrays, Arrays]:
    """The operator, for a body that may return what it was given, or no carry, or no y: empty arrays stand in."""
    num_carries = len(carry)

    def owning(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = body(carry[:num_carries], x)
        return owned(new_carry or carry), [x[0].new_empty(0), *owned(y)]

    carry, (_, *ys) = scan_operator(owning, owned(carry) or [xs[0].new_empty(0)], xs)
    return list(carry[:num_carries]), ys


def _joined(parts: list[Arrays]) -> Arrays:
    return parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _count(start: int, stop: int, step: int = 1, *, like: Arrays) -> torch.Tensor:
    return torch.arange(start, stop, step, device=like[0].device).unsqueeze(1)  # [steps, 1]


def _first(step: int, like: Arrays) -> torch.Tensor:
    return torch.full((1,), step, device=like[0].device)  # int64


def _read(stack: Stack, stacked: Arrays, t: torch.Tensor) -> Arrays:
    """The slices of the layer that runs at step t [1]."""
    return _at(stacked, stacked[0].shape[0] - 1 - t if stack.reverse else t)


def _at(arrays: Arrays, i: torch.Tensor) -> Arrays:
    return [a.index_select(0, i)[0] for a in arrays]


def _distinct(arrays: Arrays) -> Arrays:
    """A copy of what is a view of another: the operator refuses a body that closes over both."""
    distinct: Arrays = []
    bases: Arrays = []
    for array in arrays:
        base = array if array._base is None else array._base
        distinct.append(array.clone() if any(base is other for other in bases) else array)
        bases.append(base)
    return distinct


def _keeping(body: Step) -> Step:
    def keeping(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = body(carry, x)
        return new_carry, [*y, *carry]

    return keeping


def with_floats(arrays: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Arrays:
    """`arrays`, those of floating point replaced by `values`."""
    rest = iter(values)
    return [next(rest) if array.is_floating_point() else array for array in arrays]


def _replaced(arrays: Arrays, places: list[int], values: tuple[torch.Tensor, ...]) -> Arrays:
    new = dict(zip(places, values, strict=True))
    return [new.get(i, array) for i, array in enumerate(arrays)]
