"""Where arrays and programs enter and leave TensorFlow."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from reference import arguments


def compile(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.function` of the whole function, compiled by XLA."""
    return tf.function(apply, jit_compile=True, autograph=False)


def from_numpy(array: np.ndarray) -> tf.Tensor:
    """A tensor of the same shape, dtype and bytes, in memory of its own."""
    return tf.constant(array.copy())


def to_numpy(array: tf.Tensor) -> np.ndarray:
    """The NumPy array of the same shape, dtype and bytes, in memory of its own."""
    return np.array(array.numpy())  # of a single number .numpy() is no array


def as_leaf(value: Any) -> arguments.Leaf | None:
    """Shape and dtype, for the checks of arguments; None for what is no array of TensorFlow."""
    if not isinstance(value, (tf.Tensor, tf.Variable)):
        return None
    return arguments.Leaf(None if value.shape.rank is None else tuple(value.shape), value.dtype.name)


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
