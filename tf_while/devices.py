"""One stack on many devices, by TensorFlow's collective operations: they go into the layer, and so into the loop once.

    mesh = make_mesh(data=8)
    layer = fully_sharded(LAYERS["mlp"], mesh, "data")
    params = shard_layers(params, mesh, {"data": 1})
    stack = on_mesh(lambda params, x: scan_layers(layer, params, x)[0], mesh, ({"data": 1}, {"data": 0}), {"data": 0})

As jax_scan/devices.py. No array of TensorFlow lies on many devices: what is cut is `Parts`, the array of each device.
All devices call one graph, each from a thread of its own, so that derivatives are taken within `on_mesh`. For a
reduce-scatter, which a CPU has not, parts are exchanged and added up.
Several hosts: after `tf.distribute.MultiWorkerMirroredStrategy()` with TF_CONFIG, each runs its part of the same code.
Source: https://www.tensorflow.org/api_docs/python/tf/raw_ops/CollectiveReduceV2
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from reference import meshes
from tf_while.edges import all_devices, is_of_this_process
from tf_while.mesh_program import inside, together, traced
from tf_while.parts import Mesh, Parts, arrays_of, cut_up, cuts_of, joined, packed
from tf_while.stack import scan_layers
from tf_while.trees import Layer, filled, flatten, map_arrays

Axes = dict[str, Any]

_groups = itertools.count(1 << 20)  # numbers of groups; those of tf.distribute begin at 1


def start(size: int) -> None:
    """As `jax_scan.start`."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * size)


def make_mesh(**sizes: int) -> Mesh:
    """As `jax_scan.make_mesh`, of GPUs where there are any. A CPU is made many by
    `start`."""
    devices = all_devices()
    meshes.check_mesh(sizes, len(devices))
    mesh = Mesh(sizes, devices[: math.prod(sizes.values())], {name: [] for name in sizes}, {})
    keys: dict[Any, int] = {}
    for i, device in enumerate(mesh.devices):
        for name in sizes:  # a group is those that differ in their place along one axis
            group = name, *(place for other, place in mesh.places(i).items() if other != name)
            mesh.groups[name].append(keys[group] if group in keys else keys.setdefault(group, next(_groups)))
        if is_of_this_process(device):
            with tf.device(device):
                mesh.tokens[i] = tf.Variable(0.0)
    return mesh


def shard_layers(stacked_params: Any, mesh: Mesh, axes: Axes) -> Any:
    """As `jax_scan.shard_layers`; each array is `Parts`."""
    return packed(stacked_params, cut_up("stacked_params", stacked_params, mesh, axes))


def shard(tree: Any, mesh: Mesh, axes: Axes) -> Any:
    """As `jax_scan.shard`; each array is `Parts`."""
    return packed(tree, cut_up("tree", tree, mesh, axes))


def whole(tree: Any, mesh: Mesh, axes: Axes) -> Any:
    """As `jax_scan.whole`."""
    return packed(tree, [a.whole() if isinstance(a, Parts) else a for a in arrays_of(tree)])


def on_mesh(f: Callable[..., Any], mesh: Mesh, in_axes: tuple[Axes, ...], out_axes: Any) -> Callable[..., Any]:
    """As `jax_scan.on_mesh`, traced once for arguments of the same shapes. Not differentiable from outside.

    A result that is cut is `Parts`, which are taken as arguments too."""
    kept: dict[Any, Any] = {}

    def run(*args: Any) -> Any:
        program, arrays = traced(f, mesh, in_axes, args, kept)
        results = together(mesh, {i: partial(program, *own) for i, own in arrays.items()})
        if not isinstance(out_axes, tuple):
            return joined(results, mesh, out_axes)
        each = [{i: result[j] for i, result in results.items()} for j in range(len(out_axes))]
        return tuple(joined(of, mesh, axes) for of, axes in zip(each, out_axes, strict=True))

    run.traced = lambda *args: traced(f, mesh, in_axes, args, kept)  # type: ignore[attr-defined]
    return run


# The four collectives, in pairs of which each is the other's transpose: gather and scatter, copy and add.
def gather(array: tf.Tensor, mesh: Mesh, name: str, axis: int) -> tf.Tensor:
    @tf.custom_gradient
    def run(array: tf.Tensor) -> Any:
        part, dtype = _swapped(array, axis), array.dtype
        # of bfloat16 the bits: it is not among the dtypes of a gather
        part = tf.bitcast(part, tf.float16) if dtype == tf.bfloat16 else part
        whole = _collective(tf.raw_ops.CollectiveGatherV2, part, mesh, name)
        whole = tf.bitcast(whole, dtype) if dtype == tf.bfloat16 else whole
        size = part.shape[0]
        whole.set_shape([None if size is None else size * mesh.shape[name], *part.shape[1:]])
        return _swapped(whole, axis), lambda d: scatter(tf.convert_to_tensor(d), mesh, name, axis)

    return run(array)


