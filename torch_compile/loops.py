"""The loops under `stack.py`: one forwards that keeps what the layer's derivative needs, and one backwards.

    for i in range(N):                              for i in reversed(range(N)):
        kept[i] = what the derivative reads             dcarry, dparams[i] = derivative(kept[i], dcarry, dys[i])
        carry, ys[i] = layer(carry, params[i])

Trees are flat lists here. The layer and its derivative are given as a `Rule` (residuals.py). Layers have a number i in
the stack, and run as number p. The operator itself, and the rows that it fills, are in primitive.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torch_compile.primitive import Arrays, Body, Seen, Step, at, loop, owned, rows_for, write, written_within


class Plan(NamedTuple):
    """How a stack is run."""

    step: Step
    reverse: bool = False
    unroll: int = 1
    remat: int = 0  # 0: what the derivative reads is kept; k: one carry every k layers
    num_params: int = 0  # of the stacked arrays; the others are xs
    seen: Seen = Seen()
    rule: Any = None  # the Rule of the step

    @property
    def span(self) -> int:
        """How many layers one step of the loop may hold."""
        return max(self.unroll, self.remat)


class Rule(NamedTuple):
    """The layer and its derivative on flat lists, each for the body of a loop; like_: shapes and dtypes."""

    forward: Callable[..., tuple[Arrays, Arrays, Arrays]]  # (carry, slices, closed) -> (new_carry, y, kept)
    backward: Callable[..., tuple[Arrays, Arrays, Arrays]]  # (kept, slices, closed, dcarry, dy) -> d of the others
    like_ys: Arrays
    like_kept: Arrays
    like_dslices: Arrays
    like_dclosed: Arrays
    constants: Arrays  # arrays that the layer makes of numbers: the loop reads them after what is closed over


def scan(plan: Plan, stacked: Arrays, init: Arrays, closed: Arrays, keep: bool) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept): with `keep`, what `scan_vjp` starts from."""
    k, unroll, steps = _groups(plan, stacked, keep)
    ys, kept = rows_for(plan.rule.like_ys, steps * unroll * k), rows_for(plan.rule.like_kept, steps * unroll)
    read = [stacked, closed]

    def group(g: int, carry: Arrays, rows: Any, read: Any) -> Arrays:
        ys, kept = written_within(rows)
        write(kept, g, carry)
        return _layers(plan, g * k, k, plan.unroll, carry, ys, [], read)[0]

    if k == 1:
        carry, ys, kept = _layers(plan, 0, steps * unroll, unroll, init, ys, kept if keep else [], read)
    else:
        carry, (ys, kept) = loop(group, 0, steps, 1, init, [ys, kept], read)
    return carry, _of_layers(plan, ys, stacked), kept


