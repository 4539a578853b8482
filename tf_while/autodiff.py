"""The framework's ordinary autodiff from outside, and the rule by which it goes through a stack.

TensorFlow differentiates a while loop by itself, but its gradient of the read `a[i]` adds a whole stack of zeros for
each layer: time N * N. What JAX does behind `jax.grad` is written out here instead: a loop forwards that keeps the
carries, then a loop backwards over them, of the layer's vjp. What a layer closes over is found by tracing it, and is
one more argument of the stack as far as derivatives are concerned.
Source: https://www.tensorflow.org/api_docs/python/tf/custom_gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while.edges import captured_within, compile, reading
from tf_while.loops import Plan, scan, scan_vjp
from tf_while.residuals import Rule, keeping
from tf_while.trees import (
    Arrays,
    FlatLayer,
    Layer,
    Traced,
    apart,
    depth,
    filled,
    flat,
    flatten,
    floats,
    is_float,
    nones,
    one_size,
    split,
    trace_flat,
)

Apply = Callable[..., Any]


def gradient(apply: Apply) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, for an `apply` from arrays to one array."""

    def run(*args_and_cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
        *args, cotangent = args_and_cotangent
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(args)
            y = apply(*args)
        return y, *tape.gradient(y, args, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[tf.Tensor, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))


def differentiable(
    layer: Layer, stacked: tuple[Any, ...], init: Any, num_layers: Any, reverse: bool, unroll: int, remat: bool | int
) -> tuple[Any, Any]:
    """(carry, ys) of the scan of `layer(carry, *slices)` over axis 0 of `stacked`, with a gradient of its own."""
    flat_layer, arrays, carry, pack_carry, pack_ys = flat(layer, stacked, init)
    arrays = one_size(arrays, num_layers)
    carry, ys = split(_scan(flat_layer, arrays, carry, reverse, unroll, remat), len(carry))
    return pack_carry(carry), pack_ys(ys)


def _scan(layer: FlatLayer, stacked: Arrays, init: Arrays, reverse: bool, unroll: int, remat: int) -> Arrays:
    """[*carry, *ys] of flat lists, with its derivative."""
    traced = trace_flat(layer, stacked, init)
    num_layers = depth(stacked)
    kept = None if remat else keeping(traced, len(stacked), len(init))
    rule = kept or recomputing(layer, len(stacked), init, [capture for capture, _ in traced.closed_over])
    k = max(1, min(remat, num_layers) if isinstance(num_layers, int) else remat)
    plan = Plan(layer, rule, traced.like_ys, reverse, unroll, k)
    within = captured_within(traced.captures)

    @tf.custom_gradient
    def run(*arrays: tf.Tensor) -> tuple[Arrays, Callable[..., Any]]:
        primals = split(arrays, len(stacked), len(init))  # and what is closed over
        carry, ys, residuals = scan(plan, primals[0], primals[1])
        results = [*carry, *ys]

        def vjp(*cotangents: tf.Tensor, variables: Any = None) -> Any:
            if kept is None and traced.state is not None:
                raise arguments.runs_twice(traced.state)
            given = [d for d, result in zip(cotangents, results, strict=True) if is_float(result)]
            with reading(within):
                grads = _vjp(plan, primals, traced, residuals, given)
            return _gradients(grads, arrays, variables)

        return results, vjp

    def loops() -> Arrays:
        # identities: of this graph, also where it is the branch of a tf.cond and they come from far around
        return run(*map(tf.identity, [*stacked, *init, *(value for _, value in traced.closed_over)]))

    def nothing() -> Arrays:
        return [*map(tf.identity, init), *(tf.zeros([0, *(n or 0 for n in y.shape)], y.dtype) for y in traced.like_ys)]

    known = all(a.shape.is_fully_defined() for a in (*init, *traced.like_ys))
    return nothing() if not known and isinstance(num_layers, int) and num_layers == 0 else loops()


def _vjp(plan: Plan, primals: Sequence[Arrays], traced: Traced, residuals: Arrays, cotangents: Arrays) -> Arrays:
    """Gradients of the floating-point arrays in primals = (stacked, init, closed_over)."""
    stacked, init, closed = primals
    captures = [capture for capture, _ in traced.closed_over]

    def start(cotangents: Sequence[Any], closed: Arrays) -> tuple[Arrays, Arrays]:
        dcarry, dys = split(cotangents, len(floats(init)))
        return [*dcarry, *map(tf.zeros_like, closed)], dys

    @tf.custom_gradient
    def pull(*arrays: tf.Tensor) -> tuple[Arrays, Callable[..., Any]]:
        stacked, init, closed, cotangents = split(arrays, *map(len, primals))
        state, dys = start(cotangents, closed)
        dstacked, dstate = scan_vjp(plan, stacked, residuals, state, dys)

        def vjp(*tangents: tf.Tensor, variables: Any = None) -> Any:
            # the same derivative once more, as two scans that have derivatives themselves
            if traced.state is not None:
                raise arguments.runs_twice(traced.state)
            layer, reverse, unroll = plan.step, plan.reverse, plan.unroll
            carries = _scan(lambda c, s: (layer(c, s)[0], c), stacked, init, reverse, unroll, 1)
            again = [*stacked, *carries[len(init) :], *dys]
            again = _scan(vjp_layer(layer, len(stacked), len(init), captures), again, state, not reverse, unroll, 1)
            closed = _captured(captures)
            wrt = [*floats(stacked), *floats(init), *closed, *cotangents]
            # stop: one of them may have been computed from another, and what it gets that way is not counted here
            grads = tf.gradients(again, wrt, tangents, stop_gradients=[*arrays, *closed])
            return _gradients(filled(grads, floats(arrays)), arrays, variables)

        return [*dstate, *dstacked], vjp

    # identities: apart from what the cotangents come from
    results = pull(*map(tf.identity, [*stacked, *init, *closed, *cotangents]))
    dinit_and_closed, dstacked = split(results, len(floats(init)) + len(closed))
    return [*dstacked, *dinit_and_closed]


def recomputing(layer: FlatLayer, num_stacked: int, init: Arrays, captures: Arrays) -> Rule:
    """The rule that keeps the carry, and computes the layer again on the way back."""
    step = vjp_layer(layer, num_stacked, len(init), captures)

    def forward(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        return (*layer(carry, slices), carry)

    def backward(state: Arrays, slices: Arrays, carry: Arrays, dys: Arrays) -> tuple[Arrays, Arrays]:
        return step(state, [*slices, *carry, *dys])

    return Rule(forward, backward, init)


def vjp_layer(layer: FlatLayer, num_stacked: int, num_carry: int, captures: Arrays) -> FlatLayer:
    """The layer's vjp as a layer, of carry [*dcarry, *dclosed_over] and slices of [*stacked, *carries, *dys]."""

    def step(state: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        xs, carry, dys = split([*map(tf.identity, slices)], num_stacked, num_carry)
        dcarry, dclosed = split(state, len(floats(carry)))
        new_carry, ys = layer(carry, xs)
        wrt = [*floats(carry), *_captured(captures), *floats(xs)]
        # tf.gradients, not a tape: a tape in here would stop forward mode from passing through
        grads = tf.gradients(floats([*new_carry, *ys]), wrt, [*dcarry, *dys], stop_gradients=[*carry, *xs])
        grads = filled(grads, [*dcarry, *dclosed, *floats(xs)])
        dcarry, more, dxs = split(grads, len(dcarry), len(dclosed))
        return [*dcarry, *(a + b for a, b in zip(dclosed, more, strict=True))], dxs

    return step


def _captured(captures: Arrays) -> Arrays:
    """What stands for `captures` in the body that is being traced."""
    return [tf.compat.v1.get_default_graph().capture(c) for c in captures]


def _gradients(grads: Sequence[Any], arrays: Sequence[Any], variables: Any) -> Any:
    """`grads` in the form that tf.custom_gradient asks for."""
    grads = nones(grads, arrays)
    # the variables that a layer closes over get their gradient as arguments
    return grads if variables is None else (grads, [None] * len(variables))


def pushforward(function: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """`function(*primals)` and its derivative along tangents: the vjp is linear, and its own vjp is the jvp."""
    arrays, pack = apart(tuple(primals))
    outputs = function(*pack(arrays))
    outs, pack_outs = apart(outputs)
    seeds = [*map(tf.zeros_like, floats(outs))]
    pulled = tf.gradients(floats(outs), floats(arrays), seeds)
    along = flatten(tangents)[0]
    pairs = [(tf.convert_to_tensor(p), t) for p, t in zip(pulled, along, strict=True) if p is not None]
    pushed = tf.gradients([p for p, _ in pairs], seeds, [t for _, t in pairs])
    return outputs, pack_outs(nones(filled(pushed, seeds), outs))


def batched(layer: Layer, in_axes: tuple[Any, ...]) -> Layer:
    """`layer` for a batch of carries, and of slices where there is an axis of the batch."""

    def step(*carry_and_slices: Any) -> tuple[Any, Any]:
        mapped = (True, in_axes[0] is not None, in_axes[2] is not None)[: len(carry_and_slices)]
        arrays, pack = flatten([tree if m else None for tree, m in zip(carry_and_slices, mapped, strict=True)])
        pack_outputs = []

        def one(arrays: list[tf.Tensor]) -> list[tf.Tensor]:
            members = zip(pack(arrays), carry_and_slices, mapped, strict=True)
            outs, pack_outs = flatten(layer(*(member if m else shared for member, shared, m in members)))
            pack_outputs.append(pack_outs)
            return outs

        outs = tf.vectorized_map(one, arrays)
        return pack_outputs[-1](outs)

    return step
