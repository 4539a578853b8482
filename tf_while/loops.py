"""The loops under `stack.py`: `tf.while_loop` with a counter, reads `a[i]`, and a derivative of its own.

TensorFlow differentiates a while loop by itself, but its gradient of the read `a[i]` adds a whole stack of zeros for
each layer: time N * N. What JAX does behind `jax.grad` is written out here instead: a loop forwards that keeps the
carries, then a loop backwards over them, of the layer's vjp. What a layer closes over is found by tracing it, and is
one more argument of the stack as far as derivatives are concerned.
Source: https://www.tensorflow.org/api_docs/python/tf/custom_gradient
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf

from tf_while.edges import as_leaf

Layer = Callable[..., tuple[Any, Any]]
Arrays = list[Any]  # the arrays of a tree, flat
FlatLayer = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (carry, slices) -> (new_carry, ys)
Size = Any  # of an axis: an int, or a tensor where trace time does not know it


def scan(
    layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: Any, reverse: bool, unroll: int, remat: bool | int
) -> tuple[Any, Any]:
    """Scan `layer(carry, *slices)` over axis 0 of every array in `stacked`: (carry, ys)."""
    flat_layer, arrays, carry, pack_carry, pack_ys = _flat(layer, stacked, init)
    arrays = _one_size(arrays, num_layers)
    carry, ys = _split(_scan(flat_layer, arrays, carry, reverse, unroll, remat), len(carry))
    return pack_carry(carry), pack_ys(ys)


def unrolled(layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: int, reverse: bool) -> tuple[Any, Any]:
    """The same values as `scan`, with N layers in the graph."""
    flat_layer, arrays, carry, pack_carry, pack_ys = _flat(layer, stacked, init)
    if num_layers == 0:
        like_ys, _ = _trace(flat_layer, arrays, carry)
        return pack_carry([*map(tf.identity, carry)]), pack_ys([tf.zeros([0, *y.shape], y.dtype) for y in like_ys])
    # Split once: the gradient of `a[i]` would be a stack of zeros around each layer's, N times.
    slices = [*zip(*(tf.unstack(a, num_layers) for a in arrays), strict=True)]
    ys: list[Any] = [None] * len(slices)
    for i in reversed(range(len(slices))) if reverse else range(len(slices)):
        carry, ys[i] = flat_layer(carry, slices[i])
    return pack_carry([*map(tf.identity, carry)]), pack_ys([tf.stack(y) for y in zip(*ys, strict=True)])


def _scan(layer: FlatLayer, stacked: Arrays, init: Arrays, reverse: bool, unroll: int, remat: int) -> Arrays:
    """`scan` of flat lists, with its derivative. The layer's vjp computes the layer again: remat False is True."""
    like_ys, closed_over = _trace(layer, stacked, init)
    num_layers = _num_layers(stacked)
    k = max(1, min(remat, num_layers) if isinstance(num_layers, int) else remat)
    options = reverse, unroll, k

    @tf.custom_gradient
    def run(*arrays: tf.Tensor) -> tuple[Arrays, Callable[..., Any]]:
        primals = _split(arrays, len(stacked), len(init))  # and what is closed over
        results, kept = _forward(layer, primals[0], primals[1], like_ys, *options)

        def vjp(*cotangents: tf.Tensor, variables: Any = None) -> Any:
            given = [d for d, result in zip(cotangents, results, strict=True) if is_float(result)]
            grads = _vjp(layer, primals, [capture for capture, _ in closed_over], kept, given, *options)
            return _gradients(grads, arrays, variables)

        return results, vjp

    def loops() -> Arrays:
        return run(*stacked, *init, *(value for _, value in closed_over))

    def nothing() -> Arrays:
        return [*map(tf.identity, init), *(tf.zeros([0, *(n or 0 for n in y.shape)], y.dtype) for y in like_ys)]

    known = all(a.shape.is_fully_defined() for a in (*init, *like_ys))
    if known or isinstance(num_layers, int):
        return loops() if known or num_layers else nothing()
    # a list of no arrays of unknown width cannot be stacked
    return tf.cond(num_layers > 0, loops, nothing)


