"""What is refused of meshes and of what is cut over them, in the same words everywhere, and what a framework cannot."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from implementations import NAMES, ROOT
from reference import meshes
from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("eager")


def test_what_is_cut_is_a_size_that_the_devices_divide():
    """A weight of 4 x 6, cut along 6 by 2, or by 4; NumPy's shapes are as good as any."""
    check, weight = numpy_check, np.zeros((3, 4, 6))
    check(weight, {"data": 2}, data=2)
    with pytest.raises(ValueError, match="that 4 devices divide") as caught:
        check(weight, {"data": 2}, data=4)
    expected = "stacked_params: expected a size along axis 2 that 4 devices divide, got shape (3, 4, 6)"
    assert str(caught.value) == expected


def numpy_check(weight, cut, **mesh):
    from reference.arguments import Leaf

    meshes.check_cuts(lambda a: Leaf(a.shape, a.dtype.name), "stacked_params", weight, [(weight, cut)], mesh)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"data": 0}, "stacked_params: expected an axis from 1 to 2 to be cut, got 0"),
        ({"data": 3}, "stacked_params: expected an axis from 1 to 2 to be cut, got 3"),
        ({"data": 1, "tensor": 1}, "stacked_params: expected one cut along an axis, got data = 1, tensor = 1"),
        ({"model": 1}, "name: expected an axis of the mesh (data = 2, tensor = 2), got 'model'"),
    ],
)
def test_wrong_cuts(cut, words):
    with pytest.raises(ValueError, match="expected") as caught:
        numpy_check(np.zeros((3, 4, 6)), cut, data=2, tensor=2)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ({"data": 3, "tensor": 4}, ValueError, "sizes: expected 1 to 8 devices, got 12 (data = 3, tensor = 4)"),
        ({"data": 0}, ValueError, "sizes: expected 1 to 8 devices, got 0 (data = 0)"),
        ({"data": 2.0}, TypeError, "data: expected a number of devices, got 2.0"),
        ({"data": True}, TypeError, "data: expected a number of devices, got True"),
    ],
)
def test_wrong_meshes(sizes, error, words):
    with pytest.raises(error) as caught:
        meshes.check_mesh(sizes, 8)
    assert str(caught.value) == words


# In each framework, on a mesh of the one device that is there.


@contextlib.contextmanager
def one_device(name):
    """The folder, and a mesh of one device."""
    implementation, devices = loaded(name), importlib.import_module(f"{name}.devices")
    with contextlib.ExitStack() as stack:
        if name == "torch_compile":
            from torch import distributed

            distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
            stack.callback(distributed.destroy_process_group)
        yield implementation, devices, devices.make_mesh(data=1)


def posed(implementation):
    rng = np.random.default_rng(0)
    return [implementation.from_numpy(rng.standard_normal(shape)) for shape in ((3, 4, 4), (4,))]


@pytest.mark.parametrize("name", NAMES)
def test_each_framework_says_so(name):
    with one_device(name) as (implementation, devices, mesh):
        w, x = posed(implementation)
        calls = {
            lambda: devices.make_mesh(data=1000): "sizes: expected 1 to 1 devices, got 1000 (data = 1000)",
            lambda: devices.fully_sharded(implementation.LAYERS["dense"], mesh, "model"): (
                "name: expected an axis of the mesh (data = 1), got 'model'"
            ),
            lambda: devices.shard_layers(w, mesh, {"data": 3}): (
                "stacked_params: expected an axis from 1 to 2 to be cut, got 3"
            ),
            lambda: devices.on_mesh(lambda w, x: x, mesh, ({"data": 1}, {"data": 1}), {})(w, x): (
                "args[1]: expected an axis from 0 to 0 to be cut, got 1"
            ),
        }
        for call, words in calls.items():
            with pytest.raises(ValueError, match="expected") as caught:
                call()
            assert str(caught.value) == words


@pytest.mark.covers("a stack cut along its layers, read one at a time")
@pytest.mark.parametrize("implementation", NAMES)
def test_layers_are_not_cut_apart(implementation):
    with one_device(implementation) as (folder, devices, mesh):
        devices.shard_layers(posed(folder)[0], mesh, {"data": 0})


@pytest.mark.covers("a stack on many devices, differentiated from outside of `on_mesh`")
@pytest.mark.parametrize("implementation", NAMES)
def test_the_gradient_from_outside(implementation):
    with one_device(implementation) as (folder, devices, mesh):
        params = folder.init_layers("mlp", 0, 3, "float64", d=4, f=8)
        x = folder.from_numpy(np.linspace(-1, 1, 8).reshape(2, 4))
        layer, batch = devices.fully_sharded(folder.LAYERS["mlp"], mesh, "data"), {"data": 0}
        run = devices.on_mesh(
            lambda params, x: folder.scan_layers(layer, params, x)[0], mesh, ({"data": 1}, batch), batch
        )
        _, _, expected = folder.gradient(lambda *args: folder.scan_layers(folder.LAYERS["mlp"], *args)[0])(params, x, x)
        _, _, actual = folder.gradient(lambda *args: devices.whole(run(*args), mesh, batch))(params, x, x)
        assert actual is not None
        np.testing.assert_allclose(folder.to_numpy(actual), folder.to_numpy(expected), rtol=1e-12)


