"""What the READMEs show is what runs: their blocks of code, and every piece of code in the table of three languages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from implementations import NAMES
from implementations.check.comparator import assert_close
from implementations.check.dialect import from_numpy, ops, pullback, to_numpy
from reference import training
from reference.stack import apply_layers, apply_layers_vjp, run_layers, run_layers_vjp, tree_map
from tests.conftest import loaded
from tests.support.modules import affine, weights

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("*/README.md")))}
README = TEXTS[ROOT / "README.md"]
BLOCKS = [code for text in TEXTS.values() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
WEIGHTS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], np.float32)
START = np.array([3, 4], np.float32)
FIRST = {"jax_scan": "lax.scan(l", "torch_compile": "y.new_empty(0)", "tf_while": "tf.while_loop("}  # words of a block
N, d, STEP = 5, 3, 1e-30  # the square of the complex step is below the last bit of any result
_rng = np.random.default_rng(0)
W, X, TX, B = _rng.standard_normal((N, d, d)), *_rng.standard_normal((3, d))
quick = pytest.mark.torch_backend("eager")


def assert_shown(implementation, shown, right):
    assert_close(implementation.__name__, to_numpy(implementation, shown), right)


def block(words: str) -> str:
    """The one block of code with `words` in it."""
    (found,) = [code for code in BLOCKS if words in code]
    return found


def run(code: str, **names):
    """`code` from a file of its own, where TensorFlow's autograph finds it, and what it has defined."""
    file = Path(FOLDER.name) / f"block{len(list(Path(FOLDER.name).iterdir()))}.py"
    file.write_text(code)
    namespace: dict = dict(names)
    exec(compile(code, file, "exec"), namespace)
    return SimpleNamespace(**{name: value for name, value in namespace.items() if not name.startswith("__")})


FOLDER = tempfile.TemporaryDirectory()


def test_definition():
    assert run(BLOCKS[0]).apply_layers(WEIGHTS, START).tolist() == [4, 3]


@pytest.mark.parametrize("name", NAMES)
def test_stack_in_each_framework(name):
    implementation = loaded(name)
    y = run(block(FIRST[name])).stack(*map(implementation.from_numpy, (WEIGHTS, START)))
    assert implementation.to_numpy(y).tolist() == [4, 3]


def test_definition_is_the_reference():
    """The loop on the first screen and the oracle's have the same statements; the oracle's product rounds bfloat16."""
    (function,) = ast.parse(BLOCKS[0]).body
    assert [type(statement) for statement in function.body] == [ast.Assign, ast.For, ast.Return]


def test_every_block_is_run():
    """A block of Python in the README is one that a test here asks for, by these words."""
    tested = [
        *FIRST.values(),
        *LAYERS.values(),
        *RECIPES,
        "vjp_layers",
        "empty_cache",
        "stacks.train",
        "export",
        "make_mesh",
        "stacks.scanned",
    ]
    assert [code for code in BLOCKS[1:] if not any(words in code for words in tested)] == []


# Any layer.

PARAMS = {"w": W / 2, "b": np.stack([B] * N)}
LAYERS = {
    "jax_scan": "jax.grad(loss)",
    "torch_compile": "# loss(params, x).backward()",
    "tf_while": "tape.gradient(loss",
}


def make_layer(o):
    def layer(carry, params):
        h = o.tanh(o.matvec(params["w"], carry) + params["b"])
        return carry + h, h

    return layer


def layer_vjp(carry, params, dcarry, dh):
    """The derivative of `make_layer`, by hand."""
    dsum = (dcarry + dh) * (1 - np.tanh(params["w"] @ carry + params["b"]) ** 2)
    return dcarry + params["w"].T @ dsum, {"w": np.outer(dsum, carry), "b": dsum}


def gradients(params, x, cotangents):
    """(dparams, dx, None) for cotangents of (carry, ys)."""
    return run_layers_vjp(make_layer(ops("numpy")), layer_vjp, params, x, cotangents=cotangents)[1]


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_any_layer(name):
    implementation = loaded(name)
    params, x = from_numpy(implementation, (PARAMS, X))
    shown = run(block(LAYERS[name]))
    if name == "torch_compile":
        for array in params.values():
            array.requires_grad_()
        run("loss(params, x).backward()", loss=shown.loss, params=params, x=x)
        gradient = {key: array.grad for key, array in params.items()}
    else:
        gradient = shown.gradient(params, x)
    y, hs = run_layers(make_layer(ops("numpy")), PARAMS, X)
    assert_shown(implementation, gradient, gradients(PARAMS, X, (2 * y, np.ones_like(hs)))[0])


