"""What a function is made of: equal for two that do the same, so that programs are kept by what they do.

A fresh lambda that says the same again finds its program; a number that it reads and that has changed does not.

Followed are code, defaults, closure cells, the globals that are read, the parts of a partial, the object of a bound
method, attributes of objects of the user's own classes, and those classes; dicts, lists, tuples and sets; NumPy arrays
by value. Everything else (arrays of a framework, modules, objects of installed packages) is taken by identity, and what
is within it follows the framework's own rule for its compiled functions. No framework is imported here.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

OWN = ("reference", "jax_scan", "torch_compile", "tf_while")  # what these read does not change
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
BY_VALUE = (bool, int, str, bytes, type(None), type(Ellipsis), range, np.dtype)
OPEN = (types.SimpleNamespace, argparse.Namespace)  # of the standard library, and nothing but their attributes


class Same:
    """An object taken by identity, and kept, so that no other gets its address."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def made_of(value: Any) -> Hashable:
    """What `value`, a function or what it reads, is made of now: equal for what does the same."""
    return _parts(value, {})


def _parts(value: Any, seen: dict[int, tuple[int, Any]]) -> Hashable:
    if isinstance(value, BY_VALUE):
        return type(value), value
    if isinstance(value, (float, complex)):
        return type(value), repr(value)  # NaN equals NaN, and 0.0 is not -0.0
    if id(value) in seen:
        return "seen", seen[id(value)][0]
    seen[id(value)] = len(seen), value  # kept, so that no other gets its address meanwhile
    follow = functools.partial(_parts, seen=seen)

    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return type(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, types.FunctionType):
        return _function(value, follow)
    if isinstance(value, types.MethodType):
        return types.MethodType, follow(value.__func__), follow(value.__self__)
    if isinstance(value, functools.partial):
        return type(value), follow(value.func), follow(value.args), follow(value.keywords)
    if isinstance(value, (tuple, list)):
        return type(value), *map(follow, value)
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(follow, value))
    if isinstance(value, Mapping):
        return type(value), *((follow(key), follow(item)) for key, item in value.items())
    if isinstance(value, (property, staticmethod, classmethod)):
        return type(value), follow(value.fget if isinstance(value, property) else value.__func__)
    if inspect.isclass(value):
        return Same(value), *(() if _is_library(value) else _attributes(vars(value), follow))
    if isinstance(value, OPEN) or not _is_library(type(value)):
        slots = [s for c in type(value).__mro__ for s in getattr(c, "__slots__", ()) if hasattr(value, s)]
        attributes = {**getattr(value, "__dict__", {}), **{s: getattr(value, s) for s in slots}}
        return follow(type(value)), *(_attributes(attributes, follow) if attributes else (Same(value),))
    return Same(value)


def _function(function: types.FunctionType, follow: Callable[[Any], Hashable]) -> Hashable:
    cells = [_content(cell) for cell in function.__closure__ or ()]
    read = {} if _is_library(function) else _globals(function)
    return (
        function.__code__,
        *map(follow, (function.__defaults__, function.__kwdefaults__)),
        *map(follow, cells),
        *((name, follow(item)) for name, item in read.items()),
    )


def _attributes(attributes: Mapping[str, Any], follow: Callable[[Any], Hashable]) -> tuple[Hashable, ...]:
    return tuple((name, follow(item)) for name, item in attributes.items() if not _is_private(name))


def _is_private(name: str) -> bool:
    """Python's own, of which only __call__ is the user's to read."""
    return name.startswith("__") and name.endswith("__") and name != "__call__"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The globals that `function`, and functions within it, can read."""
    return {n: function.__globals__[n] for n in _names(function.__code__) if n in function.__globals__}


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    within = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for c in within for name in _names(c)))))


def _is_library(value: Any) -> bool:
    """Whether a function or a class is of Python, of an installed package or of this repository: it stays as it is."""
    if value.__module__ and value.__module__.split(".")[0] in OWN:
        return True
    if isinstance(value, types.FunctionType):
        return value.__code__.co_filename.startswith(INSTALLED)
    module = sys.modules.get(value.__module__)
    if module is None or value.__module__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or file.startswith(INSTALLED)
