"""The framework's ordinary autodiff from outside, and the rule by which it goes through a stack.

TensorFlow differentiates a while loop by itself, but its gradient of the read `a[i]` adds a whole stack of zeros for
each layer: time N * N. What JAX does for `jax.grad` is written out here instead: a loop forwards that keeps what
the layer's derivative reads, then a loop backwards over it. What a layer closes over is found by tracing it, and is one
more argument of the stack as far as derivatives are concerned.
Source: https://www.tensorflow.org/api_docs/python/tf/custom_gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while.checks import Traced, trace_flat
from tf_while.edges import being_saved, captured_within, compile, reading
from tf_while.loops import Plan, nothing, scan, scan_vjp, unrolled, vjp_step
from tf_while.residuals import captured, keeping, recomputing
from tf_while.trees import (
    Arrays,
    Layer,
    apart,
    filled,
    flatten,
    floats,
    is_float,
    nones,
    pulled,
    split,
    tangents_like,
)

Apply = Callable[..., Any]


def gradient(apply: Apply) -> Callable[..., tuple[Any, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, all trees; None in dargs for what is no float."""

    def run(*args_and_cotangent: Any) -> tuple[Any, ...]:
        *args, cotangent = args_and_cotangent
        arrays, pack = flatten(args)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(floats(arrays))
            y = apply(*pack(arrays))
        (cotangent,) = tangents_like("cotangent", (cotangent,), (y,), ("y",))
        of, cotangents, zero = floats(flatten(y)[0]), flatten(cotangent)[0], tf.UnconnectedGradients.ZERO
        grads = tape.gradient(of, floats(arrays), cotangents, unconnected_gradients=zero)
        return y, *pack(nones(grads, arrays))

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[Any, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))


def differentiable(plan: Plan, stacked: Arrays, init: Arrays) -> tuple[Arrays, Arrays]:
    """(carry, ys) of the scan of `plan.step` over axis 0 of `stacked`, with a gradient of its own."""
    if not tf.inside_function():  # in forward mode: programs.py
        return unrolled(plan.step, stacked, init, plan.reverse)
    traced = trace_flat(plan.step, stacked, init)
    known = all(a.shape.is_fully_defined() for a in (*init, *traced.like_ys))
    if not known and stacked[0].shape[:1] == [0]:  # loops that do not run would not know the sizes of ys
        return nothing(plan.step, stacked, init)
    kept = None if plan.remat else keeping(traced, len(stacked), len(init))
    plan = plan._replace(rule=kept or recomputing(plan.step, init, traced))
    within = captured_within(traced.captures)

    @tf.custom_gradient
    def run(*arrays: tf.Tensor) -> tuple[Arrays, Callable[..., Any]]:
        stacked_, init_, closed = split(arrays, len(stacked), len(init))
        carry, ys, kept = scan(plan, stacked_, init_, keep=any(map(is_float, arrays)))
        results = [*carry, *ys]

        def vjp(*cotangents: tf.Tensor, variables: Any = None) -> Any:
            if plan.rule.runs_again and traced.state is not None:
                raise arguments.runs_twice(traced.state)
            given = [d for d, result in zip(cotangents, results, strict=True) if is_float(result)]
            with reading(within):
                kept_ = _kept_again(plan, traced, stacked_, init_) if being_saved() else kept
                grads = _vjp(plan, traced, (stacked_, init_, closed), kept_, given)
            return _gradients(grads, arrays, variables)

        return results, vjp

    # identities: of this graph, also where it is the branch of a tf.cond and they come from far around
    carry, ys = split(run(*map(tf.identity, [*stacked, *init, *(a for _, a in traced.closed_over)])), len(init))
    return carry, ys


def _kept_again(plan: Plan, traced: Traced, stacked: Arrays, init: Arrays) -> Arrays:
    """What the loop forwards keeps; a layer with state says, once it is loaded, that it cannot run again."""
    refused = [] if traced.state is None else [tf.debugging.Assert(False, [str(arguments.runs_twice(traced.state))])]
    with tf.control_dependencies(refused):
        return scan(plan, [*map(tf.identity, stacked)], [*map(tf.identity, init)], keep=True)[2]


def _vjp(plan: Plan, traced: Traced, primals: tuple[Arrays, ...], kept: Arrays, cotangents: Arrays) -> Arrays:
    """Gradients of the floating-point arrays in primals = (stacked, init, closed), with derivatives of their own."""

    @tf.custom_gradient
    def run(*arrays: tf.Tensor) -> tuple[Arrays, Callable[..., Any]]:
        stacked, init, closed, cotangents = split(arrays, *map(len, primals))
        dcarry, dys = split(cotangents, len(floats(init)))
        dclosed = [*map(tf.zeros_like, closed)]
        dstacked, dinit, dclosed_ = scan_vjp(plan, stacked, kept, dcarry, dys, dclosed)

        def vjp(*tangents: tf.Tensor, variables: Any = None) -> Any:
            # The same once more as two stacks that have derivatives: of the layer, then of the layer's derivative.
            if traced.state is not None:
                raise arguments.runs_twice(traced.state)
            first = plan._replace(step=lambda c, s: (plan.step(c, s)[0], c), remat=1)
            _, carries = differentiable(first, stacked, init)
            step = vjp_step(recomputing(plan.step, init, traced), len(stacked), len(dcarry))
            second = plan._replace(step=step, reverse=not plan.reverse, remat=1)
            state, dstacked = differentiable(second, [*stacked, *carries, *dys], [*dcarry, *dclosed])
            places = captured(traced)
            wrt = [*floats(stacked), *floats(init), *places, *cotangents]
            # stop: one of them may have been computed from another, and what it gets that way is not counted here
            grads = pulled([*dstacked, *state], wrt, tangents, stop_gradients=[*arrays, *places])
            return _gradients(filled(grads, floats(arrays)), arrays, variables)

        return [*dstacked, *dinit, *dclosed_], vjp

    # identities: apart from what the cotangents come from
    return run(*map(tf.identity, [a for part in (*primals, cotangents) for a in part]))


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
    pulls = pulled(floats(outs), floats(arrays), seeds)
    along = flatten(tangents)[0]
    pairs = [(tf.convert_to_tensor(p), t) for p, t in zip(pulls, along, strict=True) if p is not None]
    pushed = pulled([p for p, _ in pairs], seeds, [t for _, t in pairs])
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
