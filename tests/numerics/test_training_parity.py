"""A small language model trains alike everywhere: 50 steps of AdamW, from the same weights, on the same text.

What is compared is the loss at every step and the weights at the end, within what `reference/error_bound.py` allows of
a run of many steps: in float64 about 1e-15. What users get wrong (`MUTANTS`) is far outside, in float32 too.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import flat, from_numpy, ops, to_numpy
from reference import training
from reference.arguments import leaves
from reference.error_bound import allowed_so_far, worst_so_far
from reference.stack import tree_map


def test_the_first_step_of_adamw_by_hand():
    """Corrected, both moments are those of the gradient alone: the step is its sign, whatever its size."""
    params, gradients = {"w": np.array([1.0, 1.0])}, {"w": np.array([-3.0, 0.02])}
    state = {name: {"w": np.zeros(2)} for name in "mv"}
    how = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "eps": 0.0, "weight_decay": 0.5}
    stepped, _ = training.adamw(params, gradients, state, 1, **how)
    np.testing.assert_allclose(stepped["w"], [1 + 0.1 - 0.1 * 0.5, 1 - 0.1 - 0.1 * 0.5], rtol=1e-12)


FEW = 10  # steps, where 50 would show no more


def check(who, losses, dtype):
    """These losses, of the first steps, are those of the reference as far as `dtype` goes."""
    exact, yardstick = (training.train(d).losses[: len(losses)] for d in ("float64", "float32"))
    assert losses.dtype == dtype, f"{who}: observed {losses.dtype}, allowed {dtype}"
    observed, allowed = worst_so_far(losses, exact), allowed_so_far(exact, yardstick, dtype)
    for step, (worst, limit) in enumerate(zip(observed, allowed, strict=True), 1):
        # so written that NaN fails
        assert worst <= limit, f"{who}, step {step}: observed a deviation of {worst:.3g}, allowed {limit:.3g}"


def run(implementation, dtype, steps=training.STEPS, **options):
    """(losses, params) of `train`, as NumPy arrays."""
    inputs = training.cast(training.init_params(), dtype), training.batches()[:steps]
    found = implementation.train(*from_numpy(implementation, inputs), **training.OPTIONS, **options)
    return to_numpy(implementation, found)


# The problem and the reference.


def test_the_text_is_learnt():
    losses = training.train("float64").losses
    chance = np.log(len(training.vocabulary()))
    assert abs(losses[0] - chance) < 0.5
    assert losses[-10:].mean() < 0.65 * chance
    batches = training.batches()
    assert batches.shape == (training.STEPS, training.B, training.T + 1)
    words = "".join(training.vocabulary()[token] for token in batches[0, 0])
    assert words in training.TEXT.read_text(encoding="utf-8")


def test_clipping_is_at_work_in_some_steps_and_not_in_others(monkeypatch):
    """In each layer, and in what is not stacked."""
    norms = []

    def clip_layers(stacked, max_norm, right=training._clip_layers):
        norms.append(training.layer_norms(stacked))
        return right(stacked, max_norm)

    monkeypatch.setattr(training, "_clip_layers", clip_layers)
    training.train.__wrapped__("float64")
    others, layers = (np.array(norms[i::2]) > training.OPTIONS["max_norm"] for i in (0, 1))
    assert others.shape == (training.STEPS, 1)
    assert layers.shape == (training.STEPS, training.N)
    for clipped in (others, layers):
        assert clipped.any(0).all()
        assert not clipped.all(0).any()


def test_the_gradient_is_that_of_the_loss():
    """By complex step, along a random direction in each array by itself: an error in one cannot hide in another."""
    params, batch = training.cast(training.init_params(), "float64"), training.batches()[0]
    loss, gradients = training.loss_and_gradients(params, batch)
    assert loss == pytest.approx(training.loss(params, batch), rel=1e-15)
    rng = np.random.default_rng(0)
    paths = [path for path, _ in leaves("", params)]
    assert paths == [path for path, _ in leaves("", gradients)]
    for i, (path, gradient) in enumerate(zip(paths, flat(gradients), strict=True)):
        direction = rng.standard_normal(gradient.shape)
        moved = flat(params)
        moved[i] = moved[i] + 1e-30j * direction
        rest = iter(moved)
        derivative = training.loss(tree_map(lambda _, rest=rest: next(rest), params), batch).imag / 1e-30
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(derivative - (gradient * direction).sum()) < 1e-13 * scale, path


def test_numpy_in_float32_stays_near():
    """The problem is tame: an error is not blown up on the way, so the bound is sharp."""
    exact, yardstick = training.train("float64").losses, training.train("float32").losses
    assert worst_so_far(yardstick, exact)[-1] < 1e-6
    assert yardstick.dtype == np.float32


# The frameworks.


def check_losses_and_weights(implementation, dtype):
    losses, params = run(implementation, dtype)
    who = f"{implementation.__name__}, {dtype}"
    check(who, losses, dtype)
    exact, yardstick = ({"params": training.train(d).params} for d in ("float64", "float32"))
    assert_trees(who, {"params": params}, exact, yardstick, dtype=dtype, stacked=())


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.thorough("torch_compile")
def test_losses_and_weights_in_float64(implementation):
    check_losses_and_weights(implementation, "float64")


def test_losses_and_weights_in_float32(implementation):
    """As users train: Inductor too, the one time that this file waits for it."""
    check_losses_and_weights(implementation, "float32")


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=pytest.mark.thorough(*names))
        for options, *names in (({"form": "unroll"},), ({"remat": True},), ({"remat": 2}, "torch_compile"))
    ],
    ids=str,
)
def test_other_forms_train_alike(implementation, options):
    check(f"{implementation.__name__}, {options}", run(implementation, "float64", FEW, **options)[0], "float64")


def test_what_cannot_be_trained_is_refused(implementation):
    for options, words in (
        ({"form": "loop"}, "form: expected scan or unroll, got 'loop'"),
        ({"form": "unroll", "remat": 2}, "remat: expected False without a scan, got 2"),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            implementation.train({}, [], **options)
        assert str(caught.value) == words


# The update alone: the loss is linear, so its gradient is whatever stands in the batch.

UPDATE = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.6, "eps": 0.03, "weight_decay": 0.3, "max_norm": 2.0}
LIKE = {
    "embedding": np.zeros((3, 2)),
    "layers": {"a": np.zeros((4, 2, 3)), "b": np.zeros((4, 5))},
    "norm": {"scale": np.zeros(2)},
    "head": np.zeros((2, 3)),
}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return tree_map(lambda array: rng.standard_normal(array.shape), LIKE)


def gradient_trees():
    """Of three steps: in each, one layer of four is far above the norm allowed, and one is below."""
    found = [random_tree(seed) for seed in (1, 2, 3)]
    for step, tree in enumerate(found):
        for array in tree["layers"].values():
            array[step] *= 100
            array[step - 1] *= 0.01
    return found


def numpy_update():
    """Losses before each step, and the last params."""
    params, losses = random_tree(0), []
    state = {name: tree_map(np.zeros_like, params) for name in "mv"}
    options = {name: value for name, value in UPDATE.items() if name != "max_norm"}
    for step, gradients in enumerate(gradient_trees(), 1):
        losses.append(sum((p * g).sum() for p, g in zip(flat(params), flat(gradients), strict=True)))
        clipped = training.clip(gradients, UPDATE["max_norm"])
        params, state = training.adamw(params, clipped, state, step, **options)
    return np.array(losses), params


@pytest.mark.torch_backend("aot_eager")
def test_the_update_is_that_of_numpy(implementation, monkeypatch):
    sum_of = ops(implementation.__name__).sum

    def linear(params, batch, **_):
        return sum(sum_of(p * g) for p, g in zip(flat(params), flat(batch), strict=True))

    monkeypatch.setattr(importlib.import_module(f"{implementation.__name__}.training"), "loss", linear)
    inputs = from_numpy(implementation, (random_tree(0), gradient_trees()))
    losses, params = to_numpy(implementation, implementation.train(*inputs, **UPDATE))
    expected_losses, expected = numpy_update()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-13)
    for (path, got), want in zip(leaves("", params), flat(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14, err_msg=path)


# What users get wrong, each as NumPy's own run with one thing changed.


def clip_whole_stack(stacked, max_norm):
    """One norm for all layers: a stack of gradients taken for the gradient of one parameter."""
    norm = np.sqrt(sum((array**2).sum() for array in flat(stacked)))
    return tree_map(lambda g: g * min(1, max_norm / norm), stacked)


def clip_each_array(stacked, max_norm):
    """A norm for each array of a layer, where the layer's own is meant."""
    return tree_map(lambda g: RIGHT_CLIP(g, max_norm), stacked)


