"""One stack on many devices, by `torch.distributed`, after `jax_scan/devices.py`: a process for each device.

    mesh = make_mesh(data=8)
    layer = fully_sharded(LAYERS["mlp"], mesh, "data")
    params = shard_layers(params, mesh, {"data": 1})
    stack = on_mesh(lambda params, x: scan_layers(layer, params, x)[0], mesh, ({"data": 1}, {"data": 0}), {"data": 0})

All processes run the same lines, after `torch.distributed.init_process_group(timeout=...)`: a process that does not
come is waited for. Whole arrays that are cut are DTensors; a loop takes none, so that within `on_mesh` a device has its
parts as plain arrays. What is gathered the backward pass gathers again by itself (residuals.py).
Source: https://docs.pytorch.org/docs/2.13/distributed.tensor.html
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from reference import meshes
from torch_compile.collectives import collective
from torch_compile.edges import DEVICE, as_leaf
from torch_compile.private import pytree
from torch_compile.stack import scan_layers
from torch_compile.trees import Layer, map_arrays

Axes = dict[str, Any]

SECONDS = 300  # for which a process waits for the others, which may be compiling


def start(size: int) -> None:
    """In each of so many processes, which `torchrun` has started: they find each other.

    One that hangs ends the others after SECONDS; which it is, `monitored_barrier` of a second group says."""
    torch.set_num_threads(1)
    distributed.init_process_group("nccl" if DEVICE == "cuda" else "gloo", timeout=timedelta(seconds=SECONDS))
    if size != distributed.get_world_size():
        raise ValueError(f"size: expected that of torchrun, {distributed.get_world_size()}, got {size}")


def make_mesh(**sizes: int) -> DeviceMesh:
    """The first processes as a mesh. None is made here: `torchrun` starts them, and `init_process_group` joins them."""
    meshes.check_mesh(sizes, distributed.get_world_size())
    return init_device_mesh(DEVICE, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def shard_layers(stacked_params: Any, mesh: DeviceMesh, axes: Axes) -> Any:
    """As `jax_scan.shard_layers`: DTensors. The first process sends its own values to the others.

    Axis 0 is not cut: a loop reads every layer on every device."""
    return _placed("stacked_params", stacked_params, mesh, axes)


def shard(tree: Any, mesh: DeviceMesh, axes: Axes) -> Any:
    """As `jax_scan.shard`."""
    return _placed("tree", tree, mesh, axes)


def whole(tree: Any, mesh: DeviceMesh, axes: Axes) -> Any:
    """As `jax_scan.whole`."""
    return map_arrays(lambda a: cast(DTensor, a).full_tensor(), tree)


def on_mesh(f: Callable[..., Any], mesh: DeviceMesh, in_axes: tuple[Axes, ...], out_axes: Any) -> Callable[..., Any]:
    """As `jax_scan.on_mesh`, of DTensors, or of whole arrays that all processes have alike; it returns DTensors.

    It is `torch.distributed.tensor.experimental.local_map` for results of which only the first axes are said."""

    def run(*args: Any) -> Any:
        parts = []
        for i, (arg, axes) in enumerate(zip(args, in_axes, strict=True)):
            cuts = _cuts(arg, axes)
            meshes.check_cuts(as_leaf, f"args[{i}]", arg, cuts, _sizes(mesh))
            parts.append(_with(arg, [_part(array, mesh, _spec(cut, mesh)) for array, cut in cuts]))
        results = f(*parts)
        if isinstance(out_axes, tuple):
            return tuple(_whole(part, mesh, axes) for part, axes in zip(results, out_axes, strict=True))
        return _whole(results, mesh, out_axes)

    return run


# The four collectives, in pairs of which each is the other's transpose: gather and scatter, copy and add.
def gather(array: torch.Tensor, mesh: DeviceMesh, name: str, axis: int) -> torch.Tensor:
    """The whole of an array that the devices along `name` have cut along `axis`."""
    return collective(array, "gather", *_group(mesh, name), axis)


def scatter(array: torch.Tensor, mesh: DeviceMesh, name: str, axis: int) -> torch.Tensor:
    """The sum over those devices, of which each has its part along `axis`."""
    return collective(array, "scatter", *_group(mesh, name), axis)


def copy(array: torch.Tensor, mesh: DeviceMesh, name: str) -> torch.Tensor:
    """What all devices along `name` have alike; its cotangents, which they have not, are added up."""
    return collective(array, "copy", *_group(mesh, name))


def add(array: torch.Tensor, mesh: DeviceMesh, name: str) -> torch.Tensor:
    """The sum over those devices; its cotangent, which they have alike, is that of each summand.

    Where each makes something else of the sum, they have not, and its gradient is wrong without `copy(add(array))`. JAX
    sees in the types of arrays who has what, and copies by itself."""
    return collective(array, "add", *_group(mesh, name))


def data_parallel(layer: Layer, mesh: DeviceMesh, name: str) -> Layer:
    """As `jax_scan.data_parallel`. Graph: an all-reduce for each array and layer, in the gradient."""
    meshes.check_name(_sizes(mesh), name)

    def complete(params: Any) -> Any:
        return map_arrays(lambda a: copy(a, mesh, name), params)

    return _of_complete(layer, complete)


def fully_sharded(layer: Layer, mesh: DeviceMesh, name: str, axes: Any = 1) -> Layer:
    """As `jax_scan.fully_sharded`."""
    meshes.check_name(_sizes(mesh), name)

    def complete(params: Any) -> Any:
        parts = [(a, cut.get(name)) for a, cut in _cuts(params, {name: axes})]
        full = [copy(a, mesh, name) if axis is None else gather(a, mesh, name, axis - 1) for a, axis in parts]
        return _with(params, full)

    return _of_complete(layer, complete)


def tensor_parallel(layer: Layer, mesh: DeviceMesh, name: str) -> Layer:
    """As `jax_scan.tensor_parallel`."""
    meshes.check_name(_sizes(mesh), name)
    return partial(layer, enter=lambda x: copy(x, mesh, name), leave=lambda x: add(x, mesh, name))


@torch.compiler.disable
def pipeline(
    layer: Layer,
    stacked_params: Any,
    microbatches: Any,
    loss: Callable[[Any], torch.Tensor],
    mesh: DeviceMesh,
    name: str,
) -> tuple[torch.Tensor, Any]:
    """As `jax_scan.pipeline`, by torch's own stages and schedule, which send from outside of programs: the stack of a
    stage is called as it stands, and nothing differentiates this from outside."""
    stage, P = mesh.get_local_rank(name), _sizes(mesh)[name]
    given, structure = pytree.tree_flatten(microbatches)
    M = given[0].shape[0]
    params = map_arrays(lambda a: a.detach().requires_grad_(a.is_floating_point()), stacked_params)

    def run(*arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = pytree.tree_unflatten([a.squeeze(0) for a in arrays], structure)  # torch cuts microbatches [1, ...]
        return tuple(a.unsqueeze(0) for a in pytree.tree_leaves(scan_layers(layer, params, x)[0]))

    def share(y: tuple[torch.Tensor, ...], _: Any) -> torch.Tensor:
        return loss(pytree.tree_unflatten([a.squeeze(0) for a in y], structure)) / M

    # a carry is of one shape from layer to layer
    like = tuple(a[:1].detach().requires_grad_(a.is_floating_point()) for a in given)
    part = PipelineStage(_Stage(run), stage, P, given[0].device, like, like, group=mesh.get_group(name))
    schedule = ScheduleGPipe(part, M, share, scale_grads=False)
    losses: list[torch.Tensor] = []
    # without a target for each microbatch no loss is asked for
    schedule.step(*(given if stage == 0 else ()), target=torch.empty(M), losses=losses)
    value = sum(losses, given[0].new_zeros(())).detach()  # the last stage alone has any
    return add(value, mesh, name), map_arrays(lambda a: a.grad, params)


class _Stage(torch.nn.Module):
    """The module that torch wants for a stage."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = run


