"""Trees of arrays: how a framework's containers look to the checks of arguments, and how they are written in words.

A framework folder describes what it is given by `as_leaf`: an array as a `Leaf`, a container that it takes as a
`Branch`, anything else as None. None itself holds no array.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias


class Leaf(NamedTuple):
    """Shape and dtype of one array; `shape` is None where even the rank is unknown, a size is None where it is."""

    shape: tuple[int | None, ...] | None
    dtype: str


class Branch(NamedTuple):
    """One container. Another is like it if it has the same class, the same `static` and the same keys."""

    kind: Any
    form: str  # how its children are written: "{}" by keys, "[]" and "()" by place, "." by the names of fields
    children: tuple[tuple[Any, Any], ...]  # (key, child)
    static: Any = None


AsLeaf: TypeAlias = Callable[[Any], Leaf | Branch | None]


def branch(tree: Any) -> Branch | None:
    """That of a mapping, a tuple or a list. Keys in order, so that paths compare."""
    if isinstance(tree, Mapping):
        order = tuple(tree) if isinstance(tree, OrderedDict) else None
        return Branch(type(tree), "{}", tuple((key, tree[key]) for key in sorted(tree, key=str)), order)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return Branch(type(tree), ".", tuple(zip(tree._fields, tree, strict=True)))
    if isinstance(tree, (tuple, list)):
        return Branch(type(tree), "()" if isinstance(tree, tuple) else "[]", tuple(enumerate(tree)))
    return None


def leaves(path: str, tree: Any, as_leaf: AsLeaf = branch) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a tree; None holds no leaf."""
    found = None if tree is None else as_leaf(tree)
    if isinstance(found, Branch):
        for key, child in found.children:
            yield from leaves(f"{path}.{key}" if found.form == "." else f"{path}[{key!r}]", child, as_leaf)
    elif tree is not None:
        yield path, tree


def structure(as_leaf: AsLeaf, tree: Any, is_array: Callable[[Any], bool] = lambda leaf: True) -> Any:
    """What two trees of arrays of the same kind share: containers, keys, and a star for each leaf that is an array."""
    found = None if tree is None else as_leaf(tree)
    if isinstance(found, Branch):
        children = tuple((key, structure(as_leaf, child, is_array)) for key, child in found.children)
        return found.kind, found.static, children
    return None if tree is None or not is_array(found) else "*"


def described(as_leaf: AsLeaf, tree: Any, typed: Callable[[Leaf], str]) -> str:
    """A tree as Python writes it, with what `typed` says of each array."""
    found = None if tree is None else as_leaf(tree)
    if isinstance(found, Leaf):
        return typed(found)
    if found is None:
        return "None" if tree is None else type(tree).__name__
    before = {"{}": lambda key: f"{key!r}: ", ".": lambda key: f"{key}="}.get(found.form, lambda key: "")
    inside = ", ".join(before(key) + described(as_leaf, child, typed) for key, child in found.children)
    is_plain = found.kind in (dict, list, tuple)
    if found.form == "{}":
        inside = f"{{{inside}}}"
    elif found.form == "[]":
        inside = f"[{inside}]"
    elif is_plain:
        inside = f"({inside},)" if len(found.children) == 1 else f"({inside})"
    if is_plain:
        return inside
    return f"{found.kind.__name__}({inside})"
