"""Random layers: drawn as a list of operations, written once, run by NumPy and by each framework.

All numbers are integers, also those of floating-point arrays, and so small that every sum and product of theirs has one
value in every order of evaluation: so what is right is equal, not near. That they are so small is known beforehand: the
layer is run once on absolute values, with minus as plus.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from implementations.check.dialect import flat, ops, with_arrays
from reference.stack import run_layers, tree_map

N = 3
SHAPES = ((), (1,), (3,), (2, 1), (2, 3))  # any two can be broadcast together
# Every integer up to here is a number of the dtype. Of float32 with room for what an order of evaluation adds.
LARGEST = {"bfloat16": 2.0**7, "float32": 2.0**20, "float64": 2.0**20, "int32": 2.0**20}
CLIP = 3  # of a carry that would outgrow this otherwise


@dataclass(frozen=True)
class Array:
    """Of one layer, no array itself: a leaf of a tree."""

    shape: tuple[int, ...]
    dtype: str


class Drawn(NamedTuple):
    """A layer and what it is given. Operands are numbers of values: the arrays of carry, params, xs, then results."""

    inputs: tuple[Any, Any, Any]  # stacked_params, init, xs: trees of Array, one layer's
    operations: tuple[tuple[Any, ...], ...]
    carry: tuple[int, ...]  # which values the new carry is made of
    ys: Any  # a tree of them, with None
    clip: bool
    reverse: bool
    seed: int

    def arrays(self):
        """What it is given, of N layers, in NumPy."""
        rng = np.random.default_rng(self.seed)

        def draw(*lead):
            return lambda array: rng.integers(-2, 3, (*lead, *array.shape)).astype(array.dtype)

        params, init, xs = self.inputs
        return tree_map(draw(N), params), tree_map(draw(), init), tree_map(draw(N), xs)

    def layer(self, o):
        """It in the language `o`."""

        def layer(carry, params, x=None):
            values = [*flat(carry), *flat(params), *flat(x)]
            for name, *operands in self.operations:
                values.append(o.checked(OPERATIONS[name](o, values, *operands)))
            fitted = [self._fitted(o, values[i], old) for i, old in zip(self.carry, flat(carry), strict=True)]
            return with_arrays(carry, fitted), tree_map(lambda i: values[i], self.ys)

        return layer

    def _fitted(self, o, value, old):
        """In the shape and dtype of the carry it takes the place of; that itself where nothing is to be done."""
        if not _fits(o.shape(value), o.shape(old)):
            value = o.checked(o.cast(o.sum(value), o.dtype(value)))
        value = o.checked(_as(o, value, old))
        value = o.broadcast(value, o.shape(old)) if o.shape(value) != o.shape(old) else value
        return o.clip(value, -CLIP, CLIP) if self.clip else value


def _fits(small, large):
    return len(small) <= len(large) and np.broadcast_shapes(small, large) == large


# Operations: (o, values, *operands). What they return has the dtype of their first operand, but for casts.


def _add(o, values, *operands):
    """From the left, so that the same operand twice comes first where it is drawn first."""
    total = values[operands[0]]
    for i in operands[1:]:
        total = total + _as(o, values[i], total)
    return total


def _as(o, value, like):
    return o.like(value, like) if o.dtype(value) != o.dtype(like) else value


def _where(o, values, i, j, k):
    first = values[i]
    return o.where(first > _as(o, values[j], first), first, _as(o, values[k], first))


def _reduce(o, values, i, axis):
    """Over the last axis, which stays; over the first, which goes; over all."""
    value = values[i]
    if o.shape(value) == () or axis == "all":
        return o.cast(o.sum(value), o.dtype(value))
    rank = len(o.shape(value))
    total = o.total(value, -1, True) if axis == "last" or rank == 1 else o.total(value, 0, False)
    return o.cast(total, o.dtype(value))


def _slice(o, values, i, which):
    value = values[i]
    if o.shape(value) == ():
        return value
    return {"first": lambda: value[0], "column": lambda: value[..., :1], "last": lambda: value[-1:]}[which]()


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "subtract": lambda o, values, i, j: o.subtract(values[i], _as(o, values[j], values[i])),
    "multiply": lambda o, values, i, j: o.multiply(values[i], _as(o, values[j], values[i])),
    "constant": lambda o, values, i, number: values[i] + number,
    "where": _where,
    "reduce": _reduce,
    "slice": _slice,
    "cast": lambda o, values, i, dtype: o.cast(values[i], dtype),
    "broadcast": lambda o, values, i: o.broadcast(values[i], (2, 3)),
}


# Drawing.


@st.composite
def random_layers(draw, dtypes=("float32", "float32", "int32", "bfloat16", "float64")):
    def arrays(most):
        return st.lists(st.builds(Array, st.sampled_from(SHAPES), st.sampled_from(dtypes)), min_size=1, max_size=most)

    def nested(items):
        """The same items in a list, a tuple with a tuple in it, or dicts with None."""
        return draw(
            st.sampled_from(
                [list(items), (items[0], tuple(items[1:])), {"a": items[0], "b": {"c": items[1:], "d": None}}]
            )
        )

    init, params, xs = (draw(arrays(most)) for most in (3, 2, 1))
    if draw(st.booleans()):
        xs = []
    values = len(init) + len(params) + len(xs)
    operations: list[tuple[Any, ...]] = []
    for _ in range(draw(st.integers(2, 6))):
        # late values more often than early ones, so that operations are chained
        value = st.integers(0, values - 1) | st.integers(max(0, values - 3), values - 1)
        i, j, k = (draw(value) for _ in range(3))
        operations.append(
            draw(
                st.sampled_from(
                    [
                        ("add", i, i, j),
                        ("add", j, i, i),
                        ("add", i, j, k),
                        ("add", i, i),
                        ("subtract", i, j),
                        ("multiply", i, j),
                        ("where", i, j, k),
                        ("constant", i, draw(st.integers(1, 2))),
                        ("reduce", i, draw(st.sampled_from(["last", "first", "all"]))),
                        ("slice", i, draw(st.sampled_from(["first", "column", "last"]))),
                        ("cast", i, draw(st.sampled_from(dtypes))),
                        ("broadcast", i),
                    ]
                )
            )
        )
        values += 1
    anywhere = st.integers(0, values - 1)
    late = st.integers(values - len(operations), values - 1)
    drawn = Drawn(
        (nested(params), nested(init), nested(xs) if xs else None),
        tuple(operations),
        tuple(draw(late | anywhere) for _ in init),
        nested(draw(st.lists(late | anywhere, min_size=1, max_size=3))),
        False,
        draw(st.booleans()),
        draw(st.integers(0, 99)),
    )
    return drawn if is_exact(drawn) else drawn._replace(clip=True)


def is_exact(drawn):
    """Whether no number outgrows its dtype, in any order of evaluation: on absolute values, with minus as plus."""

    def checked(value):
        if abs(np.asarray(value).astype(np.float64)).max(initial=0.0) > LARGEST[str(value.dtype)]:
            raise OverflowError
        return np.asarray(value)

    def multiply(a, b):
        checked((a.astype(np.float64) * b.astype(np.float64)).astype(np.float64))  # integers would wrap
        return a * b

    o = SimpleNamespace(**vars(language("numpy")))
    o.checked, o.multiply, o.subtract = checked, multiply, lambda a, b: a + b
    o.where = lambda _, a, b: np.maximum(a, b)
    params, init, xs = (tree_map(abs, tree) for tree in drawn.arrays())
    try:
        run_layers(drawn.layer(o), params, init, xs, drawn.reverse)
    except OverflowError:
        return False
    return True


# What `ops` of implementations/check/dialect.py lacks.


@functools.cache
def language(name):
    o = SimpleNamespace(**vars(ops(name)))
    o.checked = np.asarray if name == "numpy" else lambda value: value
    o.subtract, o.multiply = lambda a, b: a - b, lambda a, b: a * b
    o.shape, o.dtype = lambda a: tuple(a.shape), lambda a: str(a.dtype).removeprefix("torch.")
    {"numpy": _numpy, "jax_scan": _jax, "torch_compile": _torch, "tf_while": _tf}[name](o)
    return o


def _numpy(o):
    o.where, o.broadcast = np.where, np.broadcast_to
    o.total = lambda a, axis, keep: np.sum(a, axis, keepdims=keep)
    o.clip = lambda a, low, high: np.clip(a, low, high).astype(a.dtype)  # of bfloat16 it makes float32


def _jax(o):
    from jax import numpy as jnp

    o.where, o.broadcast, o.clip = jnp.where, jnp.broadcast_to, jnp.clip
    o.total = lambda a, axis, keep: jnp.sum(a, axis, keepdims=keep)


def _torch(o):
    import torch

    o.where, o.broadcast, o.clip = torch.where, torch.broadcast_to, torch.clamp
    o.total = lambda a, axis, keep: a.sum(axis, keepdim=keep)


def _tf(o):
    import tensorflow as tf

    o.dtype = lambda a: a.dtype.name
    o.where, o.broadcast, o.clip = tf.where, tf.broadcast_to, tf.clip_by_value
    o.total = lambda a, axis, keep: tf.reduce_sum(a, axis, keepdims=keep)
