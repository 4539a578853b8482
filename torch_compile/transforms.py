"""Derivatives and batching of a whole stack: transform the layer, then scan it.

What JAX does behind `jax.grad` is written out here: a scan forwards that keeps the carries, then a scan backwards of
`torch.func.vjp(layer)` that takes the cotangent from the last layer to the first. An autograd.Function makes them the
stack's gradient, for `.backward()`, `torch.autograd.grad`, `torch.func` and inside a user's own compiled function.
Source: https://docs.pytorch.org/docs/2.13/notes/extending.func.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._higher_order_ops.scan import scan

from torch_compile.edges import compile, run_compiled

Apply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Layer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, Any]]
Scan = Callable[[Layer, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]


def gradient(apply: Apply) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Reverse mode: `(weights, x, cotangent) -> (y, dweights, dx)`, shapes as in `scan_apply_layers`, cotangent [d]."""

    def run(weights: torch.Tensor, x: torch.Tensor, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Leaves of their own: the caller's tensors keep their history and their requires_grad.
        leaves = weights.detach().requires_grad_(), x.detach().requires_grad_()
        y = apply(*leaves)
        # clone: without layers the cotangent itself would come back as dx
        return y.detach(), *torch.autograd.grad(y, leaves, cotangent.clone(), materialize_grads=True)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`gradient(apply)`, compiled: autograd stays outside, its forward and its backward are each a compiled program."""
    return gradient(compile(apply))


def differentiable(scan_forward: Scan, layer: Layer, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The stack y = scan_forward(layer, weights, x, ...)[0] with a gradient of its own."""
    keep_carries = torch.is_grad_enabled() and (weights.requires_grad or x.requires_grad)
    return _rule(_Stack).apply(scan_forward, layer, keep_carries, weights, x)[0]


class _Stack(torch.autograd.Function):
    """(weights [N, ...], x) -> (y, carries [N, ...]), where carries[i] is what entered layer i."""

    @staticmethod
    def forward(scan_forward, layer, keep_carries, weights, x):
        return run_compiled(scan_forward, layer, (weights,), (x,), keep_carries)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.layer, _, weights, x = inputs
        ctx.save_for_backward(weights, x, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, cotangent, _):
        return None, None, None, *_rule(_StackVjp).apply(ctx.layer, *ctx.saved_tensors, cotangent)

    @staticmethod
    def vmap(info, in_dims, scan_forward, layer, keep_carries, weights, x):
        batched_weights = in_dims[3] is not None
        weights = weights.movedim(in_dims[3], 1) if batched_weights else weights  # [N, B, ...]
        x = _batch(info, x, in_dims[4], 0)  # [B, ...]: the carry of a batched stack is batched, whatever x was
        y = _rule(_Stack).apply(scan_forward, _vmap_layer(layer, batched_weights), keep_carries, weights, x)
        return y, (0, 1 if keep_carries else None)


class _StackVjp(torch.autograd.Function):
    """(weights, x, carries, cotangent) -> (dweights, dx). A Function too, so that `torch.func` finds a rule for it."""

    @staticmethod
    def forward(layer, weights, x, carries, cotangent):
        # own: a cotangent broadcast from a scalar has stride 0, and Inductor's scan reads it wrongly
        return run_compiled(_scan_vjp, layer, (weights, carries), (own(cotangent),))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer, weights, x, _, cotangent = inputs
        ctx.save_for_backward(weights, x, cotangent)

    @staticmethod
    def backward(ctx, ddweights, ddx):
        _, pullback = torch.func.vjp(partial(_loop_vjp, ctx.layer), *ctx.saved_tensors)  # type: ignore[misc]
        dweights, dx, dcotangent = pullback((ddweights, ddx))
        return None, dweights, dx, None, dcotangent

    @staticmethod
    def vmap(info, in_dims, layer, weights, x, carries, cotangent):
        # Everything batched: shared weights too have one gradient for each member of the batch.
        weights, carries = _batch(info, weights, in_dims[1], 1), _batch(info, carries, in_dims[3], 1)
        x, cotangent = _batch(info, x, in_dims[2], 0), _batch(info, cotangent, in_dims[4], 0)
        return _rule(_StackVjp).apply(_vmap_layer(layer, True), weights, x, carries, cotangent), (1, 0)


class _StackJvp(_Stack):
    """`_Stack` with forward mode."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Stack.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[3:])

    @staticmethod
    def jvp(ctx, _scan, _layer, _keep, *tangents):
        return _jvp(partial(_loop, ctx.layer), ctx.saved_tensors, tangents), None


class _StackVjpJvp(_StackVjp):
    """`_StackVjp` with forward mode: forward over reverse."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _StackVjp.setup_context(ctx, inputs, output)
        _, weights, x, _, cotangent = inputs
        ctx.save_for_forward(weights, x, cotangent)

    @staticmethod
    def jvp(ctx, _layer, tweights, tx, _tcarries, tcotangent):
        return _jvp(partial(_loop_vjp, ctx.layer), ctx.saved_tensors, (tweights, tx, tcotangent))


def _rule(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """`function`, with forward mode where that can be: Dynamo refuses a Function that has it."""
    return function if torch.compiler.is_compiling() else {_Stack: _StackJvp, _StackVjp: _StackVjpJvp}[function]


def _scan_vjp(
    layer: Layer, weights: torch.Tensor, carries: torch.Tensor, cotangent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    def body(cotangent: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        carry, w = carries.index_select(0, i)[0], weights.index_select(0, i)[0]
        _, pullback = torch.func.vjp(lambda carry: layer(carry, w)[0], carry)  # type: ignore[misc]
        return own(pullback(cotangent)[0]), own(cotangent)

    def dweights(w: torch.Tensor, carry: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
        return torch.func.vjp(lambda w: layer(carry, w)[0], w)[1](cotangent)[0]

    if weights.numel() == 0:
        return torch.zeros_like(weights), cotangent.clone()
    # Count down instead of `reverse=True`: that flips, and so copies, the whole stack of weights. Only the cotangents
    # depend on each other; once they are known, the weight gradients are N independent ones.
    layers = torch.arange(weights.shape[0] - 1, -1, -1, device=weights.device).unsqueeze(1)  # [N, 1]
    dx, cotangents = scan(body, cotangent, layers)
    return torch.func.vmap(dweights)(weights, carries, cotangents.flip(0)), dx


# Forward mode and second derivatives differentiate the plain loop: right to any order, of size N, not compiled.


def _loop(layer: Layer, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for w in weights.unbind():
        x, _ = layer(x, w)
    return x


def _loop_vjp(layer: Layer, weights: torch.Tensor, x: torch.Tensor, cotangent: torch.Tensor) -> Any:
    return torch.func.vjp(partial(_loop, layer), weights, x)[1](cotangent)


def _jvp(function: Callable[..., Any], primals: tuple[torch.Tensor, ...], tangents: tuple[Any, ...]) -> Any:
    tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True))
    return torch.func.jvp(function, primals, tangents)[1]


def own(array: torch.Tensor) -> torch.Tensor:
    """A copy in memory and order of its own: scan refuses outputs that alias inputs and carries of other strides."""
    return array.clone(memory_format=torch.contiguous_format)


@functools.cache  # one object for each layer, so that it is compiled once
def _vmap_layer(layer: Layer, batched_weights: bool) -> Layer:
    return torch.func.vmap(layer, in_dims=(0, 0 if batched_weights else None), out_dims=(0, None))  # type: ignore[arg-type]


def _batch(info: Any, array: torch.Tensor, dim: int | None, to: int) -> torch.Tensor:
    if dim is not None:
        return array.movedim(dim, to)
    return array.unsqueeze(to).expand(*array.shape[:to], info.batch_size, *array.shape[to:])
