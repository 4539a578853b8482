"""Layers of Keras, scanned: values, gradients and training are those of the loop over them, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import loaded
from tests.support.keras_modules import kinds, linear, loop, modules_of
from tests.support.outside import forms


@pytest.fixture
def tf_while():
    pytest.importorskip("keras")
    return loaded("tf_while")


def test_two_modules_by_hand(tf_while):
    """y = 2 x + 1, then 3 x + 2: 11 of 1, and what is in its parameters' gradients."""
    import tensorflow as tf

    layer, stacked_params = tf_while.from_modules([linear(2.0, 1.0), linear(3.0, 2.0)])
    with tf.GradientTape() as tape:
        y, ys = tf_while.scan_layers(layer, stacked_params, tf.ones([1, 1]))
    gradient = tape.gradient(y, stacked_params)
    assert (float(y[0, 0]), ys) == (11, None)
    assert {name: np.ravel(a).tolist() for name, a in gradient.items()} == {"kernel": [3, 3], "bias": [3, 1]}


def close(found, right):
    """Equal to float64's last digits: both are the same operations on the same numbers."""
    import tensorflow as tf

    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def names(module):
    """Of a module's trainable variables, as its stack has them, in the order in which Keras has the variables."""
    from tf_while.modules import _arrays

    found = {id(variable): name for name, variable in _arrays(module).items()}
    return [found[id(variable)] for variable in module.trainable_variables]


def gradients(run, wrt, *watched):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(watched)
        y = run()
        loss = tf.reduce_sum(y**2)
    return y, *tape.gradient(loss, (wrt, watched))