RIGHT_CLIP = training._clip_layers


def first_batches(batches=training.batches):
    return batches()[:FEW]


def batches_backwards():
    return first_batches()[::-1]


def wrong_adamw(eps_inside=False, eps_before=False, coupled=False, uncorrected=False):
    """AdamW, written again, with a mistake."""

    def adamw(params, gradients, state, step, *, learning_rate, b1, b2, eps, weight_decay):
        if coupled:
            gradients = tree_map(lambda g, p: g + weight_decay * p, gradients, params)
        m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], gradients)
        v = tree_map(lambda v, g: b2 * v + (1 - b2) * g**2, state["v"], gradients)
        c1, c2 = (1, 1) if uncorrected else (1 - b1**step, 1 - b2**step)

        def stepped(p, m, v):
            root = np.sqrt(v / c2 + eps) if eps_inside else np.sqrt(v / c2) + eps * (c2**-0.5 if eps_before else 1)
            return p - learning_rate * (m / c1 / root + (0 if coupled else weight_decay) * p)

        return tree_map(stepped, params, m, v), {"m": m, "v": v}

    return adamw


MUTANTS = {
    "the norm of the whole stack": {"_clip_layers": clip_whole_stack},
    "the norm of each array": {"_clip_layers": clip_each_array},
    "eps inside of the root": {"adamw": wrong_adamw(eps_inside=True)},
    "eps before the correction, as in Keras": {"adamw": wrong_adamw(eps_before=True)},
    "weight decay in the gradient": {"adamw": wrong_adamw(coupled=True)},
    "moments that are not corrected": {"adamw": wrong_adamw(uncorrected=True)},
    "batches in another order": {"batches": batches_backwards},
}


def changed(monkeypatch, change):
    """The losses of NumPy's first steps in float64, and the update, with these functions in place of the right ones."""
    for name, function in {"batches": first_batches, **change}.items():
        monkeypatch.setattr(training, name, function)
    losses, update = training.train.__wrapped__("float64").losses, numpy_update()
    monkeypatch.undo()
    return losses, update


def test_adamw_written_again_is_right_without_a_mistake(monkeypatch):
    """The control of the mutants."""
    check("control", changed(monkeypatch, {"adamw": wrong_adamw()})[0], "float64")


@pytest.mark.parametrize("name", MUTANTS)
def test_what_users_get_wrong_is_caught(monkeypatch, name):
    losses, (_, params) = changed(monkeypatch, MUTANTS[name])
    for dtype in ("float64", "float32"):
        with pytest.raises(AssertionError, match="observed a deviation"):
            check(name, losses.astype(dtype), dtype)
    if "batches" not in MUTANTS[name]:
        _, expected = numpy_update()
        worst = [abs(got - want).max() for got, want in zip(flat(params), flat(expected), strict=True)]
        assert max(worst) > 1e-3
