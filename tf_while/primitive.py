"""`tf.while_loop` made into a scan: a counter, several steps a body, and lists of results, each mend with its reason.

JAX needs none of this: `lax.scan` counts, reads and writes by itself.
Source: https://www.tensorflow.org/api_docs/python/tf/while_loop
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_while.edges import compiled_by_xla, fenced
from tf_while.trees import Arrays, Size


def loop(
    step: Callable[..., Any],
    start: Size,
    stop: Size,
    limit: Size,
    state: tuple[Any, ...],
    unroll: int = 1,
    ahead: int = 10,
) -> Any:
    """`state = step(p, *state)` for p from start to stop, at most limit times, `unroll` of them a body.

    ahead: so many bodies may be at work at once, on what does not depend on the one before (graph mode)."""
    if isinstance(limit, int) and limit == 0:  # XLA refuses to trace a read from an empty stack
        return state

    def times(count: int, limit: Size, p: Size, state: tuple[Arrays, ...]) -> tuple[Any, tuple[Arrays, ...]]:
        def body(p: Size, state: tuple[Arrays, ...]) -> tuple[Size, tuple[Arrays, ...]]:
            with fenced():
                for j in range(count):  # the layers that `unroll` asks for in one body
                    state = step(p + j if j else p, *state)
            return p + count, state

        def more(p: Size, _: Any) -> Any:
            return p + count <= stop

        # maximum_iterations: without it XLA cannot size the lists of a derivative
        return tf.while_loop(more, body, (p, state), maximum_iterations=limit, parallel_iterations=ahead)

    p, state = times(unroll, limit // unroll, tf.convert_to_tensor(start), state)
    if unroll > 1:  # what is left over
        _, state = times(1, unroll - 1, p, state)
    return state


def like(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """`new` with the static shape of `old`, which it must have."""
    return new if new.shape.is_fully_defined() else tf.ensure_shape(new, old.shape)


def lists(specs: Arrays, size: Size) -> list[tf.TensorArray]:
    """For each of `specs`, room for so many arrays of its shape and dtype."""
    return [tf.TensorArray(a.dtype, size, element_shape=a.shape) for a in specs]


def write(into: list[tf.TensorArray], i: Size, arrays: Arrays) -> list[tf.TensorArray]:
    return [written.write(i, a) for written, a in zip(into, arrays, strict=True)]


def stack(filled: list[tf.TensorArray], size: Size) -> Arrays:
    """Each list as one array."""
    stacked = [
        written.stack() if written.element_shape.is_fully_defined() else _stack_of_any_width(written, size)
        for written in filled
    ]
    for a in stacked:
        a.set_shape([size if isinstance(size, int) else None, *a.shape[1:]])
    return stacked


def handed_over(filled: list[tf.TensorArray], size: Size) -> Arrays:
    """What is read one by one stays a list, which costs no copy. XLA lets no list out of a program."""
    return stack(filled, size) if compiled_by_xla() else [written.flow for written in filled]


def at(kept: Arrays, i: Size, specs: Arrays) -> Arrays:
    """What `handed_over` has at i."""

    def item(handle: tf.Tensor, spec: Any) -> tf.Tensor:
        shape = tf.constant(-1 if spec.shape.rank is None else [-1 if n is None else n for n in spec.shape], tf.int32)
        found = tf.raw_ops.TensorListGetItem(
            input_handle=handle, index=i, element_shape=shape, element_dtype=spec.dtype
        )
        found.set_shape(spec.shape)
        return found

    return [item(a, spec) if a.dtype == tf.variant else a[i] for a, spec in zip(kept, specs, strict=True)]


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
