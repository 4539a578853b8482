"""Where arrays and programs enter and leave JAX."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from reference import arguments, made_of


def compile(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of the whole function."""
    return jax.jit(apply)


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


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of a layer and trees of arrays: called as it stands, a program kept by what the layer is made of.

    An equal layer, a fresh lambda too, finds its program; what it reads and has changed since makes another. Within a
    program of the user's (`jax.jit`, a loop) it is a part of that one, and nothing is kept; so too under
    `jax.disable_jit`, where a layer closes over what is being differentiated or batched, and for wrong arguments.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:  # Python's own words
            return function(*args, **options)
        trees = {name: tree for name, tree in given.items() if name in TREES}
        rest = {name: value for name, value in given.items() if name not in TREES}
        is_within_a_program = isinstance(jnp.zeros(()), jax.core.Tracer)  # where an operation on constants is staged
        if is_within_a_program or jax.config.jax_disable_jit or not _are_arrays(trees):  # type: ignore[attr-defined]
            return function(*args, **options)
        parts = made_of.made_of((function, rest))
        beside = jax.tree.leaves(made_of.identities(parts))
        if any(isinstance(value, jax.core.Tracer) for value in beside):
            return function(*args, **options)
        program = _programs.pop(parts, None) or _new_program(function.__name__)
        before, _call.now = getattr(_call, "now", None), _Call(function, rest, _arrays(beside))
        try:
            result = program(_call.now.beside, trees)
            # Tracing may have changed what the layer reads: it counts its calls. The program is found under both.
            for key in (parts, made_of.made_of((function, rest))) if _call.now.is_traced else (parts,):
                _programs[key] = program
        finally:
            _call.now = before
        while len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
        return result

    return run


PROGRAMS = 128  # those used last
TREES = ("stacked_params", "init", "xs", "tangents", "cotangents")
_programs: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()
_call = threading.local()


class _Call:
    """What a program is to do when it is traced. A program itself holds no layer, nor what that closes over."""

    def __init__(self, function: Callable[..., Any], rest: dict[str, Any], beside: list[jax.Array]) -> None:
        self.function, self.rest, self.beside, self.is_traced = function, rest, beside, False


def _new_program(name: str) -> Callable[..., Any]:
    def program(beside: list[jax.Array], trees: dict[str, Any]) -> Any:
        call: _Call = _call.now
        call.is_traced = True
        run, closed_over = hoist(lambda trees: call.function(**trees, **_spread(call.rest)), trees)
        # An array that the layer closes over is an argument: written out into the program it would be kept, and twice.
        # NumPy's are copied: as long as JAX holds what it made of one, it takes that for it, whatever is in it now.
        arguments = {id(array): argument for array, argument in zip(call.beside, beside, strict=True)}
        copied = [array.copy() if isinstance(array, np.ndarray) else array for array in closed_over]
        return run([arguments.get(id(array), copy) for array, copy in zip(closed_over, copied, strict=True)], trees)

    program.__name__ = name  # as which a profile shows it
    return jax.jit(program)


def hoist(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], list[Any]]:
    """`run(closed_over, *args)`, which is `function(*args)`, and the arrays and tracers that `function` closes over."""
    # A function of its own: JAX finds again what it has traced for a function, whatever that reads now.
    jaxpr, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)

    def run(closed_over: list[Any], *args: Any) -> Any:
        found = jax.core.eval_jaxpr(jaxpr.jaxpr, closed_over, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run, jaxpr.consts


def _spread(rest: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in rest.items() if name != "options"}, **rest.get("options", {})}


def _arrays(values: list[Any]) -> list[jax.Array]:
    return [value for value in values if isinstance(value, jax.Array)]


def _are_arrays(tree: Any) -> bool:
    return all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
