"""From the modules that people have to a stack, and back: N trees to one, and callable pytrees to a layer.

    for module in modules:
        carry = module(carry)

A module is any pytree that can be called: a registered dataclass, an Equinox module. Its arrays are its parameters;
what else it holds must be the same in all modules, and is taken from the first.
Source: https://docs.jax.dev/en/latest/custom_pytrees.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import numpy as jnp

from jax_scan.edges import as_leaf
from jax_scan.loops import Layer
from jax_scan.stack import scan_layers
from reference import alike, arguments


def stack_layers(trees: Sequence[Any]) -> Any:
    """One tree of arrays [N, ...] of a list of N trees, one for each layer. Differentiable.

    Raises:
        TypeError, ValueError: naming the layer and the leaf that differs (words: reference/alike.py).
    """
    trees = alike.check_trees(as_leaf, "trees", trees)
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def unstack_layers(stacked_params: Any) -> list[Any]:
    """The N trees of a stack. Differentiable.

    Raises:
        TypeError, ValueError: those of stacked_params in `scan_layers`.
    """
    num_layers = arguments.check_scan(as_leaf, stacked_params, None, None)
    arrays, structure = jax.tree.flatten(stacked_params)
    split = [jnp.unstack(array) for array in arrays]  # once, not N times
    return [jax.tree.unflatten(structure, [parts[i] for parts in split]) for i in range(num_layers)]


def from_modules(modules: Sequence[Any]) -> tuple[Layer, Any]:
    """(layer, stacked_params) of N modules of one structure, for `scan_layers`.

    `layer(carry, params, *args, **kwargs)` is `module(carry, *args, **kwargs)` with these params: xs come second, and
    what all layers are given, a memory or a mask, by a lambda around it. What the module returns is the new carry; y is
    None. Of a module that changes arrays of its own when it is called, as those of Flax nnx do, y is a module of the
    new ones, with None for the others.

    stacked_params: a module of the same class, of arrays [N, ...]; None where there is no array.

    Raises:
        TypeError, ValueError: naming the module and what differs in it (words: reference/alike.py).
    Limits: an array that modules share is stacked like any other, for arrays have no identity in JAX: it would be
        trained apart. Close over it instead.
    """
    modules = alike.check_modules(modules, callable)
    trees = [_arrays(module) for module in modules]
    alike.check_trees(as_leaf, "modules", trees)
    for i, module in enumerate(modules):
        alike.check_alike("modules", i, _rest(module), _rest(modules[0]))
    return _layer(modules[0]), stack_layers(trees)


def _layer(module: Any) -> Layer:
    leaves, structure = jax.tree.flatten(module)
    return _Layer(structure, tuple(None if isinstance(leaf, jax.Array) else leaf for leaf in leaves))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A module without its arrays; no closure, for it is static in a pytree, where what is equal must compare equal."""

    structure: Any
    rest: tuple[Any, ...]  # None for an array

    def __call__(self, carry: Any, params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        arrays = iter(jax.tree.leaves(params))
        one = jax.tree.unflatten(self.structure, [next(arrays) if leaf is None else leaf for leaf in self.rest])
        output = one(carry, *args, **kwargs)
        changed = jax.tree.map(lambda new, old: None if new is old else new, _arrays(one), params)
        return output, changed if jax.tree.leaves(changed) else None


def to_modules(stacked_params: Any, modules: Sequence[Any]) -> list[Any]:
    """`modules` with the parameters of a stack: new ones, which keep all else that the old ones hold.

    Raises:
        TypeError, ValueError: naming what stacked_params have and modules have not (words: reference/alike.py).
    """
    modules = alike.check_modules(modules, callable)
    rows = unstack_layers(stacked_params)
    alike.check_rows(as_leaf, rows, [*map(_arrays, modules)])
    return [_with_arrays(module, row) for module, row in zip(modules, rows, strict=True)]


def scanned(modules: Sequence[Any], **options: Any) -> Scanned:
    """N modules as one, in their place: `scanned(modules)(carry, *args, **kwargs)` gives what the last of them returns.

    A pytree whose leaves are the stacked parameters: `jax.grad` and optimizers take it as it is. options: those of
    `scan_layers`. xs, where there are any, are given by name, args and kwargs to all layers.
    """
    layer, stacked_params = from_modules(modules)
    return Scanned(stacked_params, layer, tuple(options.items()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays do not compare
class Scanned:
    """What `scanned` returns."""

    stacked_params: Any
    layer: Layer = dataclasses.field(metadata={"static": True})
    options: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, carry: Any, *args: Any, xs: Any = None, **kwargs: Any) -> Any:
        def layer(carry: Any, params: Any, *x: Any) -> tuple[Any, Any]:
            return self.layer(carry, params, *x, *args, **kwargs)

        carry, state = scan_layers(layer, self.stacked_params, carry, xs, **dict(self.options))
        if state is not None:
            raise alike.changes_itself(type(state).__name__)
        return carry


def _arrays(module: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else None, module)


def _rest(module: Any) -> dict[str, Any]:
    """Leaves that are no arrays, functions and rates, by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module)
    named = {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if not isinstance(leaf, jax.Array)}


def _with_arrays(module: Any, arrays: Any) -> Any:
    """`module` with `arrays` in the place of its own."""
    leaves, structure = jax.tree.flatten(module)
    rest = iter(jax.tree.leaves(arrays))
    return jax.tree.unflatten(structure, [next(rest) if isinstance(leaf, jax.Array) else leaf for leaf in leaves])
