"""What is compiled and kept, where a stack is called as it stands, by what its layer is made of.

`jax.jit` keeps programs by the identity of the layer, and what that reads as it was when the program was traced: here
an equal layer, a fresh lambda too, finds its program, and a value that has changed since makes another.
Source: https://docs.jax.dev/en/latest/jit-compilation.html
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from reference import made_of

TREES = ("stacked_params", "init", "xs", "tangents", "cotangents")
_programs = made_of.Kept(128)
_call = threading.local()


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
        is_within_a_program = isinstance(lax.iota("int32", 1), jax.core.Tracer)  # there an operation is staged
        if is_within_a_program or jax.config.jax_disable_jit or not _are_arrays(trees):  # type: ignore[attr-defined]
            return function(*args, **options)
        parts = made_of.made_of((function, rest))
        beside = jax.tree.leaves(made_of.identities(parts))
        if any(isinstance(value, jax.core.Tracer) for value in beside):
            return function(*args, **options)
        program = _programs.get(parts) or _new_program(function.__name__)
        before, _call.now = getattr(_call, "now", None), _Call(function, rest, _arrays(beside))
        try:
            result = program(_call.now.beside, trees)
            # Tracing may have changed what the layer reads: it counts its calls. The program is found under both.
            for key in (parts, made_of.made_of((function, rest))) if _call.now.is_traced else (parts,):
                _programs[key] = program
        finally:
            _call.now = before
        return result

    return run


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
