"""Derivatives and batching of a whole stack: transform the layer, then scan it.

What `jax.vjp`, `jax.jvp` and `jax.vmap` make of a scan from outside is written out: forward mode scans the layer's jvp
with the tangent in the carry, batching scans the layer's vmap, reverse mode is a scan each way, and a Hessian product
is the reverse mode of forward mode. All functions take a stack as `scan_layers` does. Tangents, cotangents and
gradients hold None where the array is not of floating point, and None for a whole tree means zero.
Source: https://docs.pytorch.org/docs/2.13/func.api.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from reference import arguments
from torch_compile import trees
from torch_compile.autodiff import differentiable
from torch_compile.checks import Flat, prepare
from torch_compile.edges import as_leaf
from torch_compile.fallback import batched, pullback_of
from torch_compile.looks import check_forward_mode, looked_at_once
from torch_compile.primitive import Arrays, Step, split
from torch_compile.trees import Layer, with_floats


@looked_at_once
def vjp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, cotangents: tuple[Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Reverse mode. cotangents: (dcarry, dys). Returns (carry, ys), (dstacked_params, dinit, dxs)."""
    flat = prepare(layer, stacked_params, init, xs, **options)
    outputs, (dslices, dinit) = _vjp(
        flat, lambda outputs: trees.tangents_like("cotangents", cotangents, outputs, OUTPUTS)
    )
    return outputs, (dslices[0], dinit, dslices[1])


@looked_at_once
def jvp_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, tangents: tuple[Any, Any, Any], **options: Any
) -> tuple[Any, Any]:
    """Forward mode. tangents: (tstacked_params, tinit, txs). Returns (carry, ys), (tcarry, tys)."""
    flat = _jvp_flat(layer, (stacked_params, init, xs), tangents, options)
    (carry, tcarry), (ys, tys) = flat.outputs(*differentiable(flat.plan, flat.stacked, flat.init))
    return (carry, ys), (tcarry, tys)


@looked_at_once
def vmap_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, in_axes: Any = (None, 0, None), **options: Any
) -> tuple[Any, Any]:
    """Batching. in_axes: the axis of the batch, or None, for stacked_params, init, xs: (None, 0, None) is a batch of
    inits, (0, None, None) an ensemble of stacks. Returns (carry [B, ...], ys [B, N, ...])."""
    flat = _vmap_flat(layer, (stacked_params, init, xs), in_axes, options)
    carry, ys = flat.outputs(*differentiable(flat.plan, flat.stacked, flat.init))
    return carry, trees.swap_axes(ys)


@looked_at_once
def hvp_layers(
    layer: Layer,
    loss: Callable[[Any, Any], torch.Tensor],
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    tangents: tuple[Any, Any, Any],
    **options: Any,
) -> tuple[Any, Any]:
    """Gradient of `loss(carry, ys)` and its Hessian times tangents, reverse over forward.

    Returns (dstacked_params, dinit, dxs) twice: the gradient, then the product."""
    flat = _jvp_flat(layer, (stacked_params, init, xs), tangents, options)
    if wrong := flat.plan.seen.wrong_twice:
        raise arguments.wrong_twice(wrong)

    def cotangents(outputs: tuple[Any, Any]) -> tuple[Any, Any]:
        """Of the loss's own jvp, by the outputs and by their tangents."""
        (carry, tcarry), (ys, tys) = outputs
        arrays, structure = trees.flatten((carry, ys))
        primals = tuple(a for a in arrays if a.is_floating_point())
        moved = tuple(t for t in trees.flatten_like(structure, (tcarry, tys)) if t is not None)
        run = lambda values: loss(*trees.unflatten(structure, with_floats(arrays, values)))  # noqa: E731
        ahead: Any = (), ()
        if primals:
            # A Hessian is symmetric. By forward mode, `loss / 2` ends a compiled process: its zeros have no memory.
            gradient, pullback = torch.func.vjp(torch.func.grad(run), primals)  # type: ignore[misc]
            ahead = *pullback(moved), gradient
        (dcarry, dys), (dtcarry, dtys) = (trees.unflatten(structure, trees.nones(arrays, values)) for values in ahead)
        return (dcarry, dtcarry), (dys, dtys)

    _, ((dslices, dtslices), (dinit, dtinit)) = _vjp(flat, cotangents)
    return (dtslices[0], dtinit, dtslices[1]), (dslices[0], dinit, dslices[1])


@looked_at_once
def vmap_vjp_layers(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    cotangents: tuple[Any, Any],
    in_axes: Any = (None, 0, None),
    **options: Any,
) -> tuple[Any, Any]:
    """Per-example gradients: `vjp_layers` of each member of the batch, cotangents (dcarry [B, ...], dys [B, N, ...]).

    Returns (carry, ys), (dstacked_params, dinit, dxs), each array [B, ...], also of what the batch shares."""
    flat = _vmap_flat(layer, (stacked_params, init, xs), in_axes, options, cotangents)

    def batch_second(outputs: tuple[Any, Any]) -> tuple[Any, Any]:
        outputs = outputs[0], trees.swap_axes(outputs[1])
        dcarry, dys = trees.tangents_like("cotangents", cotangents, outputs, OUTPUTS)
        return dcarry, trees.swap_axes(dys)

    (carry, ys), (dslices, dinit) = _vjp(flat, batch_second)
    dstacked_params, dxs = trees.swap_axes(dslices)
    return (carry, trees.swap_axes(ys)), (dstacked_params, dinit, dxs)