def _vjp(
    layer: FlatLayer,
    primals: Sequence[Arrays],
    captures: Arrays,
    kept: Arrays,
    cotangents: Arrays,
    reverse: bool,
    unroll: int,
    k: int,
) -> Arrays:
    """Gradients of the floating-point arrays in primals = (stacked, init, closed_over)."""
    stacked, init, closed = primals
    step = _vjp_layer(layer, len(stacked), len(init), captures)

    def start(cotangents: Sequence[Any], closed: Arrays) -> tuple[Arrays, Arrays]:
        dcarry, dys = _split(cotangents, len(floats(init)))
        return [*dcarry, *map(tf.zeros_like, closed)], dys

    @tf.custom_gradient
    def pull(*arrays: tf.Tensor) -> tuple[Arrays, Callable[..., Any]]:
        stacked, init, closed, cotangents = _split(arrays, *map(len, primals))
        state, dys = start(cotangents, closed)
        if k == 1:
            like = [tf.TensorSpec(a.shape[1:], a.dtype) for a in floats(stacked)]
            results, _ = _forward(step, [*stacked, *kept, *dys], state, like, not reverse, unroll, 0)
        else:
            results = _backward_groups(layer, step, stacked, kept, dys, state, reverse, unroll, k)

        def vjp(*tangents: tf.Tensor, variables: Any = None) -> Any:
            # the same derivative once more, as two scans that have derivatives themselves
            carries = _scan(lambda c, s: (layer(c, s)[0], c), stacked, init, reverse, unroll, 1)
            again = [*stacked, *carries[len(init) :], *dys]
            again = _scan(step, again, state, not reverse, unroll, 1)
            closed = _captured(captures)
            wrt = [*floats(stacked), *floats(init), *closed, *cotangents]
            # stop: one of them may have been computed from another, and what it gets that way is not counted here
            grads = tf.gradients(again, wrt, tangents, stop_gradients=[*arrays, *closed])
            return _gradients(dense(grads, floats(arrays)), arrays, variables)

        return results, vjp

    # identities: apart from what the cotangents come from
    results = pull(*map(tf.identity, [*stacked, *init, *closed, *cotangents]))
    dinit_and_closed, dstacked = _split(results, len(floats(init)) + len(closed))
    return [*dstacked, *dinit_and_closed]


