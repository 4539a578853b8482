"""One stack on many devices: the numbers of one device, one size for every N, and what is sent for each layer.

The devices are virtual (processes, for torch), and their number is fixed before a framework starts: each framework runs
in processes of its own, and a mistake, which is a hang here, ends with a timeout.
"""

from __future__ import annotations

import itertools

import pytest

from implementations import NAMES
from implementations.devices import on_paper
from implementations.devices.command import command, on_devices
from implementations.devices.ways import PIPELINE, SIZES, WAYS
from implementations.measuring import isolate
from implementations.results.laws import broken_on_devices
from implementations.results.records import OnDevices, Way
from tests.conftest import loaded


def test_the_gathered_layers_that_a_device_keeps_are_told_from_those_that_it_does_not():
    """Two layers of 100 bytes more, and 40 more bytes of temporaries, or 200."""
    said = []
    for added in (40, 200):
        ways = (
            Way(way="fully sharded", N=2, whole_bytes=200, param_bytes=50, temp_bytes=30),
            Way(way="fully sharded", N=4, whole_bytes=400, param_bytes=100, temp_bytes=30 + added),
        )
        said.append(broken_on_devices(OnDevices(name="some", ways=ways)))
    assert said == [[], ["fully sharded: 2 layers add 200 bytes of temporaries, and have 200"]]


# What is sent for one layer and its gradient.
SENT = {
    "jax_scan": {
        "data parallel": {"all-reduce": 1},
        # each of six arrays once forwards, and backwards what the derivative reads again
        "fully sharded": {"all-gather": 6 + 5, "reduce-scatter": 6},
        "fully sharded, bfloat16": {"all-gather": 6 + 5, "reduce-scatter": 6},
        "tensor parallel": {"all-reduce": 2},
        "fully sharded x tensor, decoder": {"all-gather": 9 + 9, "reduce-scatter": 9, "all-reduce": 4},
        "pipeline": {"permute": 2},
    },
    # An all-reduce for each array: no compiler joins them. Stages send from outside of programs.
    "torch_compile": {
        "data parallel": {"all-reduce": 6},
        "fully sharded": {"all-gather": 6 + 4, "reduce-scatter": 6},
        "tensor parallel": {"all-reduce": 2},
        "pipeline": {},
    },
    # A gather stands for the permute.
    "tf_while": {
        "data parallel": {"all-reduce": 6},
        "fully sharded": {"all-gather": 6 + 3, "reduce-scatter": 6},
        "tensor parallel": {"all-reduce": 2},
        "pipeline": {"all-gather": 2, "reduce-scatter": 1},
    },
}
DEVICES = {"jax_scan": 4, "torch_compile": 2, "tf_while": 4}  # a process of torch's costs as much as all of another's


