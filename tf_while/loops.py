"""The loops under `stack.py`: one forwards that keeps what the layer's derivative needs, and one backwards.

    for i in range(N):                              for i in reversed(range(N)):
        kept[i] = what the derivative reads             dcarry, dparams[i] = derivative(kept[i], dcarry, dys[i])
        carry, ys[i] = layer(carry, params[i])

Trees are flat lists here. The layer and its derivative are given as a `Rule` (residuals.py). Layers have a number i in
the stack, and run as number p. `tf.while_loop` itself, and the lists that it fills, are in primitive.py.
Source: https://www.tensorflow.org/api_docs/python/tf/while_loop
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_while.checks import trace_flat
from tf_while.primitive import at, handed_over, like, lists, loop, stack, write
from tf_while.trees import Arrays, FlatLayer, Size, depth, floats, split


class Plan(NamedTuple):
    """How a stack is run."""

    step: FlatLayer
    reverse: bool = False
    unroll: int = 1
    remat: int = 0  # 0: what the derivative reads is kept; k: one carry every k layers
    rule: Any = None  # the Rule of the step


class Rule(NamedTuple):
    """The layer and its derivative on flat lists, each for the body of a loop; like_: shapes and dtypes."""

    forward: Callable[[Arrays, Arrays], tuple[Arrays, Arrays, Arrays]]  # (carry, slices) -> (new_carry, y, kept)
    backward: Callable[..., tuple[Arrays, Arrays, Arrays]]  # (kept, slices, dcarry, dy) -> d of carry, slices, closed
    like_ys: Arrays
    like_kept: Arrays
    runs_again: bool  # the layer, on the way back


def scan(plan: Plan, stacked: Arrays, init: Arrays, keep: bool) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept): with `keep`, what `scan_vjp` starts from."""
    num_layers, k, groups = _groups(plan, stacked)
    ys, kept = lists(plan.rule.like_ys, num_layers), lists(plan.rule.like_kept if keep else [], groups)

    def read(i: Size) -> Arrays:
        return [a[i] for a in stacked]

    def group(g: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        kept = write(kept, g, carry)
        span = g * k, tf.minimum(g * k + k, num_layers), k
        carry, ys, _ = _layers(plan, read, num_layers, span, carry, ys, [])
        return carry, ys, kept

    if k == 1 or not keep:
        carry, ys, kept = _layers(plan, read, num_layers, (0, num_layers, num_layers), init, ys, kept)
    else:
        carry, ys, kept = loop(group, 0, groups, groups, (init, ys, kept), ahead=1)
    return carry, stack(ys, num_layers), handed_over(kept, groups)


def scan_vjp(
    plan: Plan, stacked: Arrays, kept: Arrays, dcarry: Arrays, dys: Arrays, dclosed: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """(dstacked, dcarry, dclosed) for cotangents of the carry and of ys, and zeros to add dclosed to."""
    num_layers, k, groups = _groups(plan, stacked)
    # The derivative of a layer is a layer too: its carry is a cotangent, its ys are the gradients of the slices.
    step = vjp_step(plan.rule, len(stacked), len(dcarry))
    back = plan._replace(reverse=not plan.reverse, rule=plan.rule._replace(forward=lambda *x: (*step(*x), [])))

    def read(i: Size) -> Arrays:
        return [a[i] for a in stacked]

    def read_back(kept: Arrays) -> Callable[[Size], Arrays]:
        return lambda i: [*read(i), *at(kept, _place(plan, i), plan.rule.like_kept), *(a[i] for a in dys)]

    def group(h: Size, state: Arrays, dstacked: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - h
        start, stop = g * k, tf.minimum(g * k + k, num_layers)
        # the carry before each layer, for which the last need not run
        carry, carries = at(kept, g, plan.rule.like_kept), lists(plan.rule.like_kept, k)
        carry, _, carries = _layers(plan, read, num_layers, (start, stop - 1, k - 1), carry, [], carries)
        carries = write(carries, _place(plan, _layer(plan, stop - 1, num_layers)), carry)
        again, span = read_back(handed_over(carries, k)), (num_layers - stop, num_layers - start, k)
        return _layers(back, again, num_layers, span, state, dstacked, [])[:2]

    state = [*dcarry, *dclosed]
    dstacked = lists([tf.TensorSpec(a.shape[1:], a.dtype) for a in floats(stacked)], num_layers)
    if k == 1:
        span = 0, num_layers, num_layers
        state, dstacked, _ = _layers(back, read_back(kept), num_layers, span, state, dstacked, [])
    else:
        state, dstacked = loop(group, 0, groups, groups, (state, dstacked), ahead=1)
    dcarry, dclosed = split(state, len(dcarry))
    return stack(dstacked, num_layers), dcarry, dclosed


def vjp_step(rule: Rule, num_slices: int, num_dcarry: int) -> FlatLayer:
    """The derivative as a layer, of carry [*dcarry, *dclosed] and slices [*slices, *kept, *dys]."""

    def step(state: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        dcarry, dclosed = split(state, num_dcarry)
        slices, kept, dys = split(slices, num_slices, len(rule.like_kept))
        dcarry, dslices, more = rule.backward(kept, slices, dcarry, dys)
        return [*dcarry, *(a if b is None else a + b for a, b in zip(dclosed, more, strict=True))], dslices

    return step


def unrolled(step: FlatLayer, stacked: Arrays, init: Arrays, reverse: bool) -> tuple[Arrays, Arrays]:
    """The same values as `scan`, with N layers in the graph."""
    num_layers = depth(stacked)
    if num_layers == 0:
        return nothing(step, stacked, init)
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    slices = [[*parts] for parts in zip(*(tf.unstack(a, num_layers) for a in stacked), strict=True)]
    carry, ys = init, [init] * num_layers
    for i in reversed(range(num_layers)) if reverse else range(num_layers):
        carry, ys[i] = step(carry, slices[i])
    return [*map(tf.identity, carry)], [tf.stack(parts) for parts in zip(*ys, strict=True)]


def nothing(step: FlatLayer, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """The same for no layers, whose ys have the sizes that trace time knows, or none."""
    like_ys = trace_flat(step, stacked, init).like_ys
    return [*map(tf.identity, init)], [tf.zeros([0, *(n or 0 for n in y.shape)], y.dtype) for y in like_ys]


def _groups(plan: Plan, stacked: Arrays) -> tuple[Size, int, Size]:
    """(N, k, the number of groups of k layers): of each group something is kept once."""
    num_layers = depth(stacked)
    k = max(1, min(plan.remat, num_layers) if isinstance(num_layers, int) else plan.remat)
    return num_layers, k, (num_layers + k - 1) // k


def _layer(plan: Plan, p: Size, num_layers: Size) -> Size:
    """Which layer runs as number p."""
    return num_layers - 1 - p if plan.reverse else p


def _place(plan: Plan, i: Size) -> Size:
    """Where something is kept of layer i: a group has k places."""
    return i % plan.remat if plan.remat > 1 else i


def _layers(
    plan: Plan, read: Callable[..., Arrays], num_layers: Size, span: Any, carry: Arrays, ys: Arrays, kept: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept) after the layers that run as number start to stop, span = (start, stop, at most so many)."""

    def step(p: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        i = _layer(plan, p, num_layers)
        new_carry, y, keep = plan.rule.forward(carry, read(i))
        carry = [like(new, old) for new, old in zip(new_carry, carry, strict=True)]
        return carry, write(ys, i, y) if ys else [], write(kept, _place(plan, i), keep) if kept else []

    start, stop, limit = span
    # ahead: of as many layers that run again, what they make would be in memory at once
    return loop(step, start, stop, limit, (carry, ys, kept), plan.unroll, ahead=1 if plan.rule.runs_again else 10)