INPUTS, OUTPUTS = ("stacked_params", "init", "xs"), ("carry", "ys")


def _vjp(flat: Flat, cotangents: Callable[[tuple[Any, Any]], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Outputs, and (dslices, dinit) for the cotangents of these outputs. Without history, as `torch.autograd.grad`."""
    arrays = [*flat.stacked, *flat.init]
    results, pullback = pullback_of(lambda arrays: differentiable(flat.plan, *split(arrays, len(flat.stacked))), arrays)
    outputs = flat.outputs(*results)
    pairs = zip((flat.carry, flat.ys), cotangents(outputs), strict=True)
    given = [ct for structure, tree in pairs for ct in trees.flatten_like(structure, tree) if ct is not None]
    dslices, dinit = split(trees.nones(arrays, pullback(given)), len(flat.stacked))
    return outputs, (trees.unflatten(flat.slices, dslices), trees.unflatten(flat.carry, dinit))


def _jvp_flat(layer: Layer, primals: tuple[Any, Any, Any], tangents: Any, options: dict[str, Any]) -> Flat:
    """The stack of the layer's jvp: primals and tangents side by side in carry, slices and ys."""
    flat = prepare(layer, *primals, **options)
    check_forward_mode(flat.plan.seen, flat.plan.step, flat.init, flat.stacked)
    (stacked_params, init, xs), (tparams, tinit, txs) = (
        primals,
        trees.tangents_like("tangents", tangents, primals, INPUTS),
    )
    stacked, slices = trees.flatten(((stacked_params, xs), (tparams, txs)))
    carry_arrays, carry = trees.flatten((init, tinit))
    like = [torch.empty(2) for _ in flat.plan.seen.y_floats]
    moving = [a if is_float else None for a, is_float in zip(like, flat.plan.seen.y_floats, strict=True)]
    _, ys = trees.flatten((trees.unflatten(flat.ys, like), trees.unflatten(flat.ys, moving)))
    step = pushforward(flat.plan.step, len(flat.init), len(flat.stacked))
    return Flat(flat.plan._replace(step=step), stacked, carry_arrays, carry, slices, ys)


def _vmap_flat(
    layer: Layer, inputs: tuple[Any, Any, Any], in_axes: Any, options: dict[str, Any], cotangents: Any = None
) -> Flat:
    """The stack of the layer's vmap, the batch at axis 1 of stacked arrays: of all, for gradients of each member."""
    size = arguments.check_batch(as_leaf, dict(zip(INPUTS, inputs, strict=True)), in_axes, cotangents)
    every = cotangents is not None  # members have parameters of their own where they have gradients of their own
    flat = prepare(layer, *map(trees.member, inputs, in_axes), **options)
    params, init, xs = inputs
    stacked_axis, init_axis, xs_axis = in_axes
    stacked = [*trees.batched(params, stacked_axis, 1, size, every), *trees.batched(xs, xs_axis, 1, size, every)]
    init = [a for a, _ in trees.batched(init, init_axis, 0, size, True)]  # the carry of a batched stack is batched
    step = batched(flat.plan.step, tuple(is_batched for _, is_batched in stacked))
    return flat._replace(plan=flat.plan._replace(step=step), stacked=[a for a, _ in stacked], init=init)


def pushforward(step: Step, num_carries: int, num_slices: int) -> Step:
    """`step` with tangents after the arrays of floating point: in carry, slices and y."""

    def moved(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        primals, tangents = [*carry[:num_carries], *slices[:num_slices]], [*carry[num_carries:], *slices[num_slices:]]

        def run(*values: torch.Tensor) -> tuple[Any, Any]:
            values = tuple(value.view_as(value) for value in values)
            arrays = with_floats(primals, values)
            outputs = step(arrays[:num_carries], arrays[num_carries:])
            of_floats = (tuple(a for a in part if a.is_floating_point()) for part in outputs)
            return (*of_floats, values[:1]), outputs  # one at least, as torch.func wants it

        floats = tuple(a for a in primals if a.is_floating_point())
        if not floats:
            new_carry, y = step(carry, slices)
            tcarry, ty = ([torch.zeros_like(a) for a in part if a.is_floating_point()] for part in (new_carry, y))
            return [*new_carry, *tcarry], [*y, *ty]
        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
            _, (tcarry, ty, _), (new_carry, y) = torch.func.jvp(run, floats, tuple(tangents), has_aux=True)  # type: ignore[misc]
        return [*new_carry, *tcarry], [*y, *ty]

    return moved
