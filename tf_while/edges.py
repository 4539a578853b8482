"""Where arrays and programs enter and leave TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from reference import arguments
from tf_while import convolution
from tf_while.private import (
    Status,
    Tensor,
    autograph_artifact,
    control_status_ctx,
    data_structures,
    differentiate_by,
    in_save_context,
    in_xla,
    leave_alone,
    op_def_registry,
    tf_convert,
    xla_dynamic_update_slice,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def beside_autograph(function: Function) -> Function:
    """`function`, of a layer and maybe a loss, through which AutoGraph does not go where a `tf.function` calls it: that
    takes seconds. It goes through the layer and the loss."""
    as_it_is, names = tf.autograph.experimental.do_not_convert(function), [*inspect.signature(function).parameters]

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        around = control_status_ctx()

        def read(name: str, value: Any) -> Any:
            if around.status != Status.ENABLED or name not in ("layer", "loss") or not callable(value):
                return value
            converted = tf_convert(value, around)

            def read_here(*args: Any) -> Any:
                with around:
                    return converted(*args)

            return read_here

        args = (*map(read, names, args), *args[len(names) :])
        return as_it_is(*args, **{name: read(name, value) for name, value in options.items()})

    # a `tf.function` that is given it as an argument would take what it wraps
    run.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
    del run.__wrapped__
    return autograph_artifact(run)


def compile(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.function` of the whole function, compiled by XLA."""
    return tf.function(apply, jit_compile=True, autograph=False)


@contextlib.contextmanager
def fenced() -> Iterator[None]:
    """Operations made in here, also in branches and loops within, are left alone where TensorFlow spoils them.

    Its graph optimiser rewrites c + c + b to a number of copies of c, of a shape that it does not know within a loop or
    a branch: the result is an empty float32 array. Sums that are marked stay as they are; XLA never rewrites them. Sums
    of constants are not marked: the derivative of x ** 2 has 2 - 1 in it, and is ten times slower where that stays.
    """
    if tf.executing_eagerly():
        yield
        return

    def mark(operation: tf.Operation) -> str:
        if operation.type in ("Add", "AddV2", "AddN", "Sub") and not all(map(_is_constant, operation.inputs)):
            leave_alone(operation)
        if operation.type == "XlaDynamicUpdateSlice":
            differentiate_by(operation, updated)
        if convolution.is_slow_in_a_loop(operation) and compiled_by_xla():
            differentiate_by(operation, convolution.gradient)
        return operation.device

    # a device function, because it is the one thing that graphs within this one inherit
    with tf.compat.v1.device(mark):
        yield


def updated(update: tf.Operation, dy: tf.Tensor) -> list[tf.Tensor | None]:
    """The gradient of what XLA writes a slice by: TensorFlow, whose gradient of a slice it is, has none."""
    _, piece, begin = update.inputs
    return [xla_dynamic_update_slice(dy, tf.zeros_like(piece), begin), tf.slice(dy, begin, tf.shape(piece)), None]


def _is_constant(a: tf.Tensor) -> bool:
    """Whether it is a number that is known now, also where it is read from the graph around."""
    while a.op.type == "Placeholder":
        around = [outer for outer, inner in getattr(a.graph, "captures", ()) if inner is a]
        if not around or not tf.is_symbolic_tensor(around[0]):
            return False
        a = around[0]
    return a.shape.rank == 0 and tf.get_static_value(a) is not None


def being_saved() -> bool:
    """Whether the graph that is being built is a gradient for a SavedModel, which holds no lists of TensorFlow's."""
    return in_save_context()


def compiled_by_xla() -> bool:
    """Whether the graph that is being built is part of a `tf.function(jit_compile=True)`."""
    return in_xla(tf.compat.v1.get_default_graph())


def captured_within(captures: list[Any]) -> list[tuple[Any, Any]]:
    """(tensor, what stands for it in the graph that is being built) for tensors of elsewhere."""
    graph = tf.compat.v1.get_default_graph()
    return [(c, graph.capture(c)) for c in captures if not tf.is_symbolic_tensor(c) or c.graph is not graph]


@contextlib.contextmanager
def reading(within: list[tuple[Any, Any]]) -> Iterator[None]:
    """Read tensors of graphs far around as the forward pass did, through the branch of a tf.cond in which it was built.

    The gradient of a branch may read the branch and the graph right around itself, and nothing beyond.
    """
    graph = tf.compat.v1.get_default_graph()
    places, capture = {id(c): place for c, place in within}, graph.capture
    graph.capture = lambda tensor, *args, **kwargs: capture(places.get(id(tensor), tensor), *args, **kwargs)
    try:
        yield
    finally:
        del graph.capture
        if not inspect.ismethod(capture):  # one derivative is taken within another
            graph.capture = capture