@pytest.mark.torch_backend("inductor")
@pytest.mark.covers("collectives in a program that the framework's compiler makes, on a CPU")
@pytest.mark.parametrize("implementation", NAMES)
def test_collectives_under_the_compiler(implementation):
    with one_device(implementation) as (folder, devices, mesh):
        if implementation == "tf_while":  # the operation alone: in on_mesh its error would end all that come after it
            import tensorflow as tf

            options = {"merge_op": "Add", "final_op": "Id", "ordering_token": []}
            tf.function(
                lambda x: tf.raw_ops.CollectiveReduceV2(
                    input=x, group_size=tf.constant(1), group_key=tf.constant(7), instance_key=tf.constant(9), **options
                ),
                jit_compile=True,
            )(tf.ones(3))
        w, x = posed(folder)
        layer = devices.data_parallel(folder.LAYERS["dense"], mesh, "data")
        batch = {"data": 0}
        run = devices.on_mesh(lambda w, x: folder.scan_layers(layer, w, x[0])[0][None], mesh, ({}, batch), batch)
        found = devices.whole(run(w, x[None]), mesh, batch)[0]  # jax.jit, and Inductor
        right = folder.scan_apply_layers(w, x)
        np.testing.assert_allclose(folder.to_numpy(found), folder.to_numpy(right), rtol=1e-12)


@pytest.mark.covers("transforms of a fully sharded stack, within `on_mesh`")
@pytest.mark.parametrize("what", ["jvp", "hvp", "vmap"])
@pytest.mark.parametrize("implementation", NAMES)
def test_transforms_within(implementation, what):
    """On one device; torch's on two are in test_processes.py."""
    assert_transformed(implementation, what)


@pytest.mark.covers("per-example gradients of a fully sharded stack, within `on_mesh`")
@pytest.mark.parametrize("implementation", NAMES)
def test_per_example_gradients_within(implementation):
    assert_transformed(implementation, "each")


def assert_transformed(implementation, what):
    with one_device(implementation) as (folder, devices, mesh):
        params = folder.init_layers("mlp", 0, 3, "float64", d=4, f=8)
        x, tx = (folder.from_numpy(np.linspace(a, 2, 8).reshape(2, 4)) for a in (-1, 1))

        def transformed(layer):
            def half(carry, _):
                return folder.OPS["sum"](carry * carry) / 2

            return {
                "jvp": lambda p, x, tx: folder.jvp_layers(layer, p, x, tangents=(None, tx, None))[1][0],
                "hvp": lambda p, x, tx: folder.hvp_layers(layer, half, p, x, tangents=(None, tx, None))[1][1],
                "vmap": lambda p, x, tx: folder.vmap_layers(layer, p, x + tx)[0],
                "each": lambda p, x, tx: folder.vmap_vjp_layers(layer, p, x, cotangents=(tx, None))[1][1],
            }[what]

        layer, batch = folder.LAYERS["mlp"], {"data": 0}
        sharded = transformed(devices.fully_sharded(layer, mesh, "data"))
        found = devices.on_mesh(sharded, mesh, ({"data": 1}, batch, batch), batch)(params, x, tx)
        found, right = devices.whole(found, mesh, batch), transformed(layer)(params, x, tx)
        np.testing.assert_allclose(folder.to_numpy(found), folder.to_numpy(right), rtol=1e-12)


def test_what_torch_counts_is_run_by_the_compiler_that_was_asked_for(monkeypatch):
    """Not only recorded: one that is not there is missed."""
    with one_device("torch_compile") as (folder, devices, mesh):
        from torch_compile.graph_on_mesh import run_on_mesh

        w, x = posed(folder)
        run = devices.on_mesh(lambda w, x: folder.scan_layers(folder.LAYERS["dense"], w, x)[0], mesh, ({}, {}), {})
        monkeypatch.setattr("torch_compile.edges.BACKEND", "no_compiler")
        with pytest.raises(RuntimeError, match="no_compiler"):
            run_on_mesh(run, devices.shard(w, mesh, {}), x)


THREADS = """
import os
import tensorflow as tf
import tf_while
from tf_while import devices
devices.start(2)
mesh = devices.make_mesh(data=2)
layer = devices.data_parallel(lambda carry, w: (tf.linalg.matvec(w, carry), None), mesh, "data")

def gradient(w, x):
    return tf_while.vjp_layers(layer, w, x[0], cotangents=(x[0], None))[1][0]

run = devices.on_mesh(gradient, mesh, ({}, {"data": 0}), {})
for _ in range(2):
    run(tf.ones((500, 2, 2)), tf.ones((2, 2)))
    print(len(os.listdir("/proc/self/task")))
"""


def test_a_collective_of_tensorflow_takes_no_thread_of_its_own():
    """With a timeout of its own it would: one that sleeps as long, and a program has thousands."""
    loaded("tf_while")
    run = subprocess.run([sys.executable, "-c", THREADS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    first, second = map(int, run.stdout.split())
    assert second < first + 100


def test_a_call_on_a_mesh_of_tensorflow_has_an_end(monkeypatch):
    loaded("tf_while")
    from tf_while import mesh_program

    aborted: list = []
    mesh: Any = SimpleNamespace(devices=["CPU:0"])
    monkeypatch.setattr(mesh_program, "SECONDS", 0.1)
    monkeypatch.setattr(mesh_program, "abort_collectives", aborted.append)
    with pytest.raises(TimeoutError):
        mesh_program.together(mesh, {0: lambda: time.sleep(0.5)})
    assert aborted == ["a call on the mesh has taken 0.1 s"]