def _of_complete(layer: Layer, complete: Callable[[Any], Any]) -> Layer:
    def step(carry: Any, params: Any, *x: Any) -> tuple[Any, Any]:
        return layer(carry, complete(params), *x)

    return step


def _placed(of: str, tree: Any, mesh: DeviceMesh, axes: Axes) -> Any:
    cuts = _cuts(tree, axes)
    meshes.check_cuts(as_leaf, of, tree, cuts, _sizes(mesh))
    return _with(tree, [distribute_tensor(array, mesh, _spec(cut, mesh)) for array, cut in cuts])


def _group(mesh: DeviceMesh, name: str) -> tuple[int, str]:
    group = mesh.get_group(name)
    return group.size(), group.group_name


def _sizes(mesh: DeviceMesh) -> dict[str, int]:
    return dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True))


def _cuts(tree: Any, axes: Axes) -> list[tuple[torch.Tensor, dict[str, int]]]:
    """Each array of `tree`, and which of its axes are cut by which of the mesh."""
    leaves, structure = pytree.tree_flatten(map_arrays(lambda a: a, tree))

    def along(axis: Any) -> list[int | None]:  # a dict keeps no order
        is_one = axis is None or isinstance(axis, int)
        return [axis] * len(leaves) if is_one else structure.flatten_up_to(axis)

    columns = [along(axis) for axis in axes.values()]
    rows = zip(*columns, strict=True) if columns else [()] * len(leaves)
    named = [{n: axis for n, axis in zip(axes, row, strict=True) if axis is not None} for row in rows]
    return [(a, cut) for a, cut in zip(leaves, named, strict=True) if a is not None]


def _spec(cut: dict[str, int], mesh: DeviceMesh) -> list[Placement]:
    return [Shard(cut[name]) if name in cut else Replicate() for name in _sizes(mesh)]


def _part(array: torch.Tensor, mesh: DeviceMesh, spec: list[Placement]) -> torch.Tensor:
    if not isinstance(array, DTensor):
        array = DTensor.from_local(array, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return array.redistribute(mesh, spec).to_local()


def _whole(parts: Any, mesh: DeviceMesh, axes: Axes) -> Any:
    cuts = _cuts(parts, axes)
    return _with(parts, [DTensor.from_local(a, mesh, _spec(cut, mesh), run_check=False) for a, cut in cuts])


def _with(tree: Any, arrays: list[torch.Tensor]) -> Any:
    """`tree`, with these arrays for its own."""
    rest = iter(arrays)
    return map_arrays(lambda _: next(rest), tree)
