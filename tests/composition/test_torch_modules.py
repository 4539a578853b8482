"""Modules of torch's own and of its users', scanned: values, gradients and training are those of the loop over them.

The loop is torch's, in float64. Programs stop short of Inductor, except in those tests that say so.
"""

from __future__ import annotations

import copy

import pytest

from tests.conftest import loaded
from tests.support.torch_modules import MODULES, block, close, loop, modules_of, torch

pytestmark = pytest.mark.torch_backend("aot_eager")
by_inductor = pytest.mark.torch_backend("inductor")
REAL = pytest.mark.parametrize("name", MODULES)


@pytest.fixture
def torch_compile():
    return loaded("torch_compile")


def test_two_modules_by_hand(torch_compile):
    """y = 2 x + 1, then 3 x + 2: 11 of 1, and what is in its parameters' gradients."""
    modules = [block("linear", weight, bias) for weight, bias in ((2.0, 1.0), (3.0, 2.0))]
    layer, stacked_params = torch_compile.from_modules(modules)
    y, ys = torch_compile.scan_layers(layer, stacked_params, torch().ones(1, 1))
    y.backward()
    assert (y.item(), ys) == (11, None)
    assert {name: a.grad.flatten().tolist() for name, a in stacked_params.items()} == {
        "weight": [3, 3],
        "bias": [3, 1],
    }


def gradients(y, wrt):
    return torch().autograd.grad(y.square().sum(), wrt)