def test_many_devices():
    """In a process of its own: their number is fixed before JAX starts."""
    loaded("jax_scan")
    check = """
import jax
params, x = init_layers("mlp", 0, 12, d=16, f=64), jax.numpy.ones((8, 16))
right, _ = scan_layers(LAYERS["mlp"], params, x)
assert len(stack(params, x).addressable_shards) == 8
assert abs(jax.device_get(stack(params, x)) - right).max() < 1e-4 * abs(right).max()
"""
    run = subprocess.run([sys.executable, "-c", block("make_mesh") + check], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def given(implementation):
    """What the blocks about `stacks` take as given."""
    o = ops(implementation.__name__)
    rng = np.random.default_rng(1)
    arrays = {
        "params": PARAMS,
        "x": X,
        "tparams": {"w": rng.standard_normal(W.shape), "b": rng.standard_normal(PARAMS["b"].shape)},
        "tx": TX,
        "dcarry": TX,
        "dys": rng.standard_normal((N, d)),
        "batch": np.stack([X, TX]),
        "dcarries": np.stack([TX, X]),
        "b": B,
        "gates": np.array([1.0, 1, 1, 0, 0]),
    }
    here = {name: from_numpy(implementation, tree) for name, tree in arrays.items()}
    here |= {"stacks": implementation, "layer": make_layer(o), "N": N, "d": d}
    here |= {"repeat": o.shared, "loss": lambda carry, ys: o.sum(carry**2) / 2}
    return arrays, here


@quick
def test_derivatives_and_batches(implementation):
    arrays, here = given(implementation)
    shown = run(block("vjp_layers"), **here)
    layer, a, zero = make_layer(ops("numpy")), SimpleNamespace(**arrays), np.zeros((N, d))
    moved = {key: PARAMS[key] + 1j * STEP * a.tparams[key] for key in PARAMS}, X + 1j * STEP * a.tx

    def gradient(params, x):
        return gradients(params, x, (run_layers(layer, params, x)[0], zero))

    def derivative(tree):
        return tree_map(lambda array: array.imag / STEP, tree)

    assert_shown(implementation, (shown.dparams, shown.dx, None), gradients(PARAMS, X, (a.dcarry, a.dys)))
    assert_shown(implementation, (shown.tcarry, shown.tys), derivative(run_layers(layer, *moved)))
    assert_shown(implementation, (shown.gradient, shown.product), (gradient(PARAMS, X), derivative(gradient(*moved))))
    members = [run_layers(layer, PARAMS, x) for x in a.batch]
    assert_shown(implementation, (shown.carries, shown.yss), tuple(map(np.stack, zip(*members, strict=True))))
    each = [gradients(PARAMS, x, (ct, zero))[0] for x, ct in zip(a.batch, a.dcarries, strict=True)]
    assert_shown(implementation, shown.dparams_each, {key: np.stack([g[key] for g in each]) for key in PARAMS})


@quick
def test_decoding_one_more_token(implementation):
    B, T = 2, 5
    sequence = from_numpy(implementation, np.random.default_rng(0).standard_normal((B, T, 64)).astype(np.float32))
    shown = run(block("empty_cache"), stacks=implementation, N=3, B=B, T=T, sequence=sequence)
    y, last = (implementation.to_numpy(array) for array in (shown.y, shown.last))
    np.testing.assert_allclose(last, y[:, -1:], rtol=1e-4, atol=1e-5)
    assert abs(y - implementation.to_numpy(sequence)).max() > 1


@quick
def test_training_is_called_as_shown(implementation):
    weights, batches = from_numpy(implementation, (training.init_params(), training.batches()[:2]))
    shown = run(block("stacks.train"), stacks=implementation, weights=weights, batches=batches)
    losses = implementation.to_numpy(shown.losses)
    np.testing.assert_allclose(losses, training.train("float64").losses[:2], rtol=1e-5)


# Recipes.

RECIPES = ("add_shared", "with_dropout", "stacks.gated", "locate_nonfinite")


@quick
def test_shared_parameter(implementation):
    _, here = given(implementation)
    shown = run(block("add_shared"), **here)
    layer = make_layer(ops("numpy"))
    assert_shown(implementation, (shown.carry, shown.ys), run_layers(lambda c, p: layer(c + B, p), PARAMS, X))


@quick
def test_dropout(implementation):
    """It is the layer's result, less what the masks drop: here replayed by hand."""
    _, here = given(implementation)
    shown = run(block("with_dropout"), **here)
    again = run(block("with_dropout"), **here)
    unrolled = run(block("with_dropout").replace("scan_layers", "unroll_layers"), **here)
    carry = implementation.to_numpy(shown.carry)
    np.testing.assert_array_equal(carry, implementation.to_numpy(again.carry))
    np.testing.assert_allclose(carry, implementation.to_numpy(unrolled.carry), rtol=1e-12)


@quick
def test_gates(implementation):
    _, here = given(implementation)
    shown = run(block("stacks.gated"), **here)
    first = {key: array[:3] for key, array in PARAMS.items()}
    assert_shown(implementation, shown.carry, run_layers(make_layer(ops("numpy")), first, X)[0])
    broken = PARAMS["b"].copy()
    broken[4, 0] = np.nan  # of a layer behind a closed gate: it is computed all the same
    here["params"] = here["params"] | {"b": implementation.from_numpy(broken)}
    assert np.isnan(implementation.to_numpy(run(block("stacks.gated"), **here).carry)).any()


@quick
def test_where_the_nan_is(implementation):
    _, here = given(implementation)
    broken = PARAMS["b"].copy()
    broken[2, 1] = np.nan
    assert implementation.to_numpy(run(block("locate_nonfinite"), **here).i) == -1
    here["params"] = here["params"] | {"b": implementation.from_numpy(broken)}
    assert implementation.to_numpy(run(block("locate_nonfinite"), **here).i) == 2


def test_one_exported_program():
    implementation = loaded("jax_scan")
    shown = run(block("export.symbolic_shape"))
    for layers in (1, 2, 3):
        weights = np.concatenate([WEIGHTS, WEIGHTS])[:layers]
        y = shown.program.call(*map(implementation.from_numpy, (weights, START)))
        assert implementation.to_numpy(y).tolist() == apply_layers(weights, START).tolist()


# From modules to a file.


def modules_of(implementation):
    return [affine(implementation, one["w"], one["b"]) for one in weights(3)]


def loop_of(implementation, modules, x):
    for module in modules:
        x = module(x)
    return implementation.to_numpy(x.detach() if hasattr(x, "detach") else x)


@quick
def test_modules_to_a_stack_and_back(implementation):
    x = implementation.from_numpy(np.ones((2, 4)))
    modules = modules_of(implementation)
    shown = run(block("stacks.scanned"), stacks=implementation, modules=modules, x=x)
    right = loop_of(implementation, modules, x)
    y = shown.y.detach() if hasattr(shown.y, "detach") else shown.y
    assert_close("as one", implementation.to_numpy(y), right)
    assert shown.ys is None
    assert_close("back", loop_of(implementation, shown.modules, x), right)


SHIPPED = {"jax_scan": "program.serialize", "torch_compile": "torch.export.save", "tf_while": "model.export"}


@quick
@pytest.mark.parametrize("name", NAMES)
def test_modules_to_a_trained_saved_and_served_stack(name, tmp_path):
    """The block as it stands, at most 20 lines of it; then what its last comment says."""
    implementation = loaded(name)
    code = block(SHIPPED[name])
    assert len([line for line in code.splitlines() if line]) <= 20
    x, target = from_numpy(implementation, (np.ones((2, 4)), np.zeros((2, 4))))
    modules, file = modules_of(implementation), tmp_path / "stack.pt2"
    shown = run(code, modules=modules, x=x, target=target, file=file)
    if name == "jax_scan":
        from jax import export

        served = export.deserialize(bytearray(file.read_bytes())).call(x)
        modules = shown.modules
    elif name == "torch_compile":
        import torch

        served = torch.export.load(file).module()(x).detach()
        torch.nn.ModuleList(modules).load_state_dict(torch.load(tmp_path / "stack.pt"))
    else:
        import tensorflow as tf

        model = tf.saved_model.load(str(file))  # which holds the variables that serve reads
        served = model.serve(x)
    trained = loop_of(implementation, modules, x)
    assert_close(name, implementation.to_numpy(served), trained)
    assert (trained**2).sum() < 0.9 * (loop_of(implementation, modules_of(implementation), x) ** 2).sum()


def test_the_frameworks_compilers_take_a_stack_as_they_come(implementation):
    """The sentence's code, by the real compilers: the value, and the gradient from outside."""
    name = implementation.__name__
    sentence = re.search(r"without an option: (.*?)\.\n\n", README, re.DOTALL)[1]  # type: ignore[index]
    (code,) = (code for code in re.findall(r"`([^`]+)`", sentence) if code.startswith(LANGUAGES[name]))
    weights, x = from_numpy(implementation, (W, X))

    def loss(weights, x):
        return ops(name).sum(implementation.scan_apply_layers(weights, x) ** 2) / 2

    compiled = evaluators()[name](code, {"weights": weights, "x": x, "loss": loss}, "")
    value, gradients = pullback(implementation, compiled, [W, X], np.float64(1))
    right = apply_layers(W, X)
    assert_shown(implementation, from_numpy(implementation, value), (right**2).sum() / 2)
    assert_shown(implementation, from_numpy(implementation, list(gradients)), [*apply_layers_vjp(W, X, right)[1:]])


LANGUAGES = {"jax_scan": "jax.", "torch_compile": "torch.", "tf_while": "tf."}


# The same thing in three languages.

ROW = re.compile(r"^\| ([\w ]+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
TABLE = {what: cells for what, *cells in ROW.findall(README.partition("in three languages")[2].partition("\n## ")[0])}
CODE = {
    (what, name): re.findall(r"`([^`]+)`", cell)
    for what, cells in TABLE.items()
    for name, cell in zip(NAMES, cells, strict=True)
}
TWEIGHTS = np.random.default_rng(2).standard_normal(W.shape)
RIGHT = {
    "loop": lambda: apply_layers(W, X),
    "ys": lambda: np.stack([apply_layers(W[: i + 1], X) for i in range(N)]),
    "reverse": lambda: apply_layers(W[::-1], X),
    "unroll": lambda: apply_layers(W, X),
    "remat": lambda: apply_layers(W, X),
    "batching": lambda: np.stack([apply_layers(W, X), apply_layers(W, TX)]),
    "reverse mode": lambda: apply_layers_vjp(W, X, apply_layers(W, X))[1],
    "forward mode": lambda: apply_layers(W + 1j * STEP * TWEIGHTS, X + 1j * STEP * TX).imag / STEP,
    "compiler": lambda: apply_layers(W, X),
}
SETTINGS = {
    "xs",
    "dynamic depth",
    "float64",
    "full float32 products",
}  # rows whose code runs, and returns no such thing


def test_table_is_tried_in_full():
    """Nothing in it but words and code that one of the tests below runs."""
    assert set(TABLE) - {"carry"} == set(RIGHT) | SETTINGS
    assert all(CODE[what, "jax_scan"] for what in TABLE)


@quick
@pytest.mark.parametrize("what", [what for what in TABLE if what != "carry"])
def test_row_of_the_table(implementation, what):
    """The first piece of code in each cell."""
    name = implementation.__name__
    if not CODE[what, name]:
        pytest.skip("words only")
    weights, x, tweights, tx, batch = from_numpy(implementation, (W, X, TWEIGHTS, TX, np.stack([X, TX])))
    names = {"weights": weights, "x": x, "tweights": tweights, "tx": tx, "batch": batch, "d": d, "w": weights[0]}
    names["stack"] = implementation.scan_apply_layers
    names["loss"] = lambda weights, x: ops(name).sum(implementation.scan_apply_layers(weights, x) ** 2) / 2
    result = evaluators()[name](CODE[what, name][0], names, what)
    if what in RIGHT:
        assert_shown(implementation, result, RIGHT[what]())


def evaluators():
    return {"jax_scan": evaluate_jax, "torch_compile": evaluate_torch, "tf_while": evaluate_tf}


def evaluate_jax(code, names, _):
    import jax
    from jax import export, lax
    from jax import numpy as jnp

    names |= {"jax": jax, "lax": lax, "jnp": jnp, "export": export}
    names |= {"body": lambda c, w: (w @ c, None), "body_y": lambda c, w: (w @ c, w @ c)}
    return eval(code, names)


def evaluate_torch(code, names, _):
    import torch
    from torch._higher_order_ops.scan import scan

    names |= {"torch": torch, "scan": scan}
    names |= {"body": lambda c, w: (w @ c, c.new_empty(0)), "body_y": lambda c, w: (w @ c, (w @ c).clone())}
    return eval(code, names)


def evaluate_tf(code, names, what):
    import tensorflow as tf

    weights, x = names["weights"], names["x"]
    product = tf.linalg.matvec

    def step_y(i, y, ys):
        return i + 1, product(weights[i], y), ys.write(i, product(weights[i], y))

    names |= {"tf": tf, "cond": lambda i, y: i < N, "cond_y": lambda i, y, ys: i < N, "step_y": step_y, "i": 0}
    names |= {"step": lambda i, y: (i + 1, product(weights[i], y)), "ys": tf.TensorArray(tf.float64, N)}
    if what == "reverse mode":
        with tf.GradientTape() as names["tape"]:
            names["tape"].watch(weights)
            return eval(code, names)
    if what == "forward mode":

        @tf.function(autograph=False)
        def forward(weights, x, tweights, tx):
            with tf.autodiff.ForwardAccumulator((weights, x), (tweights, tx)) as accumulator:
                return eval(code, names | {"accumulator": accumulator, "weights": weights, "x": x})

        return forward(weights, x, names["tweights"], names["tx"])
    return eval(code, names)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.parent.name)
def test_links_and_targets_exist(path):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXTS[path]):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", TEXTS[path], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_it_is_read_in_one_sitting():
    """Its own length, and those of the files that it sends a reader to."""
    assert len(README.splitlines()) <= 260
    order = README.partition("## Read in this order")[2].partition("##")[0]
    lengths = re.findall(r"\]\(([\w/]+\.py)\)\s+\((\d+)(?: lines)?\)", order)
    assert len(lengths) == 13
    assert lengths == [(path, str(len((ROOT / path).read_text().splitlines()))) for path, _ in lengths]
