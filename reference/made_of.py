"""What a function is made of: equal for two that do the same, so that programs are kept by what they do.

A fresh lambda that says the same again finds its program; a number that it reads and that has changed does not.

Followed are code, defaults, closure cells, the globals that are read, the parts of a partial, the object of a bound
method; attributes of objects of the user's own classes, those classes, and what is read of the user's own modules;
dicts, lists, tuples and sets; NumPy arrays by value. Everything else (arrays of a framework, objects of installed
packages) is taken by identity, and what is within it follows the framework's own rule for its compiled functions.

The result is flat, so nothing is too deep, and keeps alive nothing that can be referred to weakly. No framework is
imported here.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import contextvars
import dis
import functools
import hashlib
import inspect
import numbers
import os
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OWN = tuple(os.path.join(_ROOT, name) + os.sep for name in ("reference", "jax_scan", "torch_compile", "tf_while"))
INSTALLED = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
PLAIN = (bool, int, str, bytes, type(None), type(Ellipsis), range, types.CodeType)
OPEN = (types.SimpleNamespace, argparse.Namespace, threading.local)  # of Python, and nothing but their attributes
BUFFERS = (bytearray, memoryview)
LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
IN_SIGHT = ("builtins", "abc", "typing", "enum", "collections.abc")  # classes of theirs hide nothing

Head = tuple[Any, ...]  # all of it hashable
Children = Iterable[tuple[Any, tuple[str, ...]]]  # each with the names by which the modules in it are read


class Kept(collections.OrderedDict[Any, Any]):
    """What is kept by what something is made of: of that, what was set last, at most so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.most:
            self.popitem(last=False)


class Same:
    """An object taken by identity: equal only while it lives, so that no other is taken for it at its address."""

    def __init__(self, value: Any) -> None:
        try:
            self.refer = weakref.ref(value)
        except TypeError:  # then it is kept
            self.refer = lambda: value  # type: ignore[assignment]
        self.address = id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and (value := self.refer()) is not None and value is other.refer()

    def __hash__(self) -> int:
        return self.address


def made_of(value: Any) -> tuple[Hashable, ...]:
    """What `value`, a function or what it reads, is made of now: equal for what does the same."""
    parts: list[Any] = []
    seen: dict[Any, tuple[int, Any]] = {}
    todo: list[tuple[Any, tuple[str, ...]]] = [(value, ())]
    while todo:
        value, names = todo.pop()
        kind = type(value)
        if kind in PLAIN:
            parts += [kind, value]
            continue
        place = (id(value), names) if kind is types.ModuleType else id(value)
        if place in seen:
            parts += "seen", seen[place][0]
            continue
        seen[place] = len(seen), value  # kept meanwhile, so that no other gets its address
        head, children = _opened(value, names)
        children = list(children)
        parts += *head, len(children)
        todo += reversed(children)
    return tuple(parts)


def identities(parts: tuple[Hashable, ...]) -> list[Any]:
    """What `made_of` has taken by identity, as far as it still lives."""
    return [part.refer() for part in parts if isinstance(part, Same)]


def _opened(value: Any, names: tuple[str, ...]) -> tuple[Head, Children]:
    """How `value` begins, and what is within it."""
    kind = type(value)
    if isinstance(value, types.ModuleType):
        return _module(value, names)
    if isinstance(value, types.FunctionType):
        return _function(value)
    if inspect.isclass(value):
        return (Same(value),), [] if _is_library(value) else _of(names, *_members(value))
    if isinstance(value, types.MethodType):
        return (kind,), _of(names, value.__func__, value.__self__)
    if isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        return (kind, value.__name__), _of(names, value.__self__)
    if isinstance(value, (property, staticmethod, classmethod)):
        return (kind,), _of(names, value.fget if isinstance(value, property) else value.__func__)
    if isinstance(value, functools.partial):
        return (kind,), _of(names, value.func, value.args, value.keywords, vars(value))
    if isinstance(value, contextvars.ContextVar):
        return (kind,), _of(names, value.get(None))
    if isinstance(value, weakref.ref):
        return (kind,), _of(names, value())

    head, children = _content(value)
    if isinstance(value, OPEN) or not _is_library(kind):
        hides = any(c.__module__ not in IN_SIGHT and _is_library(c) for c in kind.__mro__)
        identity = (Same(value),) if hides and not head and not isinstance(value, OPEN) else ()
        return (*head, *identity, *_counts(children)), _of(names, *children, kind, _attributes(value))
    if head:
        return (kind, *head), _of(names, *children)
    # Of an installed package: by identity, and with what it wraps: jit, custom_jvp, lru_cache.
    beside = getattr(value, "__dict__", {}).values()
    return (Same(value),), _of(names, *(b for b in beside if isinstance(b, (types.FunctionType, types.MethodType))))


