"""What a function is made of: equal keys for what does the same, another key for what has changed since."""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import enum
import functools
import gc
import sys
import threading
import types
import weakref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from reference.made_of import identities, made_of
from tests.conftest import loaded


def test_equal_functions_are_found_again_and_changed_ones_are_not():
    def times(scale):
        return lambda x: x * scale

    assert made_of(times(2.0)) == made_of(times(2.0))
    assert made_of(times(2.0)) != made_of(times(3.0))
    assert hash(made_of(times(2.0))) == hash(made_of(times(2.0)))


# What a function reads, and how it changes. Each is (function, change): the key must be another one afterwards.

FLAG = 1
TABLE = {"a": {"b": [1, 2]}}


def helper(x):
    return x * FLAG


def second(x):
    return helper(x)


class Base:
    factor = 2

    def times(self, x):
        return x * self.factor


class Slots(Base):
    __slots__ = ("__hidden", "value")

    def __init__(self):
        self.value, self.__hidden = 1, 1

    def hide(self, hidden):
        self.__hidden = hidden

    def __call__(self, x):
        return self.times(x) + self.value + self.__hidden


@dataclasses.dataclass
class Data:  # no hash, as it compares by value
    a: float = 1.0

    def __getitem__(self, i):
        return FLAG

    def __call__(self, x):
        return self[0] * x * self.a


class Settings(dict):
    depth = 1


class Count(int):
    pass


class Colour(enum.Enum):
    RED = 1


def with_default(x, scale=[1]):  # noqa: B006
    return x * scale[0]


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def assign(name, value):
    def change(monkeypatch, function):
        monkeypatch.setitem(globals(), name, value)

    return change


def closing_over(value):
    return lambda x: (x, value)


def setting(value, name, new):
    """A function that reads `value`, of which an attribute is set."""
    return closing_over(value), lambda monkeypatch, function: setattr(value, name, new)


def calling(value, method, *args):
    return closing_over(value), lambda monkeypatch, function: getattr(value, method)(*args)


def module_of_the_user(**attributes) -> Any:
    module = types.ModuleType("settings_of_the_user")
    vars(module).update(attributes)
    return module


def changes():
    array, data, slots, table = np.zeros(3), Data(), Slots(), {"a": [0]}
    masked: Any = np.ma.MaskedArray([1.0, 2.0], [False, False])
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    local, module = threading.local(), module_of_the_user(rate=1, within=module_of_the_user(rate=1))
    count, nested = Count(3), types.SimpleNamespace(a=types.SimpleNamespace(b=1))

    cell: Any = closing_over(2)

    def refill(monkeypatch, function):
        cell.__closure__[0].cell_contents = -0.0

    cell.__closure__[0].cell_contents = 0.0
    yield "a global", helper, assign("FLAG", 2)
    yield "a global that a helper of a helper reads", second, assign("FLAG", 2)
    yield "the flag becomes a number that is equal", helper, assign("FLAG", True)
    yield "a function of the module", second, assign("helper", decorated(helper))
    yield "within a nested function", lambda x: [(lambda y: y * FLAG)(a) for a in x], assign("FLAG", 2)
    yield "deep in a dict", lambda x: x * TABLE["a"]["b"][1], assign("TABLE", {"a": {"b": [1, 3]}})
    yield "a method that Python calls", data, assign("FLAG", 2)
    yield "a decorated function", decorated(helper), assign("FLAG", 2)
    yield "what jit wraps", functools.lru_cache(helper), assign("FLAG", 2)
    yield "a partial", functools.partial(helper, table), lambda m, f: table["a"].append(1)
    yield "an element of a default", with_default, lambda m, f: m.setattr(with_default, "__defaults__", ([2],))
    yield "an attribute of a function", *setting(decorated(helper), "attribute", 2)
    yield "0.0 becomes -0.0", cell, refill
    yield "an array, in place", closing_over(array), lambda m, f: array.__setitem__(0, 1)
    yield "an array of another shape", *setting(types.SimpleNamespace(a=array), "a", array.reshape(3, 1))
    yield "a mask", closing_over(masked), lambda m, f: masked.mask.__setitem__(0, True)
    yield "an attribute", *setting(data, "a", 2.0)
    yield "of a bound method", data.__call__, lambda m, f: setattr(data, "a", 2.0)
    yield "an attribute that is new", *setting(data, "new", 1)
    yield "one of __slots__", *setting(slots, "value", 2)
    yield "a private one of __slots__", *calling(slots, "hide", 2)
    yield "an attribute of a base class", slots, lambda m, f: m.setattr(Base, "factor", 3)
    yield "a method of a base class", slots, lambda m, f: m.setattr(Base, "times", lambda self, x: x)
    yield "nested attributes", *setting(nested.a, "b", 2)
    yield "a dict of the user's", *setting(Settings(a=1), "depth", 2)
    yield "what is in it", *calling(Settings(a=1), "update", {"a": 2})
    yield "a number with attributes", *setting(count, "unit", "m")
    yield "a member of an enum", *setting(Colour.RED, "shade", 2)
    yield "a set", *calling({1, 2}, "add", 3)
    yield "a deque", *calling(collections.deque([1]), "append", 2)
    yield "bytes", *calling(bytearray(b"ab"), "reverse")
    yield "a context variable", *calling(variable, "set", 1)
    yield "a local of a thread", *setting(local, "flag", 1)
    yield "a module of the user's", (lambda x: module.rate), lambda m, f: setattr(module, "rate", 2)
    yield "a module in it", (lambda x: module.within.rate), lambda m, f: setattr(module.within, "rate", 2)


