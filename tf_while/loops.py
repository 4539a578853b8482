"""The loops under `stack.py`: `tf.while_loop` with a counter, forwards with what is kept, and backwards over it.

    for i in range(N):                              for i in reversed(range(N)):
        kept[i] = what the derivative reads             dcarry, dparams[i] = derivative(kept[i], dcarry, dys[i])
        carry, ys[i] = layer(carry, params[i])

The layer and its derivative are given as a `Rule` (residuals.py). Results are written into a TensorArray, which becomes
one array after the loop. Trees are flat lists here.
Source: https://www.tensorflow.org/api_docs/python/tf/while_loop
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_while.edges import compiled_by_xla, fenced
from tf_while.residuals import vjp_step
from tf_while.trees import Arrays, FlatLayer, Layer, Size, depth, flat, floats, split, trace_flat


class Plan(NamedTuple):
    """How a stack is run."""

    step: FlatLayer
    reverse: bool
    unroll: int
    remat: int  # 0: what the derivative reads is kept; k: one carry every k layers
    rule: Any = None  # the Rule of the step, which needs a trace of it


def scan(plan: Plan, stacked: Arrays, init: Arrays, keep: bool) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept): with `keep`, what `scan_vjp` starts from."""
    num_layers, k, groups = _groups(plan, stacked)
    ys, kept = _lists(plan.rule.like_ys, num_layers), _lists(plan.rule.like_kept if keep else [], groups)

    def read(i: Size) -> Arrays:
        return [a[i] for a in stacked]

    def group(g: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        kept = _write(kept, g, carry)
        span = g * k, tf.minimum(g * k + k, num_layers), k
        carry, ys, _ = _layers(plan, read, num_layers, span, carry, ys, [])
        return carry, ys, kept

    if k == 1 or not keep:
        carry, ys, kept = _layers(plan, read, num_layers, (0, num_layers, num_layers), init, ys, kept)
    else:
        carry, ys, kept = _loop(group, 0, groups, groups, 1, (init, ys, kept))
    return carry, _stack(ys, num_layers), _handed_over(kept, groups)


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
        return lambda i: [*read(i), *_at(kept, _place(plan, i), plan.rule.like_kept), *(a[i] for a in dys)]

    def group(h: Size, state: Arrays, dstacked: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - h
        start, stop = g * k, tf.minimum(g * k + k, num_layers)
        # the carry before each layer, for which the last need not run
        carry, carries = _at(kept, g, plan.rule.like_kept), _lists(plan.rule.like_kept, k)
        carry, _, carries = _layers(plan, read, num_layers, (start, stop - 1, k - 1), carry, [], carries)
        carries = _write(carries, _place(plan, _layer(plan, stop - 1, num_layers)), carry)
        again, span = read_back(_handed_over(carries, k)), (num_layers - stop, num_layers - start, k)
        return _layers(back, again, num_layers, span, state, dstacked, [])[:2]

    state, dstacked = (
        [*dcarry, *dclosed],
        _lists([tf.TensorSpec(a.shape[1:], a.dtype) for a in floats(stacked)], num_layers),
    )
    if k == 1:
        span = 0, num_layers, num_layers
        state, dstacked, _ = _layers(back, read_back(kept), num_layers, span, state, dstacked, [])
    else:
        state, dstacked = _loop(group, 0, groups, groups, 1, (state, dstacked))
    dcarry, dclosed = split(state, len(dcarry))
    return _stack(dstacked, num_layers), dcarry, dclosed


def unrolled(layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: int, reverse: bool) -> tuple[Any, Any]:
    """The same values as `scan`, with N layers in the graph."""
    flat_layer, arrays, carry, pack_carry, pack_ys = flat(layer, stacked, init)
    if num_layers == 0:
        like_ys = trace_flat(flat_layer, arrays, carry).like_ys
        return pack_carry([*map(tf.identity, carry)]), pack_ys([tf.zeros([0, *y.shape], y.dtype) for y in like_ys])
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    slices = [[*parts] for parts in zip(*(tf.unstack(a, num_layers) for a in arrays), strict=True)]
    ys: list[Any] = [None] * len(slices)
    for i in reversed(range(len(slices))) if reverse else range(len(slices)):
        carry, ys[i] = flat_layer(carry, slices[i])
    return pack_carry([*map(tf.identity, carry)]), pack_ys([tf.stack(y) for y in zip(*ys, strict=True)])


def _groups(plan: Plan, stacked: Arrays) -> tuple[Size, int, Size]:
    """(N, k, the number of groups of k layers): of each group something is kept once."""
    num_layers = depth(stacked)
    k = max(1, min(plan.remat, num_layers) if isinstance(num_layers, int) else plan.remat)
    return num_layers, k, -(-num_layers // k)


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
        carry = [_like(new, old) for new, old in zip(new_carry, carry, strict=True)]
        return carry, ys and _write(ys, i, y), kept and _write(kept, _place(plan, i), keep)

    start, stop, limit = span
    return _loop(step, start, stop, limit, plan.unroll, (carry, ys, kept))


def _loop(step: Callable[..., Any], start: Size, stop: Size, limit: Size, unroll: int, state: tuple[Any, ...]) -> Any:
    """`state = step(p, *state)` for p from start to stop, at most limit times, and `unroll` times a body."""
    if isinstance(limit, int) and limit == 0:  # XLA refuses to trace a read from an empty stack
        return state

    def times(count: int, limit: Size, p: Size, state: tuple[Arrays, ...]) -> tuple[Any, tuple[Arrays, ...]]:
        def body(p: Size, state: tuple[Arrays, ...]) -> tuple[Size, tuple[Arrays, ...]]:
            with fenced():
                for j in range(count):  # the layers that `unroll` asks for in one body
                    state = step(p + j if j else p, *state)
            return p + count, state

        # maximum_iterations: without it XLA cannot size the lists of a derivative
        return tf.while_loop(lambda p, _: p + count <= stop, body, (p, state), maximum_iterations=limit)

    p, state = times(unroll, limit // unroll, tf.convert_to_tensor(start), state)
    if unroll > 1:  # what is left over
        _, state = times(1, unroll - 1, p, state)
    return state


def _like(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """`new` with the static shape of `old`, which it must have."""
    return new if new.shape.is_fully_defined() else tf.ensure_shape(new, old.shape)


def _lists(like: Arrays, size: Size) -> list[tf.TensorArray]:
    return [tf.TensorArray(a.dtype, size, element_shape=a.shape) for a in like]


def _write(lists: list[tf.TensorArray], i: Size, arrays: Arrays) -> list[tf.TensorArray]:
    return [written.write(i, a) for written, a in zip(lists, arrays, strict=True)]


def _stack(lists: list[tf.TensorArray], size: Size) -> Arrays:
    stacked = [
        written.stack() if written.element_shape.is_fully_defined() else _stack_of_any_width(written, size)
        for written in lists
    ]
    for a in stacked:
        a.set_shape([size if isinstance(size, int) else None, *a.shape[1:]])
    return stacked


def _handed_over(lists: list[tf.TensorArray], size: Size) -> Arrays:
    """What is read one by one stays a list, which costs no copy. XLA lets no list out of a program."""
    return _stack(lists, size) if compiled_by_xla() else [written.flow for written in lists]


def _at(kept: Arrays, i: Size, like: Arrays) -> Arrays:
    """What `_handed_over` has at i."""

    def item(handle: tf.Tensor, like: Any) -> tf.Tensor:
        shape = -1 if like.shape.rank is None else [-1 if n is None else n for n in like.shape]
        shape = tf.constant(shape, tf.int32)
        found = tf.raw_ops.TensorListGetItem(
            input_handle=handle, index=i, element_shape=shape, element_dtype=like.dtype
        )
        found.set_shape(like.shape)
        return found

    is_list = [a.dtype == tf.variant for a in kept]
    return [item(a, b) if listed else a[i] for a, b, listed in zip(kept, like, is_list, strict=True)]


def _stack_of_any_width(written: tf.TensorArray, size: Size) -> tf.Tensor:
    """`written.stack()`, which refuses a list of no arrays whose sizes are unknown: they are 0 here."""
    if written.element_shape.rank is None:
        return written.stack()
    known = written.element_shape.as_list()
    shape = tf.where(size > 0, [-1 if n is None else n for n in known], [n or 0 for n in known])
    stacked = tf.raw_ops.TensorListStack(
        input_handle=written.flow, element_shape=shape, element_dtype=written.dtype, num_elements=-1
    )
    return tf.ensure_shape(stacked, [None, *known])
