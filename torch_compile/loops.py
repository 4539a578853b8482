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

from torch_compile.primitive import Arrays, Step, distinct, owned, scan_operator

Layer = Callable[..., tuple[Any, Any]]


class Seen(NamedTuple):
    """What one run of a layer has shown of it."""

    draws: str = ""  # an operation that draws random numbers
    writes: str = ""  # one that writes into an array which the layer has not made
    reads: str = ""  # the dtype of a complex array that it closes over
    has_loop: bool = False  # one of its own
    has_checkpoint: bool = False  # torch.utils.checkpoint
    rule: str = ""  # a derivative of the user's own


class Stack(NamedTuple):
    """What a program depends on beside its arrays."""

    step: Step
    y_floats: tuple[bool, ...]  # for each y, whether it has a derivative
    num_params: int  # of the stacked arrays; the others are xs
    reverse: bool = False
    unroll: int = 1
    remat: int = 1  # one carry every so many layers is kept
    wanted: tuple[bool, ...] = ()  # for each stacked array, whether its gradient is asked for
    seen: Seen = Seen()

    @property
    def span(self) -> int:
        """How many layers one step of the loop may hold."""
        return max(self.unroll, self.remat)


def scan(stack: Stack, stacked: Arrays, init: Arrays, keep: bool) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept): with `keep`, the carries that `scan_vjp` starts from, in application order."""
    num_layers, num_ys, k = stacked[0].shape[0], len(stack.y_floats), stack.remat if keep else 1
    if num_layers == 0:  # the operator refuses an empty stack
        _, y = stack.step(init, [a.new_empty(a.shape[1:]) for a in stacked])
        return owned(init), [a.new_empty((0, *a.shape)) for a in y], [c.new_empty((0, *c.shape)) for c in init]
    if k == stack.unroll == 1 and not stack.reverse:
        carry, out = scan_operator(_keeping(stack.step) if keep else stack.step, init, stacked)
    elif k == 1 and not stack.reverse:
        carry, out = _scan_several(stack, stacked, init, keep)
    else:
        # The steps are counted. `reverse=True` of the operator flips, and so copies, the whole stack; and Inductor
        # reads wrongly from what is left over of a stack, a view that begins in the middle of it.
        body = _counted(stack, distinct(stacked))
        if k == 1:
            carry, out = _loop(_keeping(body) if keep else body, init, 0, num_layers, stack.unroll, stacked)
        else:

            def group(carry: Arrays, g: Arrays) -> tuple[Arrays, Arrays]:
                new_carry, ys = _loop(body, carry, g[0] * k, k, stack.unroll, stacked)
                return new_carry, [*ys, *carry]

            carry, out = scan_operator(group, init, [_count(0, -(-num_layers // k), like=stacked)])
            out = [*(y.flatten(0, 1)[:num_layers] for y in out[:num_ys]), *out[num_ys:]]
    return carry, [y.flip(0) for y in out[:num_ys]] if stack.reverse else out[:num_ys], out[num_ys:]


def _scan_several(stack: Stack, stacked: Arrays, init: Arrays, keep: bool) -> tuple[Arrays, Arrays]:
    """`unroll` layers a step, which the operator slices without a copy; then what is left, counted."""
    num_layers, unroll, step = stacked[0].shape[0], stack.unroll, _keeping(stack.step) if keep else stack.step
    whole, carry, parts = num_layers // unroll * unroll, init, []
    if whole:
        groups = [a[:whole].unflatten(0, (whole // unroll, unroll)) for a in stacked]
        several = _several(step, unroll, lambda slices, j: [a[j] for a in slices])
        carry, ys = scan_operator(several, carry, groups, views_of=stacked[0])
        parts.append([y.flatten(0, 1) for y in ys])
    if whole < num_layers:
        body = _counted(stack, distinct(stacked))
        carry, ys = _loop(_keeping(body) if keep else body, carry, whole, num_layers - whole, 1, stacked)
        parts.append(ys)
    return carry, _joined(parts)


def scan_vjp(stack: Stack, stacked: Arrays, kept: Arrays, dcarry: Arrays, dys: Arrays) -> tuple[Arrays, Arrays]:
    """(dstacked, dinit) for cotangents of the floating-point carries and ys; dstacked only of what is wanted."""
    num_layers, k = stacked[0].shape[0], stack.remat
    # owned: a cotangent broadcast from a scalar has stride 0, and Inductor's scan reads it wrongly
    dcarry, dys = owned(dcarry), [dy.flip(0) for dy in dys] if stack.reverse else owned(dys)
    if num_layers == 0:
        return [torch.zeros_like(a) for a, wanted in zip(stacked, stack.wanted, strict=True) if wanted], dcarry
    stacked = distinct(stacked)
    # Only the cotangents depend on each other. Once they are known, the gradients of the parameters are made in the
    # order of the layers: made on the way down they would have to be flipped, and so copied.
    if k == 1:
        dinit, cotangents = _cotangents(stack, stacked, 0, num_layers, kept, dcarry, dys)
        return _dslices(stack, stacked, 0, num_layers, kept, cotangents, dys), dinit

    groups, num_ys, body = -(-num_layers // k), len(stack.y_floats), _keeping(_counted(stack, stacked))

    def again(g: torch.Tensor) -> Arrays:  # the carries of group g
        return _loop(body, _at(kept, g), g * k, k, stack.unroll, stacked)[1][num_ys:]

    def group_cotangent(dcarry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - x[0]
        return _cotangents(stack, stacked, g * k, k, again(g), dcarry, dys)[0], dcarry

    def group_dslices(none: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - x[0] if stack.reverse else x[0]
        carries = again(g)
        _, cotangents = _cotangents(stack, stacked, g * k, k, carries, _at(ends, groups - 1 - g), dys)
        return none, _dslices(stack, stacked, g * k, k, carries, cotangents, dys)

    order = _count(0, groups, like=stacked)
    dinit, ends = scan_operator(group_cotangent, dcarry, [order])
    _, dslices = scan_operator(group_dslices, [], [order]) if any(stack.wanted) else ([], [])
    left_over = groups * k - num_layers  # steps of the last group without a layer
    flat = [d.flatten(0, 1) for d in dslices]
    return [d[left_over:] if stack.reverse else d[:num_layers] for d in flat], dinit


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


def _counted(stack: Stack, stacked: Arrays) -> Step:
    """The stack's step for x = [t], which reads its layer in place; behind the last layer nothing happens."""
    num_layers = stacked[0].shape[0]

    def body(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = stack.step(carry, _read(stack, stacked, x[0])[0])
        if stack.remat > 1:  # the last group may have fewer layers than steps
            new_carry = [torch.where(x[0][0] < num_layers, *both) for both in zip(new_carry, carry, strict=True)]
        return new_carry, y

    return body


def _cotangents(
    stack: Stack, stacked: Arrays, first: Any, count: int, carries: Arrays, dcarry: Arrays, dys: Arrays
) -> tuple[Arrays, Arrays]:
    """(dcarry, cotangents) of `count` steps from `first`, which carries [count, ...] entered; the last step first."""
    num_layers, moving = stacked[0].shape[0], any(carry.is_floating_point() for carry in carries)

    def body(dcarry: Arrays, j: Arrays) -> tuple[Arrays, Arrays]:
        p = count - 1 - j[0]
        carry, (slices, dy) = _at(carries, p), _read(stack, stacked, first + p, dys)
        function = lambda *values: _floats(stack, with_floats(carry, _viewed(values)), slices)  # noqa: E731
        _, pullback = torch.func.vjp(function, *(c for c in carry if c.is_floating_point()))  # type: ignore[misc]
        before = pullback((*dcarry, *dy))
        if stack.remat > 1:
            before = [torch.where((first + p)[0] < num_layers, *both) for both in zip(before, dcarry, strict=True)]
        return list(before), dcarry

    return _loop(body, dcarry, 0, count, stack.unroll, carries) if moving else (dcarry, [])


def _dslices(
    stack: Stack, stacked: Arrays, first: Any, count: int, carries: Arrays, cotangents: Arrays, dys: Arrays
) -> Arrays:
    """The gradients of the parameters of `count` steps from `first`, in the order of the layers."""
    wanted = [i for i, is_wanted in enumerate(stack.wanted) if is_wanted]

    def body(none: Arrays, j: Arrays) -> tuple[Arrays, Arrays]:
        p = count - 1 - j[0] if stack.reverse else j[0]
        carry, (slices, dy) = _at(carries, p), _read(stack, stacked, first + p, dys)
        function = lambda *values: _floats(stack, carry, _replaced(slices, wanted, _viewed(values)))  # noqa: E731
        _, pullback = torch.func.vjp(function, *(slices[i] for i in wanted))  # type: ignore[misc]
        return none, list(pullback((*_at(cotangents, count - 1 - p), *dy)))

    # One at a time, whatever `unroll` says: what is left over would have to be appended, which copies.
    return _loop(body, [], 0, count, 1, stacked)[1] if wanted else []


def _floats(stack: Stack, carry: Arrays, slices: Arrays) -> tuple[torch.Tensor, ...]:
    """What the step returns and has a derivative."""
    new_carry, y = stack.step(carry, slices)
    ys = [a for a, is_float in zip(y, stack.y_floats, strict=True) if is_float]
    return (*(new for new, old in zip(new_carry, carry, strict=True) if old.is_floating_point()), *ys)


def _viewed(values: Sequence[torch.Tensor]) -> Arrays:
    """Views: Dynamo loses the derivative of a user's own autograd.Function applied straight to what is differentiated.

    https://github.com/pytorch/pytorch/issues/193279"""
    return [value.view_as(value) for value in values]


def _loop(body: Step, carry: Arrays, first: Any, count: int, unroll: int, like: Arrays) -> tuple[Arrays, Arrays]:
    """Scan `body(carry, [t])` over `count` steps from `first`, `unroll` at a time, and what is left one by one."""

    whole, parts = count // unroll * unroll if unroll > 1 else 0, []
    if whole:
        several = _several(body, unroll, lambda t, j: [t[0] + j])
        carry, ys = scan_operator(several, carry, [first + _count(0, whole, unroll, like=like)])
        parts.append([y.flatten(0, 1) for y in ys])
    if whole < count:
        carry, ys = scan_operator(body, carry, [first + _count(whole, count, like=like)])
        parts.append(ys)
    return carry, _joined(parts)


def _several(body: Step, unroll: int, at: Callable[[Arrays, int], Arrays]) -> Step:
    """`unroll` steps as one: the j-th of them for `at(x, j)`."""

    def several(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        ys = []
        for j in range(unroll):  # the layers that `unroll` asks for in one body
            carry, y = body(carry, at(x, j))
            ys.append(y)
        return carry, [torch.stack(y) for y in zip(*ys, strict=True)]

    return several


def _joined(parts: list[Arrays]) -> Arrays:
    return parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _count(start: int, stop: int, step: int = 1, *, like: Arrays) -> torch.Tensor:
    return torch.arange(start, stop, step, device=like[0].device).unsqueeze(1)  # [steps, 1]


def _read(stack: Stack, stacked: Arrays, t: torch.Tensor, dys: Sequence[torch.Tensor] = ()) -> Any:
    """The slices of the layer that runs at step t [1], and what dys has for it; behind the last layer, its."""
    last = stacked[0].shape[0] - 1
    t = t.clamp(max=last) if stack.remat > 1 else t
    return _at(stacked, last - t if stack.reverse else t), _at(dys, t)


def _at(arrays: Sequence[torch.Tensor], i: torch.Tensor) -> Arrays:
    rows = [a.index_select(0, i) for a in arrays]  # [1, ...]
    # as_strided, not [0]: Inductor reads each layer once, into an array of its own. Else the reads go into every kernel
    # that uses them, and which kernels become one depends on the size of the whole stack.
    return [torch.as_strided(row, row.shape[1:], row.stride()[1:]) for row in rows]


def _keeping(body: Step) -> Step:
    def keeping(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = body(carry, x)
        return new_carry, [*y, *carry]

    return keeping


def with_floats(arrays: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Arrays:
    """`arrays`, those of floating point replaced by `values`."""
    rest = iter(values)
    return [next(rest) if array.is_floating_point() else array for array in arrays]


def _replaced(arrays: Arrays, places: list[int], values: Arrays) -> Arrays:
    new = dict(zip(places, values, strict=True))
    return [new.get(i, array) for i, array in enumerate(arrays)]
