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
    num_layers, num_ys = stacked[0].shape[0], len(stack.y_floats)
    if num_layers == 0:  # the operator refuses an empty stack
        _, y = stack.step(init, [a.new_empty(a.shape[1:]) for a in stacked])
        return owned(init), [a.new_empty((0, *a.shape)) for a in y], [c.new_empty((0, *c.shape)) for c in init]
    # Backwards the layers are counted: `reverse=True` of the operator flips, and so copies, the whole stack.
    stacked = _distinct(stacked) if stack.reverse else stacked
    xs = [_steps(num_layers, stacked)] if stack.reverse else stacked

    def body(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        return stack.step(carry, _read(stack, stacked, x[0]) if stack.reverse else x)

    if keep and stack.remat > 1:
        carry, ys, kept = _scan_groups(body, init, xs, stack, num_ys)
    else:
        carry, out = _loop(_keeping(body) if keep else body, init, xs, stack.unroll)
        ys, kept = out[:num_ys], out[num_ys:]
    return carry, [y.flip(0) for y in ys] if stack.reverse else ys, kept


def scan_vjp(stack: Stack, stacked: Arrays, kept: Arrays, dcarry: Arrays, dys: Arrays) -> tuple[Arrays, Arrays]:
    """(dstacked, dinit) for cotangents of the floating-point carries and ys; dstacked only of what is wanted."""
    num_layers, k = stacked[0].shape[0], stack.remat
    # owned: a cotangent broadcast from a scalar has stride 0, and Inductor's scan reads it wrongly
    dcarry, dys = owned(dcarry), [dy.flip(0) for dy in dys] if stack.reverse else owned(dys)
    if num_layers == 0:
        return [torch.zeros_like(a) for a, wanted in zip(stacked, stack.wanted, strict=True) if wanted], dcarry
    stacked, steps = _distinct(stacked), _steps(num_layers, stacked)
    if k == 1:
        return _pull(stack, stacked, steps, kept, dcarry, dys)

    def body(carry: Arrays, t: Arrays) -> tuple[Arrays, Arrays]:
        return stack.step(carry, _read(stack, stacked, t[0]))

    def group(dcarry: Arrays, g: Arrays) -> tuple[Arrays, Arrays]:
        (t, *dy), carry = _at(whole, g[0]), _at(kept[:num_carries], g[0])
        _, out = _loop(_keeping(body), carry, [t], stack.unroll)
        dslices, dcarry = _pull(stack, stacked, t, out[len(stack.y_floats) :], dcarry, dy)
        return dcarry, dslices

    whole, rest = _split([steps, *dys], k)
    num_carries = len(kept) // 2 if whole and rest else len(kept)
    pieces = []
    if rest:
        dslices, dcarry = _pull(stack, stacked, rest[0], kept[-num_carries:], dcarry, rest[1:])
        pieces.append(dslices)
    if whole:
        dcarry, dslices = _scan(group, dcarry, [_steps(num_layers // k, stacked).flip(0)])
        # The last group comes first: the order of the layers if they run in reverse.
        pieces.append([(d if stack.reverse else d.flip(0)).flatten(0, 1) for d in dslices])
    pieces = pieces if stack.reverse else pieces[::-1]
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pieces, strict=True)], dcarry


def unrolled(step: Step, stacked: Arrays, init: Arrays, reverse: bool) -> tuple[Arrays, Arrays]:
    """The same values as `scan`, with N layers in the graph."""
    num_layers = stacked[0].shape[0]
    if num_layers == 0:
        _, y = step(init, [a.new_empty(a.shape[1:]) for a in stacked])
        return init, [a.new_empty((0, *a.shape)) for a in y]
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    split = [a.unbind() for a in stacked]
    carry, ys = init, [[] for _ in range(num_layers)]
    for i in reversed(range(num_layers)) if reverse else range(num_layers):
        carry, ys[i] = step(carry, [parts[i] for parts in split])
    return carry, [torch.stack(parts) for parts in zip(*ys, strict=True)]


def owned(arrays: Arrays) -> Arrays:
    """Copies in memory and order of their own: scan refuses outputs that alias inputs and carries of other strides."""
    return [a.clone(memory_format=torch.contiguous_format) for a in arrays]


def _scan_groups(body: Step, carry: Arrays, xs: Arrays, stack: Stack, num_ys: int) -> tuple[Arrays, Arrays, Arrays]:
    """Keep one carry every k layers, and every carry of a last group of fewer."""

    def group(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, ys = _loop(body, carry, x, stack.unroll)
        return new_carry, [*ys, *carry]

    whole, rest = _split(xs, stack.remat)
    ys, kept = [], []
    if whole:
        carry, out = _scan(group, carry, whole)
        ys, kept = [y.flatten(0, 1) for y in out[:num_ys]], out[num_ys:]
    if rest:
        carry, out = _loop(_keeping(body), carry, rest, stack.unroll)
        ys = [torch.cat(parts) for parts in zip(ys, out[:num_ys], strict=True)] if whole else out[:num_ys]
        kept = [*kept, *out[num_ys:]]
    return carry, ys, kept


def _pull(
    stack: Stack, stacked: Arrays, steps: torch.Tensor, carries: Arrays, dcarry: Arrays, dys: Arrays
) -> tuple[Arrays, Arrays]:
    """(dslices in the order of the layers, dcarry) of the layers at `steps` [m, 1]; carries [m, ...] entered them."""
    moving = [i for i, carry in enumerate(carries) if carry.is_floating_point()]
    wanted = [i for i, is_wanted in enumerate(stack.wanted) if is_wanted]

    def outputs(carry: Arrays, slices: Arrays) -> tuple[torch.Tensor, ...]:
        new_carry, y = stack.step(carry, slices)
        return (*(new_carry[i] for i in moving), *(a for a, floats in zip(y, stack.y_floats, strict=True) if floats))

    def carry_body(dcarry: Arrays, j: Arrays) -> tuple[Arrays, Arrays]:
        (t, *carry), dy = _at([steps, *carries], j[0]), _at(dys, j[0])
        slices = _read(stack, stacked, t)
        function = lambda *values: outputs(with_floats(carry, values), slices)  # noqa: E731
        _, pullback = torch.func.vjp(function, *(carry[i] for i in moving))
        return list(pullback((*dcarry, *dy))), dcarry

    def params_body(none: Arrays, j: Arrays) -> tuple[Arrays, Arrays]:
        (t, *carry), dy, cotangent = _at([steps, *carries], j[0]), _at(dys, j[0]), _at(cotangents, last - j[0])
        slices = _read(stack, stacked, t)
        function = lambda *values: outputs(carry, _replaced(slices, wanted, values))  # noqa: E731
        _, pullback = torch.func.vjp(function, *(slices[i] for i in wanted))
        return none, list(pullback((*cotangent, *dy)))

    # Only the cotangents depend on each other. Once they are known, the gradients of the parameters are made in the
    # order of the layers: made on the way down they would have to be flipped, and so copied.
    first_to_last, last = _steps(steps.shape[0], stacked), steps.shape[0] - 1
    last_to_first = last - first_to_last
    dcarry, cotangents = _loop(carry_body, dcarry, [last_to_first], stack.unroll) if moving else (dcarry, [])
    if not wanted:
        return [], dcarry
    # One at a time, whatever `unroll` says: what remains would have to be appended, which copies.
    _, dslices = _scan(params_body, [], [last_to_first if stack.reverse else first_to_last])
    return dslices, dcarry


def _loop(body: Step, carry: Arrays, xs: Arrays, unroll: int) -> tuple[Arrays, Arrays]:
    """Scan `body` over axis 0 of xs, `unroll` steps at a time, and what remains one by one."""
    if unroll == 1:
        return _scan(body, carry, xs)

    def several(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        ys = []
        for j in range(unroll):
            carry, y = body(carry, [a[j] for a in x])
            ys.append(y)
        return carry, [torch.stack(parts) for parts in zip(*ys, strict=True)]

    whole, rest = _split(xs, unroll)
    if not whole:
        return _scan(body, carry, rest)
    carry, ys = _scan(several, carry, whole)
    ys = [y.flatten(0, 1) for y in ys]
    if not rest:
        return carry, ys
    carry, last = _scan(body, carry, rest)
    return carry, [torch.cat(parts) for parts in zip(ys, last, strict=True)]


def _scan(body: Step, carry: Arrays, xs: Arrays) -> tuple[Arrays, Arrays]:
    """The operator, for a body that may return what it was given, or no carry, or no y: empty arrays stand in."""
    num_carries = len(carry)

    def owning(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = body(carry[:num_carries], x)
        return owned(new_carry or carry), [x[0].new_empty(0), *owned(y)]

    carry, (_, *ys) = scan_operator(owning, owned(carry) or [xs[0].new_empty(0)], xs)
    return list(carry[:num_carries]), ys


def _split(xs: Arrays, k: int) -> tuple[Arrays, Arrays]:
    """Views [N // k, k, ...] and [N % k, ...]; an empty list for what is empty."""
    whole = xs[0].shape[0] // k * k
    in_groups = [a[:whole].unflatten(0, (-1, k)) for a in xs] if whole else []
    return in_groups, [a[whole:] for a in xs] if whole < xs[0].shape[0] else []


def _steps(num_layers: int, like: Arrays) -> torch.Tensor:
    return torch.arange(num_layers, device=like[0].device).unsqueeze(1)  # [N, 1]


def _read(stack: Stack, stacked: Arrays, t: torch.Tensor) -> Arrays:
    """The slices of the layer that runs at step t [1]."""
    return _at(stacked, stacked[0].shape[0] - 1 - t if stack.reverse else t)


def _at(arrays: Arrays, i: torch.Tensor) -> Arrays:
    return [a.index_select(0, i)[0] for a in arrays]


def _distinct(arrays: Arrays) -> Arrays:
    """A copy of what is a view of another: the operator refuses a body that closes over both."""
    distinct, bases = [], []
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
