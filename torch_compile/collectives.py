"""The four collectives of `devices.py` as operators that a program calls, each with its derivative.

    gather <-> scatter      copy <-> add        each the other's transpose, and so its derivative

torch has operators for them, but not these derivatives: that of its all-reduce is an all-reduce, by which the gradient
of a sum over four devices is four times too large. JAX needs none of this.
Source: https://docs.pytorch.org/docs/2.13/library.html#torch.library.custom_op
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from torch_compile.private import process_group


# allow_in_graph: Dynamo does not look into a Function that has rules for `torch.func`, and need not.
@torch.compiler.allow_in_graph
def collective(array: torch.Tensor, kind: str, size: int, group: str, axis: int = 0) -> torch.Tensor:
    return _Collective.apply(array, kind, size, group, axis)


class _Collective(torch.autograd.Function):
    """A linear function, whose derivative is its transpose; with rules for `torch.func`, which torch's own lack."""

    @staticmethod
    def forward(array, kind, *where):
        return _RUN[kind](array, *where)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.kind, *ctx.where = inputs

    @staticmethod
    def backward(ctx, cotangent):
        return _Collective.apply(cotangent, _TRANSPOSE[ctx.kind], *ctx.where), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return _Collective.apply(tangent, ctx.kind, *ctx.where)

    @staticmethod
    def vmap(info, in_dims, array, kind, size, group, axis):
        return _Collective.apply(array.movedim(in_dims[0], 0), kind, size, group, axis + 1), 0


# An operator each, which a program calls as one. Of torch's own Inductor's C++ wrapper takes the all-reduce alone
# (https://github.com/pytorch/pytorch/pull/188124), and those that nobody reads are sent.
@torch.library.custom_op("torch_compile::gather", mutates_args=())
def _gather(array: torch.Tensor, size: int, group: str, axis: int) -> torch.Tensor:
    parts = array.new_empty((size * array.shape[0], *array.shape[1:]))
    distributed.all_gather_single(parts, array.contiguous(), group=process_group(group))
    return torch.cat(parts.chunk(size), axis)


@torch.library.custom_op("torch_compile::scatter", mutates_args=())
def _scatter(array: torch.Tensor, size: int, group: str, axis: int) -> torch.Tensor:
    parts = torch.cat(array.chunk(size, axis))
    part = torch.empty_like(parts.chunk(size)[0])
    distributed.reduce_scatter_single(part, parts, group=process_group(group))
    return part


@torch.library.custom_op("torch_compile::add", mutates_args=())
def _add(array: torch.Tensor, size: int, group: str, axis: int) -> torch.Tensor:
    total = array.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=process_group(group))
    return total


def _copy(array: torch.Tensor, size: int, group: str, axis: int) -> torch.Tensor:
    return array.view_as(array)


_gather.register_fake(lambda array, size, group, axis: torch.cat([array] * size, axis))
_scatter.register_fake(lambda array, size, group, axis: torch.empty_like(array.chunk(size, axis)[0].contiguous()))
_add.register_fake(lambda array, size, group, axis: array.clone(memory_format=torch.contiguous_format))
_RUN: dict[str, Any] = {"gather": _gather, "scatter": _scatter, "copy": _copy, "add": _add}
_TRANSPOSE = {"gather": "scatter", "scatter": "gather", "copy": "add", "add": "copy"}
