"""Layers of Hugging Face's transformers, scanned as they are: in the environment of `make peers`, which has them."""

from __future__ import annotations

import pytest

from tests.conftest import loaded
from tests.support.torch_modules import close, torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch_backend("aot_eager")
MODULES = ("BertLayer", "LlamaDecoderLayer")


def modules_of(name, N):
    """N layers in float64, a carry, and what all layers are given beside it."""
    torch().manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": N}
    if name == "BertLayer":
        from transformers.models.bert.modeling_bert import BertLayer

        config = transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        layers, given = [BertLayer(config, i) for i in range(N)], {}
    else:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        config = transformers.LlamaConfig(**sizes, num_key_value_heads=2)
        layers = [LlamaDecoderLayer(config, i) for i in range(N)]
        x, positions = torch().zeros(2, 5, 16, dtype=torch().float64), torch().arange(5)[None]
        given = {"position_embeddings": LlamaRotaryEmbedding(config)(x, positions)}
    config._attn_implementation = "eager"
    for layer in layers:
        layer.double()
        for part in layer.modules():  # which counts the layers, for a cache
            if hasattr(part, "layer_idx"):
                part.layer_idx = 0
    return layers, torch().randn(2, 5, 16, dtype=torch().float64, requires_grad=True), given


def output(result):
    return result[0] if isinstance(result, tuple) else result


def loop(modules, x, given):
    for module in modules:
        x = output(module(x, **given))
    return x


def stack_of(torch_compile, modules, given):
    layer, stacked_params = torch_compile.from_modules(modules)

    def one(carry, params):
        new_carry, y = layer(carry, params, **given)
        return output(new_carry), y

    return lambda params, x: torch_compile.scan_layers(one, params, x)[0], stacked_params


@pytest.mark.parametrize("name", MODULES)
def test_values_gradients_and_size(name):
    torch_compile = loaded("torch_compile")
    modules, x, given = modules_of(name, 4)
    stack, params = stack_of(torch_compile, modules, given)
    y, right = stack(params, x), loop(modules, x, given)
    found = torch().autograd.grad(y.square().sum(), [x, *params.values()])
    of_modules = [[dict(module.named_parameters())[name] for module in modules] for name in params]
    dx, *more = torch().autograd.grad(right.square().sum(), [x, *(a for part in of_modules for a in part)])
    close([y, *found], [right, dx, *(torch().stack(more[i : i + 4]) for i in range(0, len(more), 4))])
    sizes = []
    for N in (2, 5, 16):
        modules, x, given = modules_of(name, N)
        stack, params = stack_of(torch_compile, modules, given)
        sizes.append(torch_compile.graph_size(stack, params, x, cotangent=x.detach(), memory=False))
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0]["loops"] == 2


@pytest.mark.parametrize("name", MODULES)
def test_twenty_steps_of_adamw_are_those_of_the_loop(name):
    torch_compile = loaded("torch_compile")
    modules, x, given = modules_of(name, 3)
    stack, params = stack_of(torch_compile, modules, given)
    losses, first = [], (loop(modules, x.detach(), given) - 1).square().mean().item()
    for parameters, run in (
        ([*params.values()], lambda: stack(params, x.detach())),
        (torch().nn.ModuleList(modules).parameters(), lambda: loop(modules, x.detach(), given)),
    ):
        optimizer = torch().optim.AdamW(parameters, lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (run() - 1).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    close(*losses)
    assert losses[0] < 0.9 * first


def test_another_number_of_heads_is_refused():
    torch_compile = loaded("torch_compile")
    modules, _, _ = modules_of("BertLayer", 2)
    modules[1].attention.self.num_attention_heads = 2
    with pytest.raises((TypeError, ValueError), match=r"modules\[1\].*num_attention_heads: expected 4"):
        torch_compile.from_modules(modules)
