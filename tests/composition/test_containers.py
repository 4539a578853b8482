"""Parameters in the containers that users of each framework have; a carry that comes back in another one is refused."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest

from implementations.check.dialect import from_numpy
from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("eager")
W, B = np.arange(1, 4, dtype=np.float32), np.ones(3, np.float32)
# from a carry of 1: 1 * 1 + 1 = 2, 2 * 2 + 1 = 5, 5 * 3 + 1 = 16
RIGHT, DW, DB = 16, [1 * 6, 2 * 3, 5], [6, 3, 1]
Point = collections.namedtuple("Point", "x y")
Turned = collections.namedtuple("Turned", "y x")


def affine(carry, params):
    return carry * params["w"] + params["b"], None


def of_jax():
    import jax

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Dense:
        w: Any
        b: Any
        name: str = dataclasses.field(default="dense", metadata={"static": True})

        def __getitem__(self, key):
            return getattr(self, key)

    w, b = jax.numpy.array(W), jax.numpy.array(B)
    return {"a registered dataclass": (Dense(w, b), Dense), "OrderedDict": (collections.OrderedDict(w=w, b=b), dict)}


def of_torch():
    from torch import nn, tensor

    class Params(dict):
        pass

    both = {"w": nn.Parameter(tensor(W)), "b": nn.Parameter(tensor(B))}
    return {
        "ParameterDict": (nn.ParameterDict(both), dict),
        "UserDict": (collections.UserDict(both), dict),
        "a class of dicts": (Params(both), dict),
        "OrderedDict": (collections.OrderedDict(both), collections.OrderedDict),
    }


def of_tf():
    import keras
    import tensorflow as tf

    module = tf.Module()
    module.params = {"w": tf.Variable(W), "b": tf.Variable(B)}
    return {
        "keras.Variable": ({"w": keras.Variable(W), "b": keras.Variable(B)}, dict),
        "of a tf.Module": (module.params, dict),
        "UserDict": (collections.UserDict(w=tf.constant(W), b=tf.constant(B)), collections.UserDict),
    }


CONTAINERS = {"jax_scan": of_jax, "torch_compile": of_torch, "tf_while": of_tf}


@pytest.mark.parametrize("form", ["scan_layers", "unroll_layers"])
def test_containers_of_the_framework_hold_parameters(implementation, form):
    (x,) = from_numpy(implementation, (np.ones(2, np.float32),))
    for what, (params, _) in CONTAINERS[implementation.__name__]().items():
        carry, _ = getattr(implementation, form)(affine, params, x)
        np.testing.assert_array_equal(implementation.to_numpy(carry), [RIGHT, RIGHT], err_msg=what)


def test_gradients_come_back_in_containers(implementation):
    x, one = from_numpy(implementation, (np.ones((), np.float32), np.ones((), np.float32)))
    for what, (params, kind) in CONTAINERS[implementation.__name__]().items():
        _, (dparams, _, _) = implementation.vjp_layers(affine, params, x, cotangents=(one, None))
        assert isinstance(dparams, kind), what
        np.testing.assert_array_equal(implementation.to_numpy(dparams["w"]), DW, err_msg=what)
        np.testing.assert_array_equal(implementation.to_numpy(dparams["b"]), DB, err_msg=what)


def test_a_list_of_parameters_is_a_list():
    from torch import nn, tensor

    implementation = loaded("torch_compile")
    params = nn.ParameterList([nn.Parameter(tensor(W)), nn.Parameter(tensor(B))])
    carry, _ = implementation.scan_layers(lambda c, p: (c * p[0] + p[1], None), params, tensor(1.0))
    carry.backward()
    assert carry == RIGHT
    np.testing.assert_array_equal(params[0].grad, DW)


@pytest.mark.parametrize(
    ("init", "change", "message"),
    [
        (Point, lambda c: Turned(c.x, c.y), "carry: expected Point(x=*, y=*) (that of init), got Turned(y=*, x=*)"),
        (Point, tuple, "carry.x: expected float32[2] (that of init), got no array"),
        (
            lambda x, y: {"x": x, "y": y},
            collections.OrderedDict,
            "carry: expected {'x': *, 'y': *} (that of init), got OrderedDict({'x': *, 'y': *})",
        ),
        (
            Point,
            lambda c: collections.namedtuple("Point", "x y")(*c),
            "carry: expected Point(x=*, y=*) (that of init), got another Point(x=*, y=*)",
        ),
    ],
    ids=["fields in another order", "a tuple", "OrderedDict", "a class of the same name"],
)
def test_a_carry_of_another_class_is_refused(implementation, init, change, message):
    x, y, w = from_numpy(implementation, (np.ones(2, np.float32), np.zeros(2, np.float32), W))
    for form in ("scan_layers", "unroll_layers"):
        with pytest.raises(TypeError) as caught:
            getattr(implementation, form)(lambda carry, w: (change(carry), None), w, init(x, y))
        assert type(caught.value) is TypeError
        assert str(caught.value) == message


def test_a_leaf_in_a_container_is_named(implementation):
    (w,) = from_numpy(implementation, (W,))
    with pytest.raises(TypeError, match=r"stacked_params\.y\[0\]: expected an array of this framework"):
        implementation.scan_layers(lambda c, p: (c, None), Point(w, [1.0]), w)