@pytest.mark.parametrize("name", [name for name, *_ in changes()])
def test_what_has_changed_since_is_seen(name, monkeypatch):
    function, change = next(rest for found, *rest in changes() if found == name)
    key = made_of(function)
    assert made_of(function) == key
    change(monkeypatch, function)
    assert made_of(function) != key
    if name == "a member of an enum":
        del Colour.RED.__dict__["shade"]


def local_layer():
    """Defined anew at each call, with everything anew that it reads."""
    table: Any = {"a": [1, (2.0, None)], "b": {3}}
    scale = np.arange(100.0)

    def inner(x):
        return x * table["a"][0]

    @decorated
    def layer(x, k=Fraction(1, 3)):
        return inner(x) * scale + k

    return functools.partial(layer, Data(2.0), Slots(), Settings(a=1), collections.deque([float("nan")]))


def test_everything_made_anew_is_found_again():
    layers = [local_layer() for _ in range(3)]
    assert made_of(layers[0]) == made_of(layers[1]) == made_of(layers[2])


def test_of_a_loop_each_function_has_its_own():
    keys = {made_of(closing_over(i)) for i in range(5)} | {made_of(lambda x, i=i: x * i) for i in range(5)}
    assert len(keys) == 10


def test_a_name_that_is_only_an_attribute_is_not_read():
    function = lambda x: x.FLAG  # noqa: E731
    key = made_of(function)
    globals()["FLAG"] = 2
    try:
        assert made_of(function) == key
    finally:
        globals()["FLAG"] = 1


def test_order_of_a_dict_and_sharing_are_part_of_it():
    assert made_of({"a": 1, "b": 2}) != made_of({"b": 2, "a": 1})  # who iterates does something else
    one, two = [1], [1]
    assert made_of((one, [one])) != made_of((one, [two, two]))
    assert made_of([[1], 2]) != made_of([[1, 2]])  # flat, and still with all brackets
    assert made_of([1, [2]]) != made_of([[1], 2])
    assert made_of([]) != made_of(())
    assert made_of(1) != made_of(True) != made_of(1.0)


def test_what_is_deep_or_a_circle_comes_to_an_end():
    deep: Any = None
    for _ in range(50_000):
        deep = [deep]
    assert made_of(deep) == made_of(deep)
    assert isinstance(hash(made_of(deep)), int)
    circle: Any = Data()
    circle.me = circle
    key = made_of(circle)
    assert made_of(circle) == key
    circle.a = 5.0
    assert made_of(circle) != key


def test_large_arrays_are_not_kept():
    key = made_of(closing_over(np.zeros(10**6)))
    assert sum(sys.getsizeof(part) for part in key) < 10_000


def test_a_key_keeps_nothing_alive_and_takes_no_other_for_it():
    """An object of an installed package is known by its address, which another gets when it is gone."""

    def one():
        return weakref.WeakSet()

    object_ = one()
    key, dies = made_of(closing_over(object_)), weakref.ref(object_)
    assert any(found is object_ for found in identities(key))
    del object_
    gc.collect()
    assert dies() is None
    assert not any(isinstance(found, weakref.WeakSet) for found in identities(key))
    assert all(made_of(closing_over(one())) != key for _ in range(100))


def test_the_users_module_is_not_followed_where_it_is_not_read():
    module = module_of_the_user(rate=1, counter=0)
    function = lambda x: module.rate * x  # noqa: E731
    key = made_of(function)
    module.counter = 1
    assert made_of(function) == key


def test_what_is_installed_stays_as_it_is():
    """So a layer of this repository, and what it calls, costs nothing to look through."""
    assert len(made_of(np.linalg.norm)) < 30
    layer = loaded("jax_scan").LAYERS["transformer_decoder"]
    assert len(made_of(layer)) < 10
    assert made_of(layer) != made_of(loaded("jax_scan").LAYERS["mlp"])
