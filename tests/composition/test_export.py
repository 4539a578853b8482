"""A stack in a file, of each framework's own format: run by a process that knows the framework alone, at any depth.

The layer is `affine` of tests/support/modules.py; the oracle its loop in NumPy, and its derivative by hand.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from implementations.check.comparator import assert_close
from reference.stack import run_layers_vjp
from tests.conftest import loaded
from tests.support.modules import D, affine, layer, layer_vjp, weights

DEPTHS = 2, 64  # neither is exported


def test_the_oracle_by_hand():
    """One layer of nothing but a bias of atanh(0.5) adds a half; each derivative by it is 3/4."""
    w, b, x, dy = problem(1, 1)
    y, _, db, dx = right(0 * w, 0 * b + np.arctanh(0.5), x, np.ones_like(dy))
    np.testing.assert_allclose(y, x + 0.5)
    np.testing.assert_allclose(db, [[0.75] * D])
    np.testing.assert_allclose(dx, np.ones_like(x))


def problem(N, B):
    """w [N, D, D], b [N, D], x and dy [B, D]."""
    each, (x, dy) = weights(N), np.random.default_rng(1).standard_normal((2, B, D))
    return np.stack([one["w"] for one in each]) / 4, np.stack([one["b"] for one in each]), x, dy


def right(w, b, x, dy):
    """(y, dw, db, dx)"""
    xs = np.zeros((len(w), *x.shape))
    params = {"w": w, "b": b}
    (y, _), (dparams, dx, _) = run_layers_vjp(layer, layer_vjp, params, x, xs, cotangents=(dy, [None] * len(w)))
    return y, dparams["w"], dparams["b"], dx


def served(tmp_path, code, N, B, *arguments):
    """What a process of its own makes of a file and a problem: y and, where the file has them, the gradients."""
    np.savez(tmp_path / "given.npz", *problem(N, B))
    command = [sys.executable, "-c", HEAD + code + TAIL, *map(str, arguments)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    return tuple(found[name] for name in found.files)


HEAD = """
import sys
import numpy as np
w, b, x, dy = np.load("given.npz").values()
"""
TAIL = """
np.savez("found.npz", *map(np.asarray, found))
assert not {"reference", "jax_scan", "torch_compile", "tf_while"} & {name.partition(".")[0] for name in sys.modules}
"""


def stack_of(implementation):
    """A function of w, b and x that users of the framework would export."""
    first = affine(implementation, *[a[0] for a in problem(1, 1)[:2]])
    one, example = implementation.from_modules([first])

    def stack(w, b, x):
        params = {"w": w, "b": b}
        if implementation.__name__ == "jax_scan":
            params = type(example)(**params)
        return implementation.scan_layers(one, params, x)[0]

    return stack


# JAX: open in N and in the batch, with its derivative.

RUN_JAX = """
import jax
jax.config.update("jax_enable_x64", True)
from jax import export
program = export.deserialize(open("stack.jax", "rb").read())
found = [program.call(w, b, x), *program.vjp().call(w, b, x, dy)]
"""


def exported_by_jax(stack, N):
    import jax
    from jax import export

    layers, _, _, batch = export.symbolic_shape(f"{N}, {D}, {D}, B")
    shapes = (layers, D, D), (layers, D), (batch, D)
    arrays = [jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes]
    return export.export(jax.jit(stack))(*arrays).serialize(vjp_order=1)


@pytest.mark.covers("one exported program for all N", of="jax_scan")
def test_a_file_of_jax(tmp_path):
    implementation = loaded("jax_scan")
    stack = stack_of(implementation)
    (tmp_path / "stack.jax").write_bytes(exported_by_jax(stack, "N"))
    for N in DEPTHS:
        assert_close("the file", served(tmp_path, RUN_JAX, N, 3), right(*problem(N, 3)))
    sizes = [len(exported_by_jax(stack, N)) for N in (*DEPTHS, 1024)]
    # places in the source, of which JAX writes those that it has not traced before
    assert max(sizes) - min(sizes) < 0.05 * min(sizes)


# torch: forwards alone, open in N; and a package of C++ that needs no Python.

RUN_TORCH = """
import torch
program = {load}
found = [program(*map(torch.tensor, (w, b, x)))]
"""
LOAD = {
    "torch.export": 'torch.export.load("stack.pt2").module()',
    "AOTInductor": 'torch._inductor.aoti_load_package("stack.pt2")',
}


def exported_by_torch(stack, N, path, how):
    import torch

    class Model(torch.nn.Module):
        def forward(self, w, b, x):
            return stack(w, b, x)

    depth, batch = torch.export.Dim("N", min=2), torch.export.Dim("B", min=2)
    example = tuple(map(torch.tensor, problem(N, 3)[:3]))
    program = torch.export.export(Model(), example, dynamic_shapes=({0: depth}, {0: depth}, {0: batch}))
    if how == "AOTInductor":
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    else:
        torch.export.save(program, path)
    return path.stat().st_size


@pytest.mark.covers("one exported program for all N", of="torch_compile")
@pytest.mark.parametrize("how", ["torch.export", pytest.param("AOTInductor", marks=pytest.mark.thorough)])
def test_a_file_of_torch(tmp_path, how):
    stack = stack_of(loaded("torch_compile"))
    small = exported_by_torch(stack, 3, tmp_path / "stack.pt2", how)
    for N in DEPTHS:
        found = served(tmp_path, RUN_TORCH.format(load=LOAD[how]), N, 5)
        assert_close("the file", found, right(*problem(N, 5))[:1])
    large = exported_by_torch(stack, 64, tmp_path / "of64.pt2", how)
    kept = [sum(a.nbytes for a in problem(N, 3)[:3]) for N in (3, 64)]  # the example, by torch.export alone
    more = kept[1] - kept[0] if how == "torch.export" else 0
    assert abs(large - small - more) < 0.01 * small


# TensorFlow: a SavedModel, whose gradient runs the layers again.

RUN_TF = """
import tensorflow as tf
model = tf.saved_model.load("model")
arrays = [*map(tf.constant, (w, b, x))]
with tf.GradientTape() as tape:
    tape.watch(arrays)
    y = model.stack(*arrays)
found = [y, *tape.gradient(y, arrays, dy)]
"""


@pytest.mark.covers("one exported program for all N", of="tf_while")
def test_a_file_of_tensorflow(tmp_path):
    stack = stack_of(loaded("tf_while"))
    import tensorflow as tf

    def save(N, path):
        specs = [tf.TensorSpec(shape, tf.float64) for shape in ([N, D, D], [N, D], [None, D])]
        model = tf.Module()
        model.stack = tf.function(stack, input_signature=specs, autograph=False)
        tf.saved_model.save(model, str(path))
        return (path / "saved_model.pb").stat().st_size

    save(None, tmp_path / "model")
    for N in DEPTHS:
        assert_close("the file", served(tmp_path, RUN_TF, N, 3), right(*problem(N, 3)))
    sizes = [save(N, tmp_path / f"of{N}") for N in (*DEPTHS, 1024)]
    assert max(sizes) - min(sizes) < 0.02 * min(sizes)
