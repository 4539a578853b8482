"""torch programs run where their arrays are, forwards and backwards: nothing of a stack is made on the CPU.

Seen on the device "meta", which every machine has: torch refuses to mix it with the CPU, as it does a GPU.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from implementations.check.dialect import flat, from_numpy, with_arrays
from reference.cases import SIZES, layer_carry, layer_params
from reference.shapes import HOLDS
from tests.conftest import loaded

N, NAME = 5, "torch_compile"
pytestmark = pytest.mark.torch_backend("eager")  # devices are checked where programs are captured
OPTIONS = ({"unroll": 2}, {"remat": 2, "unroll": 2, "reverse": True})


@pytest.fixture
def torch():
    loaded(NAME)
    import torch

    return torch


def on_meta(tree):
    arrays = from_numpy(loaded(NAME), tree)
    return with_arrays(arrays, [array.to("meta") for array in flat(arrays)])


def stack(layer):
    return layer_params(layer, 1, N, **SIZES[layer]), layer_carry(layer, 1, **SIZES[layer])


def assert_on_meta(*results):
    devices = [result.device.type for result in flat(results)]
    assert devices == ["meta"] * len(devices) != []


def results_and_gradients(torch, run, arrays):
    floats = [array.requires_grad_() for array in flat(arrays) if array.is_floating_point()]
    outputs = run(*arrays)
    results = [result for result in flat(outputs) if result.requires_grad]
    return outputs, torch.autograd.grad(results, floats, list(map(torch.ones_like, results)), allow_unused=True)


@pytest.mark.parametrize("layer", SIZES)
def test_every_layer(torch, layer):
    torch_compile = loaded(NAME)
    run = partial(torch_compile.scan_layers, torch_compile.LAYERS[layer])
    assert_on_meta(results_and_gradients(torch, run, on_meta(stack(layer))))


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(torch, options):
    torch_compile = loaded(NAME)
    run = partial(torch_compile.scan_layers, torch_compile.LAYERS["dense"], **options)
    assert_on_meta(results_and_gradients(torch, run, on_meta(stack("dense"))))


def test_every_transform(torch):
    torch_compile = loaded(NAME)
    layer, (params, carry) = torch_compile.LAYERS["dense"], on_meta(stack("dense"))
    batch = carry.expand(4, -1)
    tangents = (params, carry, None)
    assert_on_meta(
        torch_compile.vjp_layers(layer, params, carry, cotangents=(carry, None)),
        torch_compile.jvp_layers(layer, params, carry, tangents=tangents),
        torch_compile.vmap_layers(layer, params, batch),
        torch_compile.vmap_vjp_layers(layer, params, batch, cotangents=(batch, None)),
        torch_compile.hvp_layers(layer, lambda carry, _: (carry**2).sum(), params, carry, tangents=tangents),
    )


@pytest.mark.parametrize("hold", HOLDS)
def test_decoding(torch, hold):
    torch_compile = loaded(NAME)
    params, x = on_meta(stack("transformer_decoder"))
    cache = torch_compile.empty_cache(params, len(x), 9)
    assert_on_meta(torch_compile.decode(params, x, cache, 0, hold))


def test_recipes(torch):
    torch_compile = loaded(NAME)
    layer, (params, carry) = torch_compile.LAYERS["dense"], on_meta(stack("dense"))
    gates = on_meta(np.ones(N, np.float32))
    assert_on_meta(
        torch_compile.scan_layers(torch_compile.gated(layer), params, carry, gates),
        torch_compile.locate_nonfinite(layer, params, carry),
        torch_compile.clip_layers({"w": params}, 1.0),
    )


def test_arrays_are_made_where_from_numpy_puts_them(torch, monkeypatch):
    """A GPU, where torch sees one; here meta stands for it."""
    torch_compile = loaded(NAME)
    for module in ("edges", "layers", "recipes"):
        monkeypatch.setattr(f"torch_compile.{module}.DEVICE", "meta")
    assert_on_meta(
        torch_compile.from_numpy(np.ones(3)),
        torch_compile.from_numpy(np.ones(3, torch_compile.to_numpy(torch.ones(1, dtype=torch.bfloat16)).dtype)),
        torch_compile.init_layers("mlp", 0, N, **SIZES["mlp"]),
        torch_compile.layer_keys(0, N, (3,)),
    )


def test_what_is_made_on_the_cpu_is_refused(torch):
    """The control."""
    torch_compile = loaded(NAME)
    params, carry = on_meta(stack("dense"))
    with pytest.raises(RuntimeError, match="meta and cpu"):
        torch_compile.scan_layers(lambda y, w: (w @ y + torch.ones(y.shape), None), params, carry)