@pytest.mark.parametrize(
    ("name", "form", "options"),
    [
        ("encoder", "as it stands", {}),
        ("encoder", "tf.function", {"remat": True}),
        ("encoder", "XLA", {}),
        ("decoder", "as it stands", {"remat": 2}),
        ("decoder", "tf.function", {}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_loop(tf_while, name, form, options):
    import tensorflow as tf

    modules, arrays = modules_of(name, 4)
    layer, stacked_params = tf_while.from_modules(modules)
    wanted = [stacked_params[name] for name in names(modules[0])]

    def stack(x, *given):
        run = lambda c, p: layer(c, p, *given)  # noqa: E731
        return gradients(lambda: tf_while.scan_layers(run, stacked_params, x, **options)[0], wanted, x, *given)

    y, dparams, dx = forms()[form](stack)(*arrays)
    right, each, dright = gradients(
        lambda: loop(modules, *arrays), [module.trainable_variables for module in modules], *arrays
    )
    close([y, *dx], [right, *dright])
    close(dparams, [tf.stack(parts) for parts in zip(*each, strict=True)])


@pytest.mark.parametrize("name", ["encoder", pytest.param("decoder", marks=pytest.mark.thorough)])
def test_one_size_at_every_depth(tf_while, name):
    import tensorflow as tf

    def size(N, cotangent):
        modules, (x, *given) = modules_of(name, 1)
        layer, stacked_params = tf_while.from_modules(modules)

        def apply(params, x):
            return tf_while.scan_layers(lambda c, p: layer(c, p, *given), params, x)[0]

        params = {key: tf.repeat(array.value, N, axis=0) for key, array in stacked_params.items()}
        return tf_while.graph_size(apply, params, x, cotangent=x if cotangent else None, memory=False)

    for cotangent in (False, True):
        # zeros of fewer than 1000 elements are one operation, and the biases of few layers have fewer
        sizes = [size(N, cotangent) for N in (128, 1024)]
        assert sizes[0] == sizes[1]
        assert sizes[0]["loops"] == 1 + cotangent


def test_twenty_steps_of_an_optimizer_are_those_of_the_loop(tf_while):
    """With running statistics, and with dropout: its seeds are variables, so that the masks are the loop's."""
    import keras
    import tensorflow as tf

    modules, (x,) = modules_of("encoder", 3, rate=0.2, statistics=True)
    stack = tf_while.scanned(modules)
    before = tf_while.from_modules(modules)[1]
    losses = []
    for model, variables in ((stack, stack.trainable_variables), (lambda x, **o: loop(modules, x, **o), None)):
        variables = variables or [v for module in modules for v in module.trainable_variables]
        optimizer = keras.optimizers.AdamW(1e-2)
        for _ in range(20):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - 1) ** 2)
            optimizer.apply(tape.gradient(loss, variables), variables)
        losses.append(loss)
    close(*losses)
    after = tf_while.from_modules(modules)[1]
    assert {key for key, array in after.items() if np.any(array != before[key])} == {*after}  # each has moved
    close(stack.stacked_params, {key: array.value for key, array in after.items()})
    close(stack(x), loop(modules, x))  # not in training


def test_a_keras_model_with_a_stack_in_it_trains(tf_while):
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    modules, x = [keras.layers.Dense(4, "tanh", dtype="float64") for _ in range(3)], tf.random.normal([6, 4])
    for module in modules:
        module(x)
    models = [keras.Sequential([keras.Input((4,)), *layers]) for layers in ([tf_while.scanned(modules)], modules)]
    for model in models:
        model.compile("adam", "mse")
        model.fit(x, 0 * x, batch_size=2, epochs=2, shuffle=False, verbose=0)
    close(*(model(x) for model in models))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_model_with_a_stack_in_it_is_saved_whole(tf_while, tmp_path, is_frozen):
    """And is what it was, backwards, in training too: the same masks of dropout, the same statistics."""
    import keras

    modules, (x,) = modules_of("encoder", 3, rate=0.2, statistics=True)
    stack = tf_while.scanned(modules, reverse=True)
    stack.trainable = not is_frozen
    model = keras.Sequential([keras.Input(x.shape[1:], dtype="float64"), stack])
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    known = {"Scanned": tf_while.modules.scanned_class(), "Encoder": kinds()["encoder"]}
    read = keras.models.load_model(tmp_path / "model.keras", custom_objects=known)
    for training in (False, True, False):
        close(read(x, training=training), model(x, training=training))
    assert len(read.trainable_variables) == len(model.trainable_variables) == (0 if is_frozen else 16)
    assert read.layers[0].name == stack.name
    with keras.saving.custom_object_scope(known):
        clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    close(clone(x, training=True), model(x, training=True))


def test_what_a_module_writes_comes_out_as_ys(tf_while):
    """Also what is only drawn in training, in layers that are not told of it by their module."""
    modules, (x,) = modules_of("encoder", 3, rate=0.2, statistics=True)
    layer, stacked_params = tf_while.from_modules(modules)
    for _ in range(2):
        y, ys = tf_while.scan_layers(lambda c, p: layer(c, p, training=True), stacked_params, x)
        stacked_params |= ys
        right = loop(modules, x, training=True)
    close(y, right)
    seeds = {"attention.dropout_layer.seed_generator.state", "dropout.seed_generator.state"}
    assert {*ys} == seeds | {"norms.0.moving_mean", "norms.0.moving_variance"}
    close(ys["norms.0.moving_mean"], np.stack([module.norms[0].moving_mean for module in modules]))
    assert tf_while.scan_layers(layer, stacked_params, x)[1] is None


def test_a_variable_of_all_modules_gets_its_gradient(tf_while):
    import keras
    import tensorflow as tf

    shared = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    modules = [keras.Sequential([keras.Input((1,)), shared, linear(weight, 0.0)]) for weight in (2.0, 3.0)]
    layer, stacked_params = tf_while.from_modules(modules)
    assert len(stacked_params) == 2
    with tf.GradientTape() as tape:
        y, _ = tf_while.scan_layers(layer, stacked_params, tf.ones([1, 1]))
    assert (float(y[0, 0]), float(tape.gradient(y, shared.kernel.value)[0, 0])) == (6, 12)
    stack = tf_while.scanned(modules)
    model = keras.Sequential([keras.Input((1,)), stack])
    model.compile(keras.optimizers.SGD(1.0), keras.losses.MeanAbsoluteError())
    model.fit(tf.ones([1, 1]), tf.zeros([1, 1]), verbose=0)
    assert float(shared.kernel[0, 0]) == 1 - 12
    assert [v.shape[0] for v in stack.trainable_variables] == [2, 2, 1]  # and is saved, counted and frozen with it
    with pytest.raises(NotImplementedError) as caught:
        stack.get_config()
    assert str(caught.value).startswith(
        "scanned: expected no variables of all modules in a model that is saved whole, got"
    )


def test_a_variable_that_is_tied_within_a_module(tf_while):
    import tensorflow as tf

    modules = [kinds()["tied"]() for _ in range(2)]
    for module, weight in zip(modules, (2.0, 3.0), strict=True):
        module(tf.ones([1, 1]))
        module.once.kernel.assign([[weight]])
    layer, stacked_params = tf_while.from_modules(modules)
    with tf.GradientTape() as tape:
        y, _ = tf_while.scan_layers(layer, stacked_params, tf.ones([1, 1]))
    assert (float(y[0, 0]), np.ravel(tape.gradient(y, stacked_params)["once.kernel"]).tolist()) == (36, [36, 24])


def test_half_precision_is_that_of_the_modules(tf_while):
    """Computed in bfloat16, kept in float32, running statistics too."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    modules, x = [kinds()["half"]() for _ in range(3)], tf.random.normal([8, 4])
    for module in modules:
        module(x)
    stack = tf_while.scanned(modules)
    for _ in range(2):  # the statistics of the second step begin with numbers that bfloat16 does not have
        found, right = stack(x, training=True), loop(modules, x, training=True)
    assert found.dtype == right.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(right, tf.float32))
    assert {array.dtype for array in stack.stacked_params.values()} == {"float32"}
    for name, array in tf_while.from_modules(modules)[1].items():
        np.testing.assert_array_equal(array, stack.stacked_params[name])


BAD: dict[str, tuple[dict, dict, str]] = {
    "a rate": (
        {"rate": 0.2},
        {"rate": 0.1},
        "modules[1].rate: expected 0.2 (that of modules[0]), got 0.1",
    ),
    "its parts": (
        {},
        {"statistics": True},
        "modules[1].norms.0: expected LayerNormalization (that of modules[0]), got BatchNormalization",
    ),
    "its width": (
        {},
        {"width": 10},
        "modules[1]['attention.key_dense.bias']: expected float64[2, 4] (that of modules[0]), got float64[2, 5]",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_module_that_differs_is_named(tf_while, what):
    import tensorflow as tf

    of_first, of_other, words = BAD[what]
    modules = [kinds()["encoder"](**options) for options in (of_first, of_other)]
    for module, options in zip(modules, (of_first, of_other), strict=True):
        module(tf.ones([2, 5, options.get("width", 8)]))
    with pytest.raises((TypeError, ValueError)) as caught:
        tf_while.from_modules(modules)
    assert str(caught.value) == words


def test_constraints_are_of_each_layer(tf_while):
    """An optimizer that moves nothing leaves weights of 2 and 3 with a norm of 1 each."""
    import keras
    import tensorflow as tf

    modules = [linear(weight, 0.0, kernel_constraint=keras.constraints.MaxNorm(1.0)) for weight in (2.0, 3.0)]
    stack = tf_while.scanned(modules)
    model = keras.Sequential([keras.Input((1,)), stack])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(tf.ones([1, 1]), tf.zeros([1, 1]), verbose=0)
    np.testing.assert_allclose(np.ravel(stack.stacked_params["kernel"]), [1, 1], rtol=1e-6)
    modules[1].kernel.constraint = None
    with pytest.raises((TypeError, ValueError), match=r"modules\[1\]\.kernel\.constraint: expected "):
        tf_while.scanned(modules)


CONSTANTS = {
    "an array": (lambda tf, i: np.array([i, 1]), "array([2, 1])", "array([3, 1])"),
    "a tensor": (lambda tf, i: tf.constant([i]), "array([2], dtype=int32)", "array([3], dtype=int32)"),
    "a list": (lambda tf, i: [i, {"b": tf.constant(i)}], "[2, {'b': np.int32(2)}]", "[3, {'b': np.int32(3)}]"),
    "an object": (lambda tf, i: np.float32(i), "np.float32(2.0)", "np.float32(3.0)"),
    "a dict": (lambda tf, i: {"seed": i, "name": "any"}, "{'seed': 2, 'name': 'any'}", "{'seed': 3, 'name': 'any'}"),
}


@pytest.mark.parametrize("what", CONSTANTS)
def test_what_the_user_has_put_beside_the_variables_is_of_all_layers(tf_while, what):
    """It is read of the first."""
    import tensorflow as tf

    make, first, other = CONSTANTS[what]
    modules = [linear(2.0, 1.0), linear(3.0, 2.0)]
    for module in modules:
        module._own = make(tf, 2)
    assert float(tf_while.scanned(modules)(tf.ones([1, 1]))[0, 0]) == 11
    modules[1]._own = make(tf, 3)
    with pytest.raises(ValueError, match=r"modules\[1\]\._own: expected ") as caught:
        tf_while.scanned(modules)
    assert str(caught.value) == f"modules[1]._own: expected {first} (that of modules[0]), got {other}"
    modules[0]._own, modules[1]._own = tf.Variable(1.0), tf.Variable(1.0)  # which are no variables of the layers
    with pytest.raises(ValueError, match=r"modules\[1\]\._own: expected <tf.Variable"):
        tf_while.scanned(modules)


def test_a_frozen_stack_takes_no_statistics_of_the_batch(tf_while):
    """As frozen layers of Keras: in training too 1 and 3 stay, by the running mean 0 and variance 1; else -1 and 1."""
    import keras
    import tensorflow as tf

    modules, x = [keras.layers.BatchNormalization(epsilon=0.0) for _ in range(2)], tf.constant([[1.0], [3.0]])
    for module in modules:
        module(x)
    stack = tf_while.scanned(modules)
    stack.trainable = False
    run = tf.function(lambda x: stack(x, training=True))
    assert run(x).numpy().tolist() == stack(x, training=True).numpy().tolist() == [[1], [3]]
    assert [np.ravel(stack.stacked_params[name]).tolist() for name in ("moving_mean", "moving_variance")] == [
        [0, 0],
        [1, 1],
    ]
    assert modules[0].trainable
    stack.trainable = True
    assert stack(x, training=True).numpy().tolist() == [[-1], [1]]


def test_what_a_stack_would_lose_is_refused(tf_while):
    import keras
    import tensorflow as tf

    with pytest.raises(ValueError, match=r"modules\[1\]: expected a layer that has been built, got Dense"):
        tf_while.from_modules([linear(2.0, 1.0), keras.layers.Dense(1)])
    frozen = linear(3.0, 2.0)
    frozen.trainable = False
    with pytest.raises(ValueError, match=r"modules\[1\]\.kernel\.trainable: expected True .*, got False"):
        tf_while.from_modules([linear(2.0, 1.0), frozen])
    layer, stacked_params = tf_while.from_modules([linear(2.0, 1.0, kernel_regularizer="l2") for _ in range(2)])
    with pytest.raises(TypeError, match="modules: expected no losses of their own, got those of Dense"):
        tf_while.scan_layers(layer, stacked_params, tf.ones([1, 1]))