def scatter(array: tf.Tensor, mesh: Mesh, name: str, axis: int) -> tf.Tensor:
    @tf.custom_gradient
    def run(array: tf.Tensor) -> Any:
        parts = tf.stack(tf.split(_swapped(array, axis), mesh.shape[name]))
        parts = _collective(tf.raw_ops.CollectiveAllToAllV2, parts, mesh, name)
        return _swapped(tf.reduce_sum(parts, 0), axis), lambda d: gather(d, mesh, name, axis)

    return run(array)


def copy(array: tf.Tensor, mesh: Mesh, name: str) -> tf.Tensor:
    @tf.custom_gradient
    def run(array: tf.Tensor) -> Any:
        # of a lookup, the cotangent of its table is rows and their indices
        return tf.identity(array), lambda d: add(tf.convert_to_tensor(d), mesh, name)

    return run(array)


def add(array: tf.Tensor, mesh: Mesh, name: str) -> tf.Tensor:
    @tf.custom_gradient
    def run(array: tf.Tensor) -> Any:
        reduce = partial(tf.raw_ops.CollectiveReduceV2, merge_op="Add", final_op="Id")
        return _collective(reduce, array, mesh, name), lambda d: copy(d, mesh, name)

    return run(array)


def data_parallel(layer: Layer, mesh: Mesh, name: str) -> Layer:
    """As `jax_scan.data_parallel`."""
    meshes.check_name(mesh.shape, name)

    def complete(params: Any) -> Any:
        return map_arrays(lambda a: copy(a, mesh, name), params)

    return _of_complete(layer, complete)


def fully_sharded(layer: Layer, mesh: Mesh, name: str, axes: Any = 1) -> Layer:
    """As `jax_scan.fully_sharded`. An all-to-all and a sum stand for the reduce-scatter."""
    meshes.check_name(mesh.shape, name)

    def complete(params: Any) -> Any:
        parts = [(a, cut.get(name)) for a, cut in cuts_of(params, {name: axes})]
        full = [copy(a, mesh, name) if axis is None else gather(a, mesh, name, axis - 1) for a, axis in parts]
        return flatten(params)[1](full)

    return _of_complete(layer, complete)


def tensor_parallel(layer: Layer, mesh: Mesh, name: str) -> Layer:
    """As `jax_scan.tensor_parallel`."""
    meshes.check_name(mesh.shape, name)
    return partial(layer, enter=lambda x: copy(x, mesh, name), leave=lambda x: add(x, mesh, name))


def pipeline(
    layer: Layer, stacked_params: Any, microbatches: Any, loss: Callable[[Any], tf.Tensor], mesh: Mesh, name: str
) -> tuple[tf.Tensor, Any]:
    """As `jax_scan.pipeline`. A CPU has no permute: a gather, of which the stage reads its neighbour's part, stands
    for it."""
    stage, P = inside(mesh, name).places[name], mesh.shape[name]
    M = flatten(microbatches)[0][0].shape[0]

    def mean_loss(params: Any) -> tf.Tensor:
        def tick(arriving: Any, t: tf.Tensor) -> tuple[Any, tf.Tensor]:
            m = tf.clip_by_value(t - stage, 0, M - 1)
            first = map_arrays(lambda a: a[m], microbatches)
            x = tf.nest.map_structure(lambda a, b: tf.where(tf.equal(stage, 0), a, b), first, arriving)
            is_busy = (t >= stage) & (t - stage < M)
            # cond, not where: a stage without a microbatch may make NaN of what it has instead
            y = tf.cond(is_busy, lambda: scan_layers(layer, params, x)[0], lambda: map_arrays(tf.identity, x))
            value = tf.cond(is_busy & tf.equal(stage, P - 1), lambda: loss(y), lambda: tf.zeros_like(loss(y)))
            return map_arrays(lambda a: gather(a[None], mesh, name, 0)[tf.maximum(stage - 1, 0)], y), value

        arriving = map_arrays(lambda a: tf.zeros_like(a[0]), microbatches)
        # remat: the branches of a cond keep its params, once a tick
        _, values = scan_layers(tick, tf.range(M + P - 1), arriving, remat=True)
        return tf.reduce_sum(values) / M

    arrays, pack = flatten(stacked_params)
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        value = mean_loss(pack(arrays))
    return add(value, mesh, name), pack(filled(tape.gradient(value, arrays), arrays))


def _of_complete(layer: Layer, complete: Callable[[Any], Any]) -> Layer:
    """`layer` on complete(params), which the backward pass gathers again, as residuals.py has it."""
    return lambda carry, params, *x: layer(carry, complete(params), *x)


def _collective(operation: Callable[..., tf.Tensor], array: tf.Tensor, mesh: Mesh, name: str) -> tf.Tensor:
    here = inside(mesh, name)
    return operation(
        input=array,
        group_size=mesh.shape[name],
        group_key=here.groups[name],
        instance_key=next(here.instances),
        ordering_token=[here.token],
        # and no timeout_seconds: for each collective TensorFlow would start a thread, which sleeps as long
    )


def _swapped(array: tf.Tensor, axis: int) -> tf.Tensor:
    """With that axis in front, and back again: collectives cut the first."""
    order = [*range(array.shape.rank)]
    order[0], order[axis] = order[axis], order[0]
    return tf.transpose(array, order) if axis else array
