"""The loops under `stack.py`: `tf.while_loop` with a counter, and reads `a[i]`.

Results are written into a TensorArray, which becomes one array after the loop. Trees are flat lists here.
Source: https://www.tensorflow.org/api_docs/python/tf/while_loop
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_while.edges import compiled_by_xla, fenced
from tf_while.residuals import Rule
from tf_while.trees import Arrays, FlatLayer, Layer, Size, depth, flat, floats, trace_flat


class Plan(NamedTuple):
    """How a stack is run."""

    step: FlatLayer
    rule: Rule  # the step, and its way back
    like_ys: Arrays  # shapes and dtypes
    reverse: bool
    unroll: int
    remat: int  # what the rule keeps is kept for every layer, or the carry before every so many


def scan(plan: Plan, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays, Arrays]:
    """(carry, ys, kept): what `scan_vjp` starts from; of every layer in the order of layers."""
    num_layers, k = depth(stacked), plan.remat

    def step(p: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        i = num_layers - 1 - p if plan.reverse else p
        slices = [a[i] for a in stacked]
        if k == 1:
            new_carry, y, keep = plan.rule.forward(carry, slices)
            kept = _write(kept, i, keep)
        else:
            new_carry, y = plan.step(carry, slices)
        return [_like(new, old) for new, old in zip(new_carry, carry, strict=True)], _write(ys, i, y), kept

    def group(g: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        kept = _write(kept, g, carry)
        return _loop(step, g * k, tf.minimum(g * k + k, num_layers), k, plan.unroll, (carry, ys, kept))

    groups = -(-num_layers // k)
    lists = _lists(plan.like_ys, num_layers), _lists(plan.rule.like_kept, groups)
    if k == 1:
        carry, ys, kept = _loop(step, 0, num_layers, num_layers, plan.unroll, (init, *lists))
    else:
        carry, ys, kept = _loop(group, 0, groups, groups, 1, (init, *lists))
    return carry, _stack(ys, num_layers), _handed_over(kept, groups)


def scan_vjp(plan: Plan, stacked: Arrays, kept: Arrays, state: Arrays, dys: Arrays) -> tuple[Arrays, Arrays]:
    """(dstacked, state): the rule backwards over all layers. state: cotangents of the carry, and what adds up."""
    num_layers, k = depth(stacked), plan.remat

    def layer_at(p: Size) -> Size:
        return num_layers - 1 - p if plan.reverse else p

    def layers(start: Size, stop: Size, limit: Size, state: Arrays, dstacked: Arrays, kept_at: Any) -> Any:
        def step(q: Size, state: Arrays, dstacked: Arrays) -> tuple[Arrays, Arrays]:
            p = stop - 1 - q
            i = layer_at(p)
            slices, dy = [a[i] for a in stacked], [a[i] for a in dys]
            new_state, dslices = plan.rule.backward(state, slices, kept_at(p), dy)
            state = [_like(new, old) for new, old in zip(new_state, state, strict=True)]
            return state, _write(dstacked, i, dslices)

        return _loop(step, 0, stop - start, limit, plan.unroll, (state, dstacked))

    def group(h: Size, state: Arrays, dstacked: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - h
        start, stop = g * k, tf.minimum(g * k + k, num_layers)

        def again(p: Size, carry: Arrays, carries: Arrays) -> tuple[Arrays, Arrays]:
            new_carry, _ = plan.step(carry, [a[layer_at(p)] for a in stacked])
            carry = [_like(new, old) for new, old in zip(new_carry, carry, strict=True)]
            return carry, _write(carries, p + 1 - start, carry)

        first = _at(kept, g, plan.rule.like_kept)
        carries = _write(_lists(first, k), 0, first)
        _, carries = _loop(again, start, stop - 1, k - 1, plan.unroll, (first, carries))
        carries = _stack(carries, k)
        return layers(start, stop, k, state, dstacked, lambda p: [a[p - start] for a in carries])

    dstacked = _lists([tf.TensorSpec(a.shape[1:], a.dtype) for a in floats(stacked)], num_layers)
    if k == 1:
        like = plan.rule.like_kept
        state, dstacked = layers(0, num_layers, num_layers, state, dstacked, lambda p: _at(kept, layer_at(p), like))
    else:
        groups = -(-num_layers // k)
        state, dstacked = _loop(group, 0, groups, groups, 1, (state, dstacked))
    return _stack(dstacked, num_layers), state


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


def _loop(step: Callable[..., Any], start: Size, stop: Size, limit: Size, unroll: int, state: tuple[Any, ...]) -> Any:
    """`state = step(p, *state)` for p from start to stop, at most limit times, and `unroll` times a body."""
    if isinstance(limit, int) and limit == 0:  # XLA refuses to trace a read from an empty stack
        return state

    def times(count: int, limit: Size, p: Size, state: tuple[Arrays, ...]) -> tuple[Any, tuple[Arrays, ...]]:
        def body(p: Size, state: tuple[Arrays, ...]) -> tuple[Size, tuple[Arrays, ...]]:
            with fenced():
                for j in range(count):  # the layers that `unroll` asks for in one body
                    state = step(p + j, *state)
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
