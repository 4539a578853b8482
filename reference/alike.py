"""What must be alike in the layers of a list, trees or modules, before they are one stack, and the words of errors.

Every message names the layer and the leaf: "modules[1].norm.eps: expected 1e-05 (that of modules[0]), got 1e-06".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reference.arguments import check_like, typed
from reference.containers import AsLeaf, Leaf, described
from reference.made_of import made_of

_NOTHING = object()


def has_losses(name: str) -> TypeError:
    """The error for a module that adds to the loss by itself: in a loop that would be lost."""
    return TypeError(f"modules: expected no losses of their own, got those of {name}; add them to the loss outside")


def saved_whole(names: Sequence[str]) -> NotImplementedError:
    """The error for a stack that is to be saved whole, whose modules share variables: each would load its own."""
    return NotImplementedError(
        f"scanned: expected no variables of all modules in a model that is saved whole, got {', '.join(names)}; "
        "save its weights, with `save_weights`"
    )


def changes_itself(name: str) -> TypeError:
    """The error for a module that changes its arrays, where the one that stands for all cannot be changed."""
    return TypeError(f"modules: expected ones that change no array of theirs, got {name}; from_modules has it in ys")


def held_apart(path: str) -> TypeError:
    """The error for a parameter that a module has in a list too: there it would be the first module's for all."""
    return TypeError(f"{path}: expected parameters and buffers by their names alone, got one of them in a container")


def compiled_before(path: str, kind: str) -> TypeError:
    """The error for a module that is a program already, of its own arrays."""
    return TypeError(f"{path}: expected a module that is not compiled, got {kind}; compile the stack")


def has_hooks(path: str) -> TypeError:
    """The error for a parameter whose gradient a hook waits for: that of a stack would not come to it."""
    return TypeError(f"{path}: expected a parameter without hooks, got one; register it on the stack")


def not_built(name: str, kind: str) -> ValueError:
    """The error for a module that has no parameters before it is called."""
    return ValueError(f"{name}: expected a layer that has been built, got {kind} without parameters; call it once")


def not_on_tensorflow(backend: str) -> RuntimeError:
    """The error for Keras running on another framework."""
    return RuntimeError(f"keras: expected the backend tensorflow, got {backend}; set KERAS_BACKEND before importing it")


def check_trees(as_leaf: AsLeaf, name: str, trees: Any) -> list[Any]:
    """Check that the trees of layers can be stacked: a list of at least one, all like the first.

    Raises:
        TypeError: "trees: expected a list of layers, got float32[3, 4]", and those of `check_like`
        ValueError: "trees: expected at least one layer, got none",
            "trees[2]['w']: expected float32[4] (that of trees[0]), got float32[8]"
    """
    if isinstance(as_leaf(trees), Leaf) or isinstance(trees, (Mapping, str)) or not hasattr(trees, "__iter__"):
        raise TypeError(f"{name}: expected a list of layers, got {described(as_leaf, trees, typed)}")
    listed = list(trees)
    if not listed:
        raise ValueError(f"{name}: expected at least one layer, got none")
    for i, tree in enumerate(listed):
        check_like(as_leaf, f"{name}[{i}]", tree, listed[0], f"{name}[0]")
    return listed


def check_modules(modules: Any, is_module: Callable[[Any], bool]) -> list[Any]:
    """Check that `modules` is a list of modules, at least one.

    Raises:
        TypeError: "modules: expected a list of layers, got Linear",
            "modules[1]: expected a module of this framework, got int"
        ValueError: "modules: expected at least one layer, got none"
    """
    if isinstance(modules, (Mapping, str)) or not hasattr(modules, "__iter__"):
        raise TypeError(f"modules: expected a list of layers, got {type(modules).__name__}")
    listed = list(modules)
    if not listed:
        raise ValueError("modules: expected at least one layer, got none")
    for i, module in enumerate(listed):
        if not is_module(module):
            raise TypeError(f"modules[{i}]: expected a module of this framework, got {type(module).__name__}")
    return listed


def check_alike(name: str, i: int, found: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Check what module i holds beside arrays, and all layers would take from the first: classes, rates, functions.

    Raises:
        TypeError: "modules[1].norm: expected LayerNorm (that of modules[0]), got nothing"
        ValueError: "modules[1].dropout.p: expected 0.1 (that of modules[0]), got 0.2"
    """
    for path in dict.fromkeys((*first, *found)):
        values = [part.get(path, _NOTHING) for part in (first, found)]
        if _same(*values):
            continue
        shown = ["nothing" if v is _NOTHING else v.__name__ if isinstance(v, type) else repr(v) for v in values]
        kind = TypeError if any(v is _NOTHING or isinstance(v, type) for v in values) else ValueError
        where = f"{name}[{i}].{path}" if path else f"{name}[{i}]"
        raise kind(f"{where}: expected {shown[0]} (that of {name}[0]), got {shown[1]}")


def _same(a: Any, b: Any) -> bool:
    if a is b or (type(a) is type(b) and made_of(a) == made_of(b)):
        return True
    with contextlib.suppress(Exception):  # of containers of arrays, or the user's own
        return type(a) is type(b) and (a == b) is True
    return False


def which_shared(trees: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of those arrays that all modules have in common, each one object.

    Raises:
        ValueError: "modules[2]['w']: expected an array of its own, or one of all modules, got that of modules[0]"
    """
    shared = set()
    for name in trees[0]:
        first = [next(i for i, other in enumerate(trees) if other[name] is tree[name]) for tree in trees]
        if len(trees) > 1 and not any(first):
            shared.add(name)
        elif i := next((i for i, j in enumerate(first) if i != j), 0):
            expected = "an array of its own, or one of all modules"
            raise ValueError(f"modules[{i}][{name!r}]: expected {expected}, got that of modules[{first[i]}]")
    return shared


def check_rows(as_leaf: AsLeaf, rows: list[Any], trees: list[Any]) -> None:
    """Check that the layers of a stack, `rows`, are what modules hold, `trees`.

    Raises:
        ValueError: "stacked_params: expected a leading axis of 3 (that of modules), got 4"
        TypeError, ValueError: those of `check_like`, for the first layer
    """
    if len(rows) != len(trees):
        raise ValueError(f"stacked_params: expected a leading axis of {len(trees)} (that of modules), got {len(rows)}")
    check_like(as_leaf, "unstack_layers(stacked_params)[0]", rows[0], trees[0], "modules[0]")
