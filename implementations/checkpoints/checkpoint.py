"""Parameters layer by layer to stacked ones, and back: what a checkpoint has to what `scan_layers` takes. NumPy alone.

    stack_params([layer_0, layer_1, ...])  ->  stacked_params                 and back: unstack_params
    stack_names({"h.0.w": w_0, "h.1.w": w_1, ...})  ->  {"h.w": stacked_w}    and back: unstack_names

Every dtype and every byte stays: nothing is cast, broadcast or dropped. Stacking makes one array for each stack and
fills it layer by layer; unstacking makes views, which share their memory with the stack. `checkpoint_files` does the
same to files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from implementations.checkpoints.layer_names import check_axis, layers_along, stack_axis, stack_plan, unstack_plan
from implementations.interface import Array, Tree
from reference.arguments import Leaf, branch, check_like, leaves


def stack_params(trees: Sequence[Tree], axis: int = 0) -> Tree:
    """One tree of stacked arrays, of a list of equal trees, one for each layer.

    Equivalent, leaf by leaf: `np.stack([leaf_0, leaf_1, ...], axis)`, of arrays of one shape and one dtype only.

    Args:
        trees: N nested dicts, tuples and lists of NumPy arrays [...]; None holds no array and stays
        axis: where the axis of layers goes, negative from the end; scans run over axis 0

    Returns:
        a tree like the first one, each array [N, ...] (for axis 0) and new; an array of shape () becomes [N]

    Raises:
        TypeError: "layer 1['w']: expected float32[4] (that of layer 0), got float64[4]",
            "layer 1['w']: expected float32[4] (that of layer 0), got no array" and the other way round,
            "layer 1: expected (*, *) (that of layer 0), got [*, *]",
            "layer 1['w']: expected a NumPy array, got float", "trees: expected a list of trees, one a layer, got dict"
        ValueError: "layer 1['w']: expected float32[4] (that of layer 0), got float32[8]",
            "trees: expected at least one layer, got none", "layer 0: expected at least one array, got none",
            "axis: expected -2 to 1 (for layer 0['b'] of shape (3,)), got 2"
    """
    check_axis(axis)
    if not isinstance(trees, (list, tuple)):
        raise TypeError(f"trees: expected a list of trees, one a layer, got {type(trees).__name__}")
    if not trees:
        raise ValueError("trees: expected at least one layer, got none")
    for i, tree in enumerate(trees):
        for path, array in leaves(f"layer {i}", tree):
            _leaf(path, array)
    first = list(leaves("layer 0", trees[0]))
    if not first:
        raise ValueError("layer 0: expected at least one array, got none")
    for i, tree in enumerate(trees):
        check_like(lambda one: branch(one) or _leaf("", one), f"layer {i}", tree, trees[0], "layer 0")
    for path, array in first:
        stack_axis(path, array.shape, axis)
    return _stacked("", trees, axis)


def unstack_params(stacked_params: Tree, axis: int = 0) -> list[Tree]:
    """One tree for each layer, of a tree of stacked arrays: the inverse of `stack_params`.

    Args:
        stacked_params: nested dicts, tuples and lists of NumPy arrays [N, ...] (for axis 0)
        axis: that of the layers, negative from the end

    Returns:
        N trees of arrays [...]. Each is a view: writing to it writes to the stack. N = 0 gives an empty list.

    Raises:
        TypeError: "stacked_params['w']: expected a NumPy array, got float"
        ValueError: "stacked_params['w']: expected 3 layers along axis 0 (that of stacked_params['b']), got 4",
            "stacked_params['w']: expected an axis 0 of layers, got shape ()",
            "stacked_params: expected at least one array, got none"
    """
    check_axis(axis)
    first, num_layers = "", 0
    for path, array in leaves("stacked_params", stacked_params):
        size = layers_along(path, _leaf(path, array).shape, axis)
        if first and size != num_layers:
            raise ValueError(f"{path}: expected {num_layers} layers along axis {axis} (that of {first}), got {size}")
        first, num_layers = first or path, size
    if not first:
        raise ValueError("stacked_params: expected at least one array, got none")
    return [_one_layer(stacked_params, i, axis) for i in range(num_layers)]


def stack_names(tensors: Mapping[str, Array], prefixes: Sequence[str] | None = None, axis: int = 0) -> dict[str, Array]:
    """A flat checkpoint with each `prefix.{i}.rest` of its layers i replaced by one stacked `prefix.rest`.

    Args:
        tensors: name -> NumPy array
        prefixes: the stacks, e.g. ["encoder.layer", "decoder.layer"]; None for all that are found: what stands before
            the first index of a name, as `layer_names` finds it
        axis: where the axis of layers goes, negative from the end

    Returns:
        name -> array; what has no layer index, or is not in all layers, is the array it was, under the name it had

    Raises:
        TypeError, ValueError: those of `layer_names.stack_plan`, which name the layer and the key, also where no name
            has a layer index;
            "tensors['h.0.w']: expected a NumPy array, got list"
    """
    plan = stack_plan(_leaves_of(tensors), prefixes, axis)
    stack_of = {member: stacked for stacked, members in plan.members.items() for member in members}
    result: dict[str, Array] = {}
    for name in tensors:
        stacked = stack_of.get(name)
        if stacked is None:
            result[name] = tensors[name]
        elif stacked not in result:
            result[stacked] = _fill([tensors[member] for member in plan.members[stacked]], axis)
    return result


def unstack_names(
    tensors: Mapping[str, Array], prefixes: Sequence[str], axis: int = 0, keep: Collection[str] = ()
) -> dict[str, Array]:
    """The inverse of `stack_names`: each stacked `prefix.rest` replaced by the `prefix.{i}.rest` of its layers, views.

    A stacked name has no index to be found by: every name that begins with one of `prefixes` (the longest counts;
    spelled as in `layer_names`) is a stack, but for those in `keep`, which were in no stack and are what they were.

    Raises:
        TypeError, ValueError: those of `layer_names.unstack_plan`; "tensors['h.w']: expected a NumPy array, got list"
    """
    plan = unstack_plan(_leaves_of(tensors), prefixes, axis, keep)
    result: dict[str, Array] = {}
    for name in tensors:
        members = plan.members.get(name)
        if members is None:
            result[name] = tensors[name]
        else:
            array = tensors[name]
            result |= {member: _one_layer(array, i, axis) for i, member in enumerate(members)}
    return result


def _leaf(name: str, value: Any) -> Leaf:
    # A masked array would lose its mask; an array of objects has no bytes of its own.
    if not isinstance(value, (np.ndarray, np.generic)) or isinstance(value, np.ma.MaskedArray) or value.dtype.hasobject:
        objects = isinstance(value, (np.ndarray, np.generic)) and value.dtype.hasobject
        got = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{name}: expected a NumPy array, got {'one of objects' if objects else got}")
    return Leaf(value.shape, str(value.dtype))


def _leaves_of(tensors: Mapping[str, Array]) -> dict[str, Leaf]:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors: expected a mapping of names to arrays, got {type(tensors).__name__}")
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"tensors: expected names that are strings, got {name!r}")
    return {name: _leaf(f"tensors[{name!r}]", tensors[name]) for name in tensors}


def _stacked(path: str, trees: Sequence[Tree], axis: int) -> Tree:
    first = trees[0]
    for i, tree in enumerate(trees):
        # Equal as trees, but a named tuple is no tuple. Arrays may be NumPy's scalars or views of any class.
        if isinstance(first, (dict, tuple, list)) and type(tree) is not type(first):
            expected, got = type(first).__name__, type(tree).__name__
            raise TypeError(f"layer {i}{path}: expected {expected} (that of layer 0), got {got}")
    if isinstance(first, dict):
        return {key: _stacked(f"{path}[{key!r}]", [tree[key] for tree in trees], axis) for key in first}
    if isinstance(first, (tuple, list)):
        parts = enumerate(zip(*trees, strict=True))
        return _sequence(first, [_stacked(f"{path}[{i}]", part, axis) for i, part in parts])
    return None if first is None else _fill(trees, axis)


def _fill(arrays: Sequence[Array], axis: int) -> Array:
    """The N arrays [...] of one shape and dtype as one [N, ...] (for axis 0): made once, each layer copied into it."""
    first = arrays[0]
    at = stack_axis("layer 0", first.shape, axis)
    stacked = np.empty((*first.shape[:at], len(arrays), *first.shape[at:]), first.dtype)
    for i, array in enumerate(arrays):
        np.moveaxis(stacked, at, 0)[i, ...] = array
    return stacked


def _one_layer(tree: Tree, i: int, axis: int) -> Tree:
    if isinstance(tree, dict):
        return {key: _one_layer(item, i, axis) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return _sequence(tree, [_one_layer(item, i, axis) for item in tree])
    # The dots: without them a layer of shape () would be a scalar, which is a copy.
    return None if tree is None else np.moveaxis(tree, axis, 0)[i, ...]


def _sequence(like: tuple[Any, ...] | list[Any], items: list[Any]) -> Tree:
    if hasattr(like, "_fields"):  # a named tuple
        return type(like)(*items)
    return tuple(items) if isinstance(like, tuple) else items