def _vjp_layer(layer: FlatLayer, num_stacked: int, num_carry: int, captures: Arrays) -> FlatLayer:
    """The layer's vjp as a layer, of carry [*dcarry, *dclosed_over] and slices of [*stacked, *carries, *dys]."""

    def step(state: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        xs, carry, dys = _split([*map(tf.identity, slices)], num_stacked, num_carry)
        dcarry, dclosed = _split(state, len(floats(carry)))
        new_carry, ys = layer(carry, xs)
        wrt = [*floats(carry), *_captured(captures), *floats(xs)]
        # tf.gradients, not a tape: a tape in here would stop forward mode from passing through
        grads = tf.gradients(floats([*new_carry, *ys]), wrt, [*dcarry, *dys], stop_gradients=[*carry, *xs])
        grads = dense(grads, [*dcarry, *dclosed, *floats(xs)])
        dcarry, more, dxs = _split(grads, len(dcarry), len(dclosed))
        return [*dcarry, *(a + b for a, b in zip(dclosed, more, strict=True))], dxs

    return step


def _forward(
    layer: FlatLayer,
    stacked: Arrays,
    init: Arrays,
    like_ys: Arrays,
    reverse: bool,
    unroll: int,
    k: int,
) -> tuple[Arrays, Arrays]:
    """([*carry, *ys], kept): kept has the carry before every k layers, at k = 1 in the order of the layers."""
    num_layers = _num_layers(stacked)

    def step(p: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        i = num_layers - 1 - p if reverse else p
        new_carry, y = layer(carry, [a[i] for a in stacked])
        kept = _write(kept, i, carry) if k == 1 else kept
        return [_like(new, old) for new, old in zip(new_carry, carry, strict=True)], _write(ys, i, y), kept

    def group(g: Size, carry: Arrays, ys: Arrays, kept: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        kept = _write(kept, g, carry)
        return _loop(step, g * k, tf.minimum(g * k + k, num_layers), k, unroll, (carry, ys, kept))

    groups = -(-num_layers // k) if k else 0
    state = init, _lists(like_ys, num_layers), _lists(init if k else [], groups)
    if k > 1:
        carry, ys, kept = _loop(group, 0, groups, groups, 1, state)
    else:
        carry, ys, kept = _loop(step, 0, num_layers, num_layers, unroll, state)
    return [*carry, *_stack(ys, num_layers)], _stack(kept, groups)


def _backward_groups(
    layer: FlatLayer,
    vjp_layer: FlatLayer,
    stacked: Arrays,
    kept: Arrays,
    dys: Arrays,
    state: Arrays,
    reverse: bool,
    unroll: int,
    k: int,
) -> Arrays:
    """[*state, *dstacked]: the scan of `vjp_layer`, with the carries of one group at a time recomputed."""
    num_layers = _num_layers(stacked)
    groups = -(-num_layers // k)

    def layer_at(p: Size) -> Size:
        return num_layers - 1 - p if reverse else p

    def group(h: Size, state: Arrays, dstacked: Arrays) -> tuple[Arrays, Arrays]:
        g = groups - 1 - h
        start, stop = g * k, tf.minimum(g * k + k, num_layers)

        def again(p: Size, carry: Arrays, carries: Arrays) -> tuple[Arrays, Arrays]:
            new_carry, _ = layer(carry, [a[layer_at(p)] for a in stacked])
            carry = [_like(new, old) for new, old in zip(new_carry, carry, strict=True)]
            return carry, _write(carries, p + 1 - start, carry)

        first = [a[g] for a in kept]
        carries = _write(_lists(first, k), 0, first)
        _, carries = _loop(again, start, stop - 1, k - 1, unroll, (first, carries))
        carries = _stack(carries, k)

        def step(q: Size, state: Arrays, dstacked: Arrays) -> tuple[Arrays, Arrays]:
            p = stop - 1 - q
            i = layer_at(p)
            slices = [*(a[i] for a in stacked), *(a[p - start] for a in carries), *(a[i] for a in dys)]
            state, dslices = vjp_layer(state, slices)
            return state, _write(dstacked, i, dslices)

        return _loop(step, 0, stop - start, k, unroll, (state, dstacked))

    like = [tf.TensorSpec(a.shape[1:], a.dtype) for a in floats(stacked)]
    state, dstacked = _loop(group, 0, groups, groups, 1, (state, _lists(like, num_layers)))
    return [*state, *_stack(dstacked, num_layers)]


def _loop(
    step: Callable[..., Any], start: Size, stop: Size, limit: Size, unroll: int, state: tuple[Arrays, ...]
) -> tuple[Arrays, ...]:
    """`state = step(p, *state)` for p from start to stop, at most limit times, and `unroll` times a body."""
    if isinstance(limit, int) and limit == 0:  # XLA refuses to trace a read from an empty stack
        return state

    def times(count: int, limit: Size, p: Size, state: tuple[Arrays, ...]) -> tuple[Any, tuple[Arrays, ...]]:
        def body(p: Size, state: tuple[Arrays, ...]) -> tuple[Size, tuple[Arrays, ...]]:
            for j in range(count):
                state = step(p + j, *state)
            return p + count, state

        # maximum_iterations: without it XLA cannot size the lists of a derivative
        return tf.while_loop(lambda p, _: p + count <= stop, body, (p, state), maximum_iterations=limit)

    p, state = times(unroll, limit // unroll, tf.convert_to_tensor(start), state)
    if unroll > 1:  # what is left over
        _, state = times(1, unroll - 1, p, state)
    return state


def trace(run: Callable[..., Any], init: Any, stacked: tuple[Any, ...]) -> None:
    """Call `run(carry, *slices)` once with arrays that have shapes and dtypes, but no values."""
    (arrays, pack_slices), (carry, pack_carry) = flatten(stacked), flatten(init)
    _trace(lambda carry, slices: (run(pack_carry(carry), *pack_slices(slices)), []), arrays, carry)


def _trace(layer: FlatLayer, stacked: Arrays, carry: Arrays) -> tuple[Arrays, list[tuple[Any, Any]]]:
    """ys as shapes and dtypes, and the floating-point arrays that `layer` closes over: (what it captures, value)."""
    slices = [tf.TensorSpec(a.shape[1:], a.dtype) for a in stacked]
    carry = [tf.TensorSpec(a.shape, a.dtype) for a in carry]
    program = tf.function(lambda carry, slices: layer(carry, slices)[1], autograph=False)
    traced = program.get_concrete_function(carry, slices)
    variables = {id(v.handle): v for v in traced.graph.variables}
    captures = [(c, variables.get(id(c), c)) for c in traced.graph.external_captures]
    closed_over = [(c, tf.convert_to_tensor(value)) for c, value in captures if is_float(value)]
    return [tf.TensorSpec(y.shape, y.dtype) for y in traced.structured_outputs], closed_over


def _captured(captures: Arrays) -> Arrays:
    """What stands for `captures` in the body that is being traced."""
    return [tf.compat.v1.get_default_graph().capture(c) for c in captures]


def _flat(layer: Layer, stacked: tuple[Any, ...], init: Any) -> tuple[FlatLayer, Arrays, Arrays, Any, Any]:
    """`layer` between flat lists, and what goes in and comes out of it."""
    (arrays, pack_slices), (carry, pack_carry) = flatten(stacked), flatten(init)
    pack_ys: list[Any] = []

    def flat_layer(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = layer(pack_carry(carry), *pack_slices(slices))
        ys, pack = flatten(y)
        pack_ys[:] = [pack]
        return flatten(new_carry)[0], ys

    return flat_layer, arrays, carry, pack_carry, lambda ys: pack_ys[0](ys)


def assert_dense_stack(weights: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Let the graph assert the sizes that trace time does not know, and know them afterwards. XLA drops assertions."""
    sizes = [None, None, None] if weights.shape.rank is None or x.shape.rank is None else [*weights.shape[1:], *x.shape]
    if None not in sizes:
        return weights, x
    w, v = tf.shape(weights), tf.shape(x)
    square = (tf.size(w) == 3) & tf.reduce_all(w[1:2] == w[2:3])
    fits = (tf.size(v) == 1) & tf.reduce_all(v[:1] == w[1:2])
    checks = [
        tf.debugging.Assert(square, ["weights: expected shape (N, d, d), got", w]),
        tf.debugging.Assert(fits, ["x: expected shape", w[1:2], "got", v]),
    ]
    with tf.control_dependencies(checks):
        weights, x = tf.identity(weights), tf.identity(x)
    d = next((size for size in sizes if size is not None), None)
    weights.set_shape([None, d, d])
    x.set_shape([d])
    return weights, x


def _one_size(arrays: Arrays, num_layers: int | None) -> Arrays:
    """`arrays` of one N; the graph asserts what trace time does not know. XLA drops assertions."""
    if len(arrays) == 1 or all(a.shape.rank is not None and a.shape[0] is not None for a in arrays):
        return arrays
    sizes = tf.stack([tf.shape(a)[0] for a in arrays])
    check = tf.debugging.Assert(tf.reduce_all(sizes == sizes[0]), ["expected one leading axis of layers, got", sizes])
    with tf.control_dependencies([check]):
        arrays = [*map(tf.identity, arrays)]
    for a in arrays:
        a.set_shape([num_layers, *a.shape[1:]] if a.shape.rank is not None else None)
    return arrays


def _num_layers(stacked: Arrays) -> Size:
    known = stacked[0].shape.rank is not None and stacked[0].shape[0] is not None
    return stacked[0].shape[0] if known else tf.shape(stacked[0])[0]


def flatten(tree: Any) -> tuple[Arrays, Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and what puts others in their places. None, and whatever is no array, stays."""
    hole = object()
    arrays = [a for a in tf.nest.flatten(tree) if as_leaf(a) is not None]
    holes = tf.nest.map_structure(lambda a: a if as_leaf(a) is None else hole, tree)

    def pack(arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        return tf.nest.map_structure(lambda a: next(rest) if a is hole else a, holes)

    return [*map(tf.convert_to_tensor, arrays)], pack


def is_float(array: Any) -> bool:
    """Whether derivatives exist for it."""
    return array.dtype.is_floating or array.dtype.is_complex


def floats(arrays: Sequence[Any]) -> Arrays:
    """Those of `arrays` for which derivatives exist."""
    return [a for a in arrays if is_float(a)]


def spread(values: Sequence[Any], arrays: Sequence[Any]) -> Arrays:
    """One of `values` for each of `arrays` for which derivatives exist, None for the others."""
    rest = iter(values)
    return [next(rest) if is_float(a) else None for a in arrays]


def dense(grads: Sequence[Any], like: Sequence[Any]) -> Arrays:
    """`grads` of `like`, with zeros for None, and an array where a gather left its indices."""
    return [tf.zeros_like(a) if g is None else tf.convert_to_tensor(g) for g, a in zip(grads, like, strict=True)]


def as_program(
    run: Callable[..., Any], static: tuple[Any, ...], trees: tuple[Any, ...], deep: tuple[int, ...] = ()
) -> Any:
    """`run(*static, *trees)`: part of the program that is being traced, or else a program of its own, which is kept.

    Arrays of the trees at the indices `deep` may have any N in that program."""
    if tf.inside_function():
        return run(*static, *trees)
    arrays, pack = flatten(trees)
    any_depth = [i in deep for i, tree in enumerate(trees) for _ in flatten(tree)[0]]
    shapes = [[None, *a.shape[1:]] if any_n else a.shape for a, any_n in zip(arrays, any_depth, strict=True)]
    specs = [tf.TensorSpec(shape, a.dtype) for shape, a in zip(shapes, arrays, strict=True)]
    program = tf.function(lambda *arrays: run(*static, *pack(arrays)), input_signature=specs, autograph=False)
    if all(isinstance(value, Hashable) for value in static):
        while len(_PROGRAMS) > MAX_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
        program = _PROGRAMS.setdefault((run, static, repr(pack(specs))), program)
    return program(*arrays)


_PROGRAMS: dict[Any, Any] = {}
MAX_PROGRAMS = 256


def _split(arrays: Sequence[Any], *counts: int) -> list[Arrays]:
    """`arrays` cut into lists of so many, and one of the rest."""
    parts, arrays = [], list(arrays)
    for count in counts:
        parts.append(arrays[:count])
        arrays = arrays[count:]
    return [*parts, arrays]


def _gradients(grads: Sequence[Any], arrays: Sequence[Any], variables: Any) -> Any:
    """`grads` in the form that tf.custom_gradient asks for."""
    grads = spread(grads, arrays)
    # the variables that a layer closes over get their gradient as arguments
    return grads if variables is None else (grads, [None] * len(variables))


def _like(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """`new` with the static shape of `old`, which it must have."""
    return new if new.shape.is_fully_defined() else tf.ensure_shape(new, old.shape)


def _lists(like: Arrays, size: Size) -> list[tf.TensorArray]:
    return [tf.TensorArray(a.dtype, size, element_shape=a.shape) for a in like]


def _write(lists: list[tf.TensorArray], i: Size, arrays: Arrays) -> list[tf.TensorArray]:
    return [written.write(i, a) for written, a in zip(lists, arrays, strict=True)]


def _stack(lists: list[tf.TensorArray], size: Size) -> Arrays:
    stacked = [written.stack() for written in lists]
    for a in stacked:
        a.set_shape([size if isinstance(size, int) else None, *a.shape[1:]])
    return stacked