# What TensorFlow calls stateful and what may run again all the same: it reads, prints, asserts or runs a function,
# whose operations are looked at by themselves. What a tf.py_function does in Python is not seen.
RUNS_AGAIN = (
    *("ReadVariableOp", "VarHandleOp", "VariableShape", "VarIsInitializedOp", "ResourceGather", "ResourceGatherNd"),
    *("LookupTableFindV2", "LookupTableSizeV2", "Placeholder", "Empty", "IsTensorFloat32Enabled"),
    *("Assert", "CheckNumerics", "CheckNumericsV2", "DebugIdentityV2", "DebugIdentityV3", "Print", "PrintV2"),
    *("If", "Case", "While", "StatefulPartitionedCall", "PyFunc", "EagerPyFunc", "XlaCallModule"),
    *("CollectiveReduceV2", "CollectiveGatherV2", "CollectiveAllToAllV2"),  # on all devices alike
)


def operations(graph: tf.Graph) -> Iterator[Any]:
    """The operations of `graph`, and of branches, loops and functions within."""
    definition = graph.as_graph_def()
    yield from definition.node
    yield from (node for function in definition.library.function for node in function.node_def)


def stateful(graph: tf.Graph) -> Iterator[str]:
    """Those that draw random numbers or write state."""
    for operation in (node.op for node in operations(graph)):
        known = op_def_registry.get(operation)
        if known is not None and known.is_stateful and operation not in RUNS_AGAIN:
            yield operation


def writes_where_it_reads(node: Any) -> bool:
    """Whether it is a second derivative, or forward mode, of a max pool whose result has the shape of what it pools:
    in a graph TensorFlow 2.21 makes one in the memory of the other, of which it still reads."""
    alike = node.attr["padding"].s == b"SAME" or {*node.attr["ksize"].list.i} == {1}
    return node.op in ("MaxPoolGradGrad", "MaxPool3DGradGrad") and alike and {*node.attr["strides"].list.i} == {1}


def all_devices() -> list[str]:
    """The names of the GPUs, or else CPUs, of all processes, in one order for all: each lists its own first."""

    def place(device: str) -> tuple[int, int]:
        of = tf.DeviceSpec.from_string(device)
        return of.task or 0, of.device_index

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return sorted((device.name for device in devices), key=place)


def is_of_this_process(device: str) -> bool:
    """Whether a device by that name is one of this process, not of another host."""
    of, here = tf.DeviceSpec.from_string(device), tf.DeviceSpec.from_string(tf.constant(0).device)
    return of.job in (None, here.job) and of.task in (None, here.task)


def set_back() -> None:
    """This folder sets nothing."""


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Within it nothing is found again that was compiled before: TensorFlow keeps nothing."""
    yield


def from_numpy(array: np.ndarray) -> tf.Tensor:
    """A tensor of the same shape, dtype and bytes, in memory of its own."""
    return tf.constant(array.copy())


def to_numpy(array: tf.Tensor) -> np.ndarray:
    """The NumPy array of the same shape, dtype and bytes, in memory of its own."""
    return np.array(array.numpy())  # of a single number .numpy() is no array


def as_leaf(value: Any) -> arguments.Leaf | arguments.Branch | None:
    """Shape and dtype of an array, or a container that tf.nest knows, for the checks of arguments; else None.

    A variable is an array, Keras's too; what tf.Module makes of a dict or a list that it is given is one still."""
    if isinstance(value, Tensor):
        shape = tf.TensorShape(value.shape)
        return arguments.Leaf(None if shape.rank is None else tuple(shape), tf.as_dtype(value.dtype).name)
    found = arguments.branch(value)
    if found is None or found.kind.__module__ != data_structures.__name__:
        return found
    return found._replace(kind=dict if found.form == "{}" else list)


def wait(value: Any) -> Any:
    """Return `value` once every array in it has been computed."""
    if tf.config.list_physical_devices("GPU"):
        tf.test.experimental.sync_devices()
    return value


def versions() -> dict[str, str]:
    """Package name -> version."""
    return {name: importlib.metadata.version(name) for name in ("tensorflow",)}


def settings() -> dict[str, str]:
    """What numbers depend on."""
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled() and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "device": tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu") if gpus else "cpu",
        "threads": str(tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()),
        "TF32": str(tf32),
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
