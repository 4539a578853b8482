"""One stack on many devices, by `jax.shard_map`: the collectives go into the layer, and so into the loop once.

    mesh = make_mesh(data=8)
    layer = fully_sharded(LAYERS["mlp"], mesh, "data")
    params = shard_layers(params, mesh, {"data": 1})
    stack = on_mesh(lambda params, x: scan_layers(layer, params, x)[0], mesh, ({"data": 1}, {"data": 0}), {"data": 0})

Axes are {axis of the mesh: axis of an array, None, or a tree of those}, {} for what each device has whole; an axis
of an array is cut once. JAX finds collectives by itself for what is placed so and `jax.jit` compiles; here they are
written down, as the other two frameworks need them.
Source: https://docs.jax.dev/en/latest/notebooks/shard_map.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_scan.edges import as_leaf
from jax_scan.loops import Layer
from jax_scan.stack import scan_layers
from reference import meshes

Axes = dict[str, Any]


def start(size: int) -> None:
    """Before JAX is used: so many virtual devices of the CPU, to try things out on. They share its cores."""
    jax.config.update("jax_num_cpu_devices", size)


def make_mesh(**sizes: int) -> Mesh:
    """The first devices as a mesh with axes of those names and sizes: make_mesh(data=2, tensor=4).

    Raises:
        ValueError: "sizes: expected 1 to 8 devices, got 16 (data = 2, tensor = 8)"
    """
    meshes.check_mesh(sizes, jax.device_count())
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def shard_layers(stacked_params: Any, mesh: Mesh, axes: Axes) -> Any:
    """Stacked params [N, ...] of which each device of the mesh holds its part of every layer.

    Axis 0 is not cut: XLA would gather the whole stack before the loop (https://github.com/openxla/xla/issues/46108).

    Raises:
        ValueError: "stacked_params['up']['w']: expected a size along axis 1 that 8 devices divide, got shape (2, 12)",
            "stacked_params['up']['w']: expected an axis from 1 to 2 to be cut, got 0"
    """
    return _placed("stacked_params", stacked_params, mesh, axes)


def shard(tree: Any, mesh: Mesh, axes: Axes) -> Any:
    """Any arrays, a batch for one, cut along any of their axes."""
    return _placed("tree", tree, mesh, axes)


def whole(tree: Any, mesh: Mesh, axes: Axes) -> Any:
    """The whole arrays of what is cut so, on each device: for what ends on one, as a checkpoint does."""
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec())), tree)


def on_mesh(f: Callable[..., Any], mesh: Mesh, in_axes: tuple[Axes, ...], out_axes: Any) -> Callable[..., Any]:
    """The function of whole arrays that runs `f` on each device, with its parts of them.

    in_axes: of each argument. out_axes: of the result, or of each in a tuple of results. Differentiable from outside,
    and `f` may differentiate inside."""
    in_specs = tuple(map(_specs, in_axes))
    out_specs = tuple(map(_specs, out_axes)) if isinstance(out_axes, tuple) else _specs(out_axes)
    program = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs))

    def run(*args: Any) -> Any:
        for i, (arg, axes) in enumerate(zip(args, in_axes, strict=True)):
            meshes.check_cuts(as_leaf, f"args[{i}]", arg, _cuts(arg, axes), mesh.shape)
        return program(*args)

    return run


# The four collectives, in pairs of which each is the other's transpose: gather and scatter, copy and add.
def gather(array: jax.Array, mesh: Mesh, name: str, axis: int) -> jax.Array:
    """The whole of an array that the devices along `name` have cut along `axis`."""
    return lax.all_gather(array, name, axis=axis, tiled=True)


def scatter(array: jax.Array, mesh: Mesh, name: str, axis: int) -> jax.Array:
    """The sum over those devices, of which each has its part along `axis`."""
    return lax.psum_scatter(array, name, scatter_dimension=axis, tiled=True)


def copy(array: jax.Array, mesh: Mesh, name: str) -> jax.Array:
    """What all devices along `name` have alike; its cotangents, which they have not, are added up."""
    return lax.pcast(array, name, to="varying")


def add(array: jax.Array, mesh: Mesh, name: str) -> jax.Array:
    """The sum over those devices; its cotangent, which they have alike, is that of each summand."""
    return lax.psum(array, name)


def data_parallel(layer: Layer, mesh: Mesh, name: str) -> Layer:
    """A layer for a batch that is cut along `name`: all have its params, whose gradients are added up.

    Graph: one all-reduce a layer, in the gradient."""
    meshes.check_name(mesh.shape, name)

    def complete(params: Any) -> Any:
        return jax.tree.map(lambda a: copy(a, mesh, name), params)

    return _of_complete(layer, complete)


def fully_sharded(layer: Layer, mesh: Mesh, name: str, axes: Any = 1) -> Layer:
    """A layer for a batch that is cut along `name`, and for params that are too: gathered for one layer at a time.

    axes: as for `shard_layers`, of the stack: an axis for all arrays, or a tree of axes, None for what is not cut.
    Graph: an all-gather for each array and layer, in the gradient a second one and a reduce-scatter."""
    meshes.check_name(mesh.shape, name)

    def complete(params: Any) -> Any:
        parts = [(a, cut.get(name)) for a, cut in _cuts(params, {name: axes})]
        full = [copy(a, mesh, name) if axis is None else gather(a, mesh, name, axis - 1) for a, axis in parts]
        return jax.tree.unflatten(jax.tree.structure(params), full)

    return _of_complete(layer, complete)


def tensor_parallel(layer: Layer, mesh: Mesh, name: str) -> Layer:
    """mlp or a transformer of which each device along `name` has a part of the hidden width and of the heads.

    Params are cut along `tensor_axes(name of the layer)`. Of a layer of one's own: one that takes `enter` and `leave`,
    which it calls on what goes into, and comes out of, the products that are cut.
    Graph: an all-reduce for each `leave`, in the gradient one for each `enter`."""
    meshes.check_name(mesh.shape, name)
    return partial(layer, enter=lambda x: copy(x, mesh, name), leave=lambda x: add(x, mesh, name))


def pipeline(
    layer: Layer, stacked_params: Any, microbatches: Any, loss: Callable[[Any], jax.Array], mesh: Mesh, name: str
) -> tuple[jax.Array, Any]:
    """Within `on_mesh`: each device along `name` has the layers of one stage, N / P of them, cut along axis 0.

    The mean of loss(carry) over microbatches [M, ...], and the gradient of this stage's params: M microbatches run
    through P stages in M + P - 1 ticks (GPipe), forwards and then backwards."""
    stage, P = lax.axis_index(name), mesh.shape[name]
    microbatches = copy(microbatches, mesh, name)
    M = jax.tree.leaves(microbatches)[0].shape[0]

    def mean_loss(params: Any) -> jax.Array:
        def tick(arriving: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            m = jnp.clip(t - stage, 0, M - 1)
            first = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, m, keepdims=False), microbatches)
            x = jax.tree.map(lambda a, b: jnp.where(stage == 0, a, b), first, arriving)
            is_busy = (t >= stage) & (t - stage < M)
            # cond, not where: a stage without a microbatch may make NaN of what it has instead
            y = lax.cond(is_busy, lambda: scan_layers(layer, params, x)[0], lambda: x)
            value = lax.cond(is_busy & (stage == P - 1), lambda: loss(y), lambda: jnp.zeros_like(loss(y)))
            return jax.tree.map(lambda a: lax.ppermute(a, name, [(i, i + 1) for i in range(P - 1)]), y), value

        arriving = jax.tree.map(lambda a: jnp.zeros_like(a[0]), microbatches)
        # checkpoint: the branches of a cond keep its params, once a tick
        _, values = lax.scan(jax.checkpoint(tick, prevent_cse=False), arriving, jnp.arange(M + P - 1))
        return values.sum() / M

    value, gradient = jax.value_and_grad(mean_loss)(stacked_params)
    return add(value, mesh, name), gradient


def _of_complete(layer: Layer, complete: Callable[[Any], Any]) -> Layer:
    """`layer` on complete(params), which the backward pass makes again: kept, they were the whole stack on each device.

    What products and sums over devices return is kept, and what is made of that is made again too."""

    def step(carry: Any, params: Any, *x: Any) -> tuple[Any, Any]:
        return layer(carry, complete(params), *x)

    return jax.checkpoint(step, prevent_cse=False, policy=_is_kept)


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated", "psum_invariant")


def _placed(of: str, tree: Any, mesh: Mesh, axes: Axes) -> Any:
    cuts = _cuts(tree, axes)
    meshes.check_cuts(as_leaf, of, tree, cuts, mesh.shape)
    placed = [jax.device_put(array, NamedSharding(mesh, _spec(cut))) for array, cut in cuts]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


def _cuts(tree: Any, axes: Axes) -> list[tuple[Any, dict[str, int]]]:
    """Each array of `tree`, and which of its axes are cut by which of the mesh."""

    def along(axis: Any) -> list[int | None]:
        spread = jax.tree.map(lambda axis, part: [axis] * len(jax.tree.leaves(part)), axis, tree, is_leaf=_is_none)
        return jax.tree.leaves(spread, is_leaf=_is_none)

    columns = [along(axis) for axis in axes.values()]
    rows = zip(*columns, strict=True) if columns else [()] * len(jax.tree.leaves(tree))
    named = [{n: axis for n, axis in zip(axes, row, strict=True) if axis is not None} for row in rows]
    return list(zip(jax.tree.leaves(tree), named, strict=True))


def _is_none(value: Any) -> bool:
    return value is None


def _spec(cut: dict[str, int]) -> PartitionSpec:
    names = {axis: name for name, axis in cut.items()}
    return PartitionSpec(*(names.get(axis) for axis in range(max(names, default=-1) + 1)))


def _specs(axes: Axes) -> Any:
    """Those of a tree, of which the axes say enough: all arrays alike, or the tree of one of them."""
    trees = [axis for axis in axes.values() if not (axis is None or isinstance(axis, int))]
    like = jax.tree.map(lambda _: 0, trees[0] if trees else 0, is_leaf=_is_none)
    specs = [_spec(cut) for _, cut in _cuts(like, axes)]
    return jax.tree.unflatten(jax.tree.structure(like), specs)