def scan_vjp(
    plan: Plan, stacked: Arrays, closed: Arrays, kept: Arrays, dcarry: Arrays, dys: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """(dstacked, dinit, dclosed) for cotangents of the floating-point carries and ys; of what is wanted."""
    k, unroll, steps = _groups(plan, stacked, True)
    step, dstacked = vjp_step(plan, len(dcarry)), rows_for(plan.rule.like_dslices, steps * unroll * k)
    # owned: a cotangent broadcast from a scalar has stride 0, and Inductor's scan reads it wrongly
    read, state = [stacked, closed, kept, owned(dys)], [*dcarry, *map(torch.zeros_like, plan.rule.like_dclosed)]

    def group(g: int, state: Arrays, rows: Any, read: Any) -> Arrays:
        (stacked, closed, kept, dys), dstacked = read, written_within(rows)
        # the carry before each layer, for which the last need not run
        carry, carries = at(kept, g), rows_for(plan.rule.like_kept, k)
        carry, _, carries = _layers(plan, g * k, k - 1, plan.unroll, carry, [], carries, [stacked, closed])
        write(carries, k - 1, carry)
        read = [stacked, closed, carries, dys]
        return loop(step, g * k + k - 1, k, plan.unroll, state, dstacked, read, down=True)[0]

    if k == 1:
        last = steps * unroll - 1
        state, (dstacked,) = loop(step, last, steps * unroll, unroll, state, [dstacked], read, down=True)
    else:
        state, (dstacked,) = loop(group, steps - 1, steps, 1, state, [dstacked], read, down=True)
    return _of_layers(plan, dstacked, stacked), state[: len(dcarry)], state[len(dcarry) :]


def vjp_step(plan: Plan, num_dcarry: int) -> Body:
    """The derivative of the layer that runs as number p, for a carry of [*dcarry, *dclosed]."""

    def step(p: int, state: Arrays, rows: Any, read: Any) -> Arrays:
        (stacked, closed, kept, dys), i = read, _layer(plan, p, read[0])
        dcarry, dclosed = state[:num_dcarry], state[num_dcarry:]
        slices, kept = at(stacked, i), at(kept, _place(plan, p))
        dcarry, dslices, more = plan.rule.backward(kept, slices, closed, dcarry, at(dys, i))
        write(rows[0], _row(plan, p, rows[0]), dslices)
        new_state = [*dcarry, *(a + b for a, b in zip(dclosed, more, strict=True))]
        return _unless_past(plan, p, stacked, new_state, state)

    return step


def unrolled(step: Step, stacked: Arrays, init: Arrays, reverse: bool) -> tuple[Arrays, Arrays]:
    """The same values as `scan`, with N layers in the graph."""
    num_layers = stacked[0].shape[0]
    if num_layers == 0:
        return nothing(step, stacked, init)
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    split = [a.unbind() for a in stacked]
    carry, ys = init, [[]] * num_layers  # type: ignore[var-annotated]
    for i in reversed(range(num_layers)) if reverse else range(num_layers):
        carry, ys[i] = step(carry, [parts[i] for parts in split])
    return carry, [torch.stack(parts) for parts in zip(*ys, strict=True)]


def nothing(step: Step, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """The same for no layers."""
    _, y = step(init, [a.new_zeros(a.shape[1:]) for a in stacked])
    return owned(init), [a.new_empty((0, *a.shape)) for a in y]


def _groups(plan: Plan, stacked: Arrays, keep: bool) -> tuple[int, int, int]:
    """(k, unroll, steps): a loop of so many steps, each of a group of k layers, or of `unroll` layers.

    There may be fewer layers than that: those past the last one run on its parameters, and change nothing."""
    num_layers, is_grouped = stacked[0].shape[0], keep and plan.remat > 1
    size = plan.remat if is_grouped else plan.unroll
    size = int(num_layers) if num_layers < size else size
    return size if is_grouped else 1, 1 if is_grouped else size, (num_layers + size - 1) // size


def _layers(
    plan: Plan, first: int, count: int, unroll: int, carry: Arrays, ys: Arrays, kept: Arrays, read: Any
) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept) after the layers that run as number `first` and on, so many of them."""

    def step(p: int, carry: Arrays, rows: Any, read: Any) -> Arrays:
        stacked, closed = read
        new_carry, y, keep = plan.rule.forward(carry, at(stacked, _layer(plan, p, stacked)), closed)
        if rows[0]:
            write(rows[0], _row(plan, p, rows[0]), y)
        if rows[1]:
            write(rows[1], _place(plan, p), keep)
        return _unless_past(plan, p, stacked, new_carry, carry)

    carry, (ys, kept) = loop(step, first, count, unroll, carry, [ys, kept], read)
    return carry, ys, kept


def _layer(plan: Plan, p: int, stacked: Arrays) -> int:
    """Which layer runs as number p."""
    last = stacked[0].shape[0] - 1
    p = torch.sym_min(p, last) if plan.span > 1 else p
    return last - p if plan.reverse else p


def _row(plan: Plan, p: int, rows: Arrays) -> int:
    """In which row something of that layer is written."""
    return rows[0].shape[0] - 1 - p if plan.reverse and rows else p


def _place(plan: Plan, p: int) -> int:
    """Where something is kept of it: a group has k places."""
    return p % plan.remat if plan.remat > 1 else p


def _unless_past(plan: Plan, p: int, stacked: Arrays, new: Arrays, old: Arrays) -> Arrays:
    """`new`, or past the last layer `old`."""
    if plan.span == 1:
        return new
    is_layer = torch.scalar_tensor(p, dtype=torch.int64, device=stacked[0].device) < stacked[0].shape[0]
    return [torch.where(is_layer, *both) for both in zip(new, old, strict=True)]


def _of_layers(plan: Plan, rows: Arrays, stacked: Arrays) -> Arrays:
    """The rows of layers."""
    num_layers = stacked[0].shape[0]
    if plan.span == 1:
        return rows
    return [a[a.shape[0] - num_layers :] if plan.reverse else a[:num_layers] for a in rows]