def assert_is_the_loop(torch_compile, name, compiler=lambda run: run, **options):
    modules, (x, *given) = modules_of(name, 4)
    layer, stacked_params = torch_compile.from_modules(modules)
    y, _ = compiler(
        lambda params, x: torch_compile.scan_layers(lambda c, p: layer(c, p, *given), params, x, **options)
    )(stacked_params, x)
    names = [name for name, a in stacked_params.items() if a.requires_grad]
    found = gradients(y, [x, *given, *(stacked_params[name] for name in names)])
    right = loop(modules, x, *given)
    of_modules = [[dict(module.named_parameters())[name] for module in modules] for name in names]
    dx, *more = gradients(right, [x, *given, *(a for part in of_modules for a in part)])
    dparams = [torch().stack(more[i : i + 4]) for i in range(len(given), len(more), 4)]
    close([y, *found], [right, dx, *more[: len(given)], *dparams])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TransformerEncoderLayer", {}),
        ("TransformerEncoderLayer", {"remat": True}),
        ("TransformerDecoderLayer", {}),
        ("residual block", {}),
        ("residual block", {"unroll": 3}),
        ("residual block", {"remat": 2}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_loop(torch_compile, name, options):
    assert_is_the_loop(torch_compile, name, **options)


@by_inductor
def test_so_many_parameters_that_each_must_be_seen_to_have_as_many_rows(torch_compile):
    assert_is_the_loop(torch_compile, "TransformerEncoderLayer", remat=2)


@by_inductor
@REAL
@pytest.mark.thorough
def test_compiled_by_the_user(torch_compile, name):
    assert_is_the_loop(torch_compile, name, lambda run: torch().compile(run, fullgraph=True))


@by_inductor
def test_an_encoder_compiled_by_the_user(torch_compile):
    assert_is_the_loop(torch_compile, "TransformerEncoderLayer", torch().compile)


@by_inductor
@pytest.mark.parametrize(
    "name", ["residual block", *(pytest.param(name, marks=pytest.mark.thorough) for name in MODULES if name[0] == "T")]
)
def test_one_size_at_every_depth(torch_compile, name):
    def size(N, cotangent):
        modules, (x, *given) = modules_of(name, N)
        layer, stacked_params = torch_compile.from_modules(modules)

        def apply(params, x):
            return torch_compile.scan_layers(lambda c, p: layer(c, p, *given), params, x)[0]

        return torch_compile.graph_size(apply, stacked_params, x, cotangent=x if cotangent else None, memory=False)

    for cotangent in (False, True):
        sizes = [size(N, cotangent) for N in (2, 16)]
        assert sizes[0] == sizes[1]
        assert sizes[0]["loops"] == 1 + cotangent


# One module in their place.


@REAL
def test_twenty_steps_of_an_optimizer_are_those_of_the_loop(torch_compile, name):
    """Modules as one, and its parameters given to the optimizer; running statistics too are those of the loop."""
    modules, (x, *given) = modules_of(name, 3)
    stack, modules = torch_compile.scanned(modules), torch().nn.ModuleList(modules)
    losses = []
    for model, run in ((stack, stack), (modules, lambda *a: loop(modules, *a))):
        optimizer = torch().optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (run(x.detach(), *given) - 1).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    close(*losses)
    assert losses[0] < 0.9 * (loop(modules_of(name, 3)[0], x, *given) - 1).square().mean()
    close([*stack.state_dict().values()], [*modules.state_dict().values()])


def test_modules_as_one_in_a_program_of_the_users(torch_compile):
    """It is traced in one piece, writes its running statistics, and follows the mode that it is in."""
    modules, (x,) = modules_of("residual block", 3)
    stack, modules = torch_compile.scanned(modules), torch().nn.ModuleList(modules)
    compiled = torch().compile(stack, fullgraph=True, backend="aot_eager")
    for is_training in (True, False, True):
        stack.train(is_training), modules.train(is_training)
        found, right = compiled(x), loop(modules, x)
        wrt = [*stack.parameters()], [*modules.parameters()]
        dstack, each = gradients(found, wrt[0]), gradients(right, wrt[1])
        close([found, *dstack], [right, *(torch().stack(each[i :: len(dstack)]) for i in range(len(dstack)))])
        close([*stack.state_dict().values()], [*modules.state_dict().values()])


def test_the_state_dict_is_that_of_the_list_of_modules(torch_compile):
    """In a model, so with a prefix; it goes both ways, also for a tied weight and a statistic."""
    nn = torch().nn
    modules = nn.ModuleList(modules_of("residual block", 3)[0])
    own, list_of = nn.ModuleDict({"layers": torch_compile.scanned(modules)}), nn.ModuleDict({"layers": modules})
    assert [*own.state_dict()] == [*list_of.state_dict()]
    published = nn.ModuleDict({"layers": nn.ModuleList(modules_of("residual block", 3, seed=1)[0])}).state_dict()
    before = {name: array.clone() for name, array in published.items()}
    assert own.load_state_dict(published).missing_keys == []
    assert published.keys() == before.keys()
    for name, array in own.state_dict().items():
        assert torch().equal(array, before[name]), name
    list_of.load_state_dict(own.state_dict())
    assert all(torch().equal(a, before[name]) for name, a in list_of.state_dict().items())
    again = copy.deepcopy(own)
    again.load_state_dict(nn.ModuleDict({"layers": nn.ModuleList(modules_of("residual block", 3)[0])}).state_dict())
    assert not torch().equal(again.state_dict()["layers.1.up.weight"], own.state_dict()["layers.1.up.weight"])


def test_what_a_checkpoint_lacks_is_said_layer_by_layer(torch_compile):
    stack = torch_compile.scanned([block("linear", 2.0, 1.0), block("linear", 3.0, 2.0)])
    entries = stack.state_dict()
    entries |= {"2.bias": entries.pop("1.bias"), "0.weight": torch().zeros(2, 2)}
    with pytest.raises(RuntimeError) as caught:
        stack.load_state_dict(entries)
    for words in ('Missing key(s) in state_dict: "1.bias"', 'Unexpected key(s) in state_dict: "2.bias"'):
        assert words in str(caught.value)
    assert "0.weight: expected shape (1, 1), got (2, 2)" in str(caught.value)
    del entries["0.weight"]
    entries["1.weight"] = torch().full((1, 1), 7.0)
    stack.load_state_dict(entries, strict=False)
    assert stack.stacked_params["weight"].flatten().tolist() == [2, 7]


def test_training_mode_goes_to_all_layers(torch_compile):
    """Dropout is on in training, and each layer has a mask of its own."""
    modules = [block("dropping") for _ in range(3)]
    stack, x = torch_compile.scanned(modules), torch().ones(1, 1000)
    y = stack(x)
    assert set(y.unique().tolist()) == {0.0, 8.0}
    assert 60 < (y != 0).sum() < 200  # one in eight: with one mask for all layers it would be one in two
    assert torch().equal(stack.eval()(x), x)
    assert not torch().equal(stack.train()(x), x)


# What modules hold beside parameters of their own.


def test_statistics_come_out_as_ys(torch_compile):
    modules, (x,) = modules_of("residual block", 3)
    layer, stacked_params = torch_compile.from_modules(modules)
    for _ in range(2):
        y, ys = torch_compile.scan_layers(layer, stacked_params, x)
        stacked_params |= {name: array.detach() for name, array in ys.items()}
        right = loop(modules, x)
    close(y, right)
    assert set(ys) == {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    for name, array in ys.items():
        close(array, torch().stack([module.get_buffer(name) for module in modules]))
    for module in modules:
        module.eval()
    close(torch_compile.scan_layers(layer, stacked_params, x), (loop(modules, x), None))


def test_a_stack_without_memory_is_assigned_what_is_loaded(torch_compile):
    """As large models are loaded: made on "meta", given arrays as they come. 2 x + 1, then 3 x + 2."""
    nn, double = torch().nn, torch().float64
    entries = nn.ModuleList(block("linear", *numbers) for numbers in ((2.0, 1.0), (3.0, 2.0))).to(double).state_dict()
    with torch().device("meta"):
        stack = torch_compile.scanned([nn.Linear(1, 1) for _ in range(2)])
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1\.bias"'):
        stack.load_state_dict({name: entries[name] for name in [*entries][:3]}, assign=True)
    stack.load_state_dict(entries, assign=True)
    assert stack(torch().ones(1, 1, dtype=double)).item() == 11


def test_frozen_parameters_stay_frozen(torch_compile):
    modules, (x, *_) = modules_of("TransformerEncoderLayer", 3)
    for module in modules:
        module.linear1.requires_grad_(False)
    layer, stacked_params = torch_compile.from_modules(modules)
    frozen = {name for name, array in stacked_params.items() if not array.requires_grad}
    assert frozen == {"linear1.weight", "linear1.bias"}
    torch_compile.scan_layers(layer, stacked_params, x)[0].sum().backward()
    assert {name for name, array in stacked_params.items() if array.grad is None} == frozen
    stack = torch_compile.scanned(modules)
    assert {name.removeprefix("template.") for name, a in stack.named_parameters() if not a.requires_grad} == frozen


def test_a_parameter_of_all_modules_gets_its_gradient(torch_compile):
    modules = [block("linear", weight, 1.0) for weight in (2.0, 3.0)]
    modules[1].bias = modules[0].bias
    layer, stacked_params = torch_compile.from_modules(modules)
    assert [*stacked_params] == ["weight"]
    y, _ = torch_compile.scan_layers(layer, stacked_params, torch().ones(1, 1))
    y.backward()
    assert (y.item(), modules[0].bias.grad.tolist()) == (10, [4])
    stack = torch_compile.scanned(modules)
    assert dict(stack.named_parameters())["template.bias"] is modules[0].bias
    assert [*stack.state_dict()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    stack.load_state_dict({name: torch().full_like(a, 5) for name, a in stack.state_dict().items()})
    assert (modules[0].bias.item(), modules[0].weight.item()) == (5, 2)


def test_a_parameter_that_is_tied_within_a_module(torch_compile):
    """y = w w x in each of two layers, of 2 and 3: 36, and its derivatives 36 and 24."""
    modules = [block("tied", weight) for weight in (2.0, 3.0)]
    layer, stacked_params = torch_compile.from_modules(modules)
    y, _ = torch_compile.scan_layers(layer, stacked_params, torch().ones(1, 1))
    y.backward()
    (array,) = stacked_params.values()
    assert (y.item(), array.grad.flatten().tolist()) == (36, [36, 24])
    stack = torch_compile.scanned(modules)
    assert [*stack.state_dict()] == ["0.down.weight", "0.up.weight", "1.down.weight", "1.up.weight"]
    stack(torch().ones(1, 1)).backward()
    assert [a.grad.flatten().tolist() for a in stack.parameters()] == [[36, 24]]


def made(kind, weight):
    """w x of one number, with something of torch's around it."""
    module, utils = block("linear", weight, 0.0), torch().nn.utils.parametrizations
    if kind == "weight norm":  # a class of its own for each module
        return utils.weight_norm(module)
    if kind == "hook":
        module.register_forward_hook(lambda _module, _args, y: 5 * y)
    if kind == "constant":
        module.scales = [torch().tensor([1.0, 5.0])]
        module.register_forward_hook(lambda module, _args, y: y * module.scales[0][1])
    return module


@pytest.mark.parametrize(("kind", "factor"), [("weight norm", 1), ("hook", 25), ("constant", 25)])
def test_what_torch_has_around_a_module(torch_compile, kind, factor):
    """Of 2 and 3: 6, and its derivatives 3 and 2."""
    modules = [made(kind, weight) for weight in (2.0, 3.0)]
    for module in modules:
        next(module.parameters()).decays = False
    stack = torch_compile.scanned(modules)
    assert next(stack.parameters()).decays is False
    y = stack(torch().ones(1, 1))
    y.backward()
    weight = stack.stacked_params["parametrizations.weight.original0" if kind == "weight norm" else "weight"]
    torch().testing.assert_close(y.item(), 6.0 * factor)
    torch().testing.assert_close(weight.grad.flatten().tolist(), [3.0 * factor, 2.0 * factor])


BAD = {
    "an attribute": ("heads", "modules[1].self_attn.num_heads: expected 2 (that of modules[0]), got 4"),
    "its class": ("tanh", "modules[1]: expected TransformerEncoderLayer (that of modules[0]), got Tanh"),
    "its mode": ("eval", "modules[1].training: expected True (that of modules[0]), got False"),
    "frozen": ("frozen", "modules[1].linear1.weight.requires_grad: expected True (that of modules[0]), got False"),
    "shared by some": (
        "shared",
        "modules[1]['norm1.bias']: expected an array of its own, or one of all modules, got that of modules[0]",
    ),
    "a constant": ("scale", "modules[1].scale: expected array(1) (that of modules[0]), got array(2)"),
    "a parameter in a list": (
        "listed",
        "modules[0].weights: expected parameters and buffers by their names alone, got one of them in a container",
    ),
    "compiled": (
        "compiled",
        "modules[1].linear1: expected a module that is not compiled, got OptimizedModule; compile the stack",
    ),
    "scripted": (
        "scripted",
        "modules[1]: expected a module that is not compiled, got RecursiveScriptModule; compile the stack",
    ),
    "a hook of a parameter": (
        "hook",
        "modules[1].norm1.bias: expected a parameter without hooks, got one; register it on the stack",
    ),
    "a mark of a parameter": ("mark", "modules[1].norm1.bias.decays: expected False (that of modules[0]), got nothing"),
    "not built": (
        "lazy",
        "modules[1]: expected a layer that has been built, got LazyLinear without parameters; call it once",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_module_that_differs_is_named(torch_compile, what):
    how, words = BAD[what]
    modules = modules_of("TransformerEncoderLayer", 3)[0]
    if how == "heads":
        modules[1].self_attn.num_heads = 4
    elif how == "tanh":
        modules[1] = torch().nn.Tanh()
    elif how == "eval":
        modules[1].eval()
    elif how == "frozen":
        modules[1].linear1.weight.requires_grad_(False)
    elif how == "shared":
        modules[1].norm1.bias = modules[0].norm1.bias
    elif how == "scale":
        modules[0].scale, modules[1].scale, modules[2].scale = map(torch().tensor, (1, 2, 1))
    elif how == "listed":  # as an nn.GRU has them
        for module in modules:
            module.weights = [module.linear1.weight]
    elif how == "hook":
        modules[1].norm1.bias.register_hook(lambda gradient: 2 * gradient)
    elif how == "mark":
        modules[0].norm1.bias.decays = modules[2].norm1.bias.decays = False
    elif how == "compiled":
        modules[1].linear1 = torch().compile(modules[1].linear1)
    elif how == "scripted":
        modules[1] = torch().jit.script(torch().nn.Linear(1, 1))
    elif how == "lazy":
        modules[1] = torch().nn.LazyLinear(8)
    with pytest.raises((TypeError, ValueError)) as caught:
        torch_compile.from_modules(modules)
    assert str(caught.value) == words


def test_a_module_that_writes_another_buffer_is_refused(torch_compile):
    layer, stacked_params = torch_compile.from_modules([block("counting") for _ in range(2)])
    with pytest.raises(TypeError, match=r"layer: expected arrays from outside left as they are, got aten\.add_"):
        torch_compile.scan_layers(layer, stacked_params, torch().ones(1))