def _content(value: Any) -> tuple[Head, list[Any]]:
    """What of `value` is no attribute: the elements of a container, a number, the bytes of an array."""
    if isinstance(value, np.dtype):
        return (np.dtype, value), []
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject:
            return (value.dtype, value.shape), [value.tolist()]
        beside = getattr(value, "__dict__", None)  # the mask of a masked array
        return (value.dtype, value.shape, _digest(value.tobytes())), [beside] if beside else []
    if isinstance(value, (tuple, list, collections.deque)):
        if all(type(item) in PLAIN for item in value):
            return ("plain", *map(type, value), *value), []
        return ("sequence",), list(value)
    if isinstance(value, (set, frozenset)):
        plain = frozenset((type(item), item) for item in value if type(item) in PLAIN)
        return ("set", plain), [item for item in value if type(item) not in PLAIN]
    if isinstance(value, Mapping):
        return ("mapping",), [part for item in value.items() for part in item]
    if isinstance(value, BUFFERS):
        return ("bytes", _digest(bytes(value))), []
    if isinstance(value, slice):
        return ("slice",), [value.start, value.stop, value.step]
    if isinstance(value, (numbers.Number, str, bytes)):
        base: Any = next(
            c for c in type(value).__mro__ if _is_library(c)
        )  # the user's own __repr__ may leave something out
        return ("value", base.__repr__(value)), []  # NaN equals NaN, and 0.0 is not -0.0
    return (), []


def _function(function: types.FunctionType) -> tuple[Head, Children]:
    library = _is_path_of_library(function.__code__.co_filename)
    if library and getattr(sys.modules.get(function.__module__), function.__name__, None) is function:
        return (Same(function),), []  # as it stands in its module, it stays as it is
    reads, names = ((), ()) if library else _names(function.__code__)
    found = [name for name in reads if name in function.__globals__]
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    beside = (function.__defaults__, function.__kwdefaults__, function.__dict__ or None, *cells)
    return (function.__code__, *found), _of(names, *beside, *(function.__globals__[name] for name in found))


def _module(module: types.ModuleType, names: tuple[str, ...]) -> tuple[Head, Children]:
    read = [] if _is_module_of_library(module) else [name for name in names if name in vars(module)]
    return (Same(module), *read), _of(names, *(vars(module)[name] for name in read))


def _members(kind: type) -> list[Any]:
    """What the user has written in a class and in its bases."""
    found: list[Any] = []
    for one in kind.__mro__:
        if not _is_library(one):
            found += [one, *(part for name, item in vars(one).items() if _is_read(name, item) for part in (name, item))]
    return found


def _is_read(name: str, item: Any) -> bool:
    is_pythons = name.startswith("__") and name.endswith("__")  # of those, a user writes methods
    return not is_pythons or isinstance(item, (types.FunctionType, property, staticmethod, classmethod))


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for one in type(value).__mro__:
        for name, item in vars(one).items():
            if isinstance(item, types.MemberDescriptorType):  # one of __slots__
                with contextlib.suppress(AttributeError):
                    found[f"{one.__qualname__}.{name}"] = item.__get__(value)
    return found


def _of(names: tuple[str, ...], *values: Any) -> Children:
    return [(value, names) for value in values]


def _counts(children: list[Any]) -> tuple[int, ...]:
    return (len(children),) if children else ()


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _digest(content: bytes) -> bytes:
    return content if len(content) <= 64 else hashlib.blake2b(content).digest()


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals that code, and functions within it, can read; all names in it, attributes too."""
    within = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    reads = [i.argval for i in dis.get_instructions(code) if i.opname.startswith(LOADS)]
    return (
        tuple(dict.fromkeys((*reads, *(name for names, _ in within for name in names)))),
        tuple(dict.fromkeys((*code.co_names, *(name for _, names in within for name in names)))),
    )


def _is_library(kind: type) -> bool:
    """Whether a class is of Python, of an installed package or of this repository: it stays as it is."""
    name = str(kind.__module__)
    module = sys.modules.get(name) or sys.modules.get(name.split(".")[0])
    return module is not None and _is_module_of_library(module)


def _is_module_of_library(module: types.ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    if path is not None:
        return _is_path_of_library(path)
    name = module.__name__.split(".")[0]
    return name in sys.stdlib_module_names and name != "__main__"


@functools.lru_cache(maxsize=4096)
def _is_path_of_library(path: str) -> bool:
    packages = f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}"
    return path.startswith((*OWN, *INSTALLED, "<frozen")) or any(name in path for name in packages)