@pytest.mark.covers("many devices: data parallel, fully sharded, tensor parallel", "many devices: a pipeline of stages")
@pytest.mark.parametrize("implementation", NAMES)
def test_numbers_sizes_and_what_is_sent(implementation):
    loaded(implementation)
    sent = SENT[implementation]
    found = on_devices(implementation, DEVICES[implementation], (4, 8), tuple(sent), timeout=300)
    assert broken_on_devices(found) == []
    ways = {one.way: one for one in found.ways}
    inside = {way: {k: n for k, n in one.collectives.items() if k != "outside"} for way, one in ways.items()}
    assert inside == sent
    if both := ways.get("fully sharded x tensor, decoder"):
        # On paper as counted: a carry of 8 x 4 positions, of which each device has those of half the batch.
        expected = on_paper.both(SIZES, 4, 2, carry=8 // 2 * 4 * SIZES["d"] * 8, width=8)
        assert (8 * expected.held, expected.sent) == (both.param_bytes, both.sent_bytes)


# What goes wrong silently, written into the folder before it runs; and the way that must notice.
MISTAKES = {
    "jax_scan": """
import jax
from jax import lax

def kept(layer, whole):
    return lambda carry, params, *x: layer(carry, whole(params), *x)

def of_one_device(array, mesh, name):
    copy = jax.custom_vjp(lambda a: lax.pcast(a, name, to="varying"))
    copy.defvjp(lambda a: (copy(a), None), lambda _, ct: (lax.psum(ct * (lax.axis_index(name) == 0), name),))
    return copy(array)

def own_derivative(array, mesh, name):
    add = jax.custom_vjp(lambda a: lax.psum(a, name))
    add.defvjp(lambda a: (add(a), None), lambda _, ct: (lax.psum(lax.pcast(ct, name, to="varying"), name),))
    return add(array)
""",
    "torch_compile": """
from torch_compile.collectives import _TRANSPOSE

def kept(layer, whole):  # what depends on the carry is not made again
    def step(carry, params, *x):
        nothing = 0 * carry.sum()
        return layer(carry, devices.map_arrays(lambda a: a + nothing, whole(params)), *x)
    return step

def of_one_device(array, mesh, name):
    return array.view_as(array)

_TRANSPOSE["add"] = "add"
own_derivative = devices.add
""",
    "tf_while": """
import tensorflow as tf

def kept(layer, whole):  # what depends on the carry is not made again
    def step(carry, params, *x):
        nothing = 0 * tf.reduce_sum(carry)
        return layer(carry, devices.map_arrays(lambda a: a + nothing, whole(params)), *x)
    return step

def of_one_device(array, mesh, name):
    return tf.identity(array)

add = devices.add

def own_derivative(array, mesh, name):
    @tf.custom_gradient
    def run(array):
        return add(array, mesh, name), lambda d: add(d, mesh, name)
    return run(array)
""",
}
NOTICED = {
    "what is gathered is kept": ("_of_complete = kept", "fully sharded", "bytes of temporaries"),
    "a gradient is not summed": ("copy = of_one_device", "data parallel", "dparams"),
    "a sum is its own derivative": ("add = own_derivative", "tensor parallel", "dparams"),
}
OF_JAX = {
    "what is copied to be summed is kept": ("_of_complete = kept", "data parallel", "bytes of temporaries"),
    "a tick is no checkpoint": ("jax.checkpoint = lambda tick, **_: tick", "pipeline", "bytes of temporaries"),
}


@pytest.mark.thorough("torch_compile", "tf_while")
@pytest.mark.parametrize(
    ("name", "mistake"), [*itertools.product(MISTAKES, NOTICED), *itertools.product(["jax_scan"], OF_JAX)]
)
def test_a_mistake_is_noticed(name, mistake, tmp_path):
    loaded(name)
    change, way, said = (NOTICED | OF_JAX)[mistake]
    script = tmp_path / "mistaken.py"
    script.write_text(f"{START}from {name} import devices\n{MISTAKES[name]}\ndevices.{change}\n{RUN}")
    asked = name, str(DEVICES[name]), "4,16", way, "aot_eager"
    run = command(name, DEVICES[name], [str(script)], asked)
    found = isolate.run(OnDevices, name, run, 300, lambda *_: None)
    assert said in "".join(broken_on_devices(found))


START = "import sys\nsys.path.insert(0, '')\n"
RUN = "import runpy\nrunpy.run_module('implementations.devices.worker', run_name='__main__')\n"


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_every_option_and_depth(name):
    """4 alone: less than two steps of three layers, or two layers a stage, is a smaller program."""
    loaded(name)
    for depths in (4,), (8, 16, 64):
        assert broken_on_devices(on_devices(name, 4, depths, (*WAYS, PIPELINE), timeout=1800)) == []


@pytest.mark.thorough
@pytest.mark.parametrize("size", [2, 4])
def test_torch_by_inductor(size):
    """As users run it: elsewhere here the programs stop before Inductor, which each process would wait for."""
    loaded("torch_compile")
    ways = "data parallel", "fully sharded", "tensor parallel", "fully sharded x tensor, decoder"
    asked = size, (4, 8), ways if size == 4 else ways[:3], 1800
    assert broken_on_devices(on_devices("torch_compile", *asked, backend="inductor")) == []
