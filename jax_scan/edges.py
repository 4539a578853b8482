"""Where arrays and programs enter and leave JAX."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from reference import arguments


def compile(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of the whole function."""
    return jax.jit(apply)


def set_back() -> None:
    """This folder sets nothing."""


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Within it nothing is found again that JAX keeps in memory."""
    jax.clear_caches()
    yield


def from_numpy(array: np.ndarray) -> jax.Array:
    """An array of the same shape, dtype and bytes, in memory of its own.

    Raises:
        TypeError: "array: expected dtype float32, got float64; ..." where JAX would cast: x64 is not enabled.
    """
    result = jnp.array(array, copy=True)
    if result.dtype != array.dtype:
        advice = 'jax.config.update("jax_enable_x64", True) keeps it'
        raise TypeError(f"array: expected dtype {result.dtype}, got {array.dtype}; {advice}")
    return result


def to_numpy(array: jax.Array) -> np.ndarray:
    """The NumPy array of the same shape, dtype and bytes, in memory of its own."""
    return np.array(array)


def as_leaf(value: Any) -> arguments.Leaf | arguments.Branch | None:
    """Shape and dtype of an array, or a container that JAX knows, for the checks of arguments; else None."""
    if isinstance(value, jax.Array):
        return arguments.Leaf(value.shape, value.dtype.name)
    children, structure = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
    node = structure.node_data()  # type: ignore[attr-defined]
    if node is None:  # a leaf to JAX
        return None
    kind, static = node
    named = tuple((_key(path[0]), child) for path, child in children)
    has_fields = any(isinstance(path[0], jax.tree_util.GetAttrKey) for path, _ in children)
    form = "{}" if issubclass(kind, dict) else "." if has_fields else "[]" if kind is list else "()"
    return arguments.Branch(kind, form, named, None if kind is dict else static)


def _key(key: Any) -> Any:
    """Of a child in its container, as JAX has it."""
    return next((getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)), key)


def wait(value: Any) -> Any:
    """Return `value` once every array in it has been computed."""
    return jax.block_until_ready(value)


def versions() -> dict[str, str]:
    """Package name -> version."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}


def settings() -> dict[str, str]:
    """What numbers depend on."""
    return {
        "device": jax.devices()[0].device_kind,
        "threads": str(os.cpu_count()),
        "x64": str(jax.config.read("jax_enable_x64")),
        "float32 matmul precision": "highest, in each layer",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
