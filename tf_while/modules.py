"""From the modules that people have to a stack, and back: N trees to one, and Keras layers to a layer.

    for module in modules:
        carry = module(carry)

In JAX a module is a tree of arrays. A Keras layer is an object that holds variables, so params are a dict of the names
that they have as attributes, and the layer is called in a `StatelessScope`: what it writes into its variables (running
statistics, the seeds of its dropout) comes out as ys.
Source: https://keras.io/api/utils/python_utils/
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from reference import alike, arguments
from tf_while.edges import as_leaf
from tf_while.stack import scan_layers
from tf_while.trees import Layer, flatten


def stack_layers(trees: Sequence[Any]) -> Any:
    """As `jax_scan.stack_layers`."""
    trees = alike.check_trees(as_leaf, "trees", trees)
    _, pack = flatten(trees[0])
    split = [flatten(tree)[0] for tree in trees]
    return pack([tf.stack(parts) for parts in zip(*split, strict=True)])


def unstack_layers(stacked_params: Any) -> list[Any]:
    """As `jax_scan.unstack_layers`. N must be known."""
    num_layers = arguments.check_scan(as_leaf, stacked_params, None, None)
    arrays, pack = flatten(stacked_params)
    split = [tf.unstack(array, num_layers) for array in arrays]  # once, not N times
    return [pack([parts[i] for parts in split]) for i in range(num_layers)]


def from_modules(modules: Sequence[Any]) -> tuple[Layer, dict[str, Any]]:
    """As `jax_scan.from_modules`, of Keras layers that have been built.

    stacked_params: variables by their names as attributes, each a `keras.Variable` [N, ...], trainable as those of the
    modules are. One of all modules is left out: it is closed over, and gets its gradient.

    y is None; but where a module writes variables it is a dict of their new values: `stacked_params | ys` is what the
    next step starts from.

    Constraints of variables are kept, and are of each layer.

    Limits: modules with losses of their own (regularizers) are refused. A mask that Keras hands from layer to layer
    unseen is lost: pass it by name.
    """
    modules = alike.check_modules(modules, _is_module)
    trees = [_arrays(module) for module in modules]
    _check(modules, trees)
    module, shared = modules[0], alike.which_shared(trees)
    stacked_params = stack_layers([{name: a for name, a in t.items() if name not in shared} for t in trees])
    for name, array in stacked_params.items():
        # not cast when it is read: the variables of the module are, each as it says
        options = {"trainable": trees[0][name].trainable, "name": name, "autocast": False}
        stacked_params[name] = _keras().Variable(array, **options)
        if constraint := trees[0][name].constraint:  # which an optimizer applies, here to each layer
            stacked_params[name].constraint = functools.partial(_keras().ops.map, constraint)
    return _layer(module), stacked_params


def _layer(module: Any) -> Layer:
    def layer(carry: Any, params: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        variables = {name: variable for name, variable in _arrays(module).items() if name in params}
        pairs = [(variable, tf.convert_to_tensor(params[name])) for name, variable in variables.items()]
        # not stateless_call, which tells no layer within the module that it is in training, nor in what precision
        with _keras().StatelessScope(pairs, collect_losses=True) as scope:
            old = {name: scope.get_current_value(variable) for name, variable in variables.items()}
            output = module(carry, *args, **kwargs)
            if module.losses:
                raise alike.has_losses(type(module).__name__)
        new = {name: scope.get_current_value(variable) for name, variable in variables.items()}
        # the scope hands back the very array that nothing was written to
        return output, {name: array for name, array in new.items() if array is not old[name]} or None

    return layer


def to_modules(stacked_params: Any, modules: Sequence[Any]) -> list[Any]:
    """As `jax_scan.to_modules`, but written into `modules` themselves."""
    modules = alike.check_modules(modules, _is_module)
    rows = unstack_layers(stacked_params)
    trees = [_arrays(module) for module in modules]
    shared = alike.which_shared(trees)
    trees = [{name: array for name, array in tree.items() if name not in shared} for tree in trees]
    alike.check_rows(as_leaf, rows, trees)
    for tree, row in zip(trees, rows, strict=True):
        for name, array in tree.items():
            array.assign(row[name])
    return modules


def scanned(modules: Sequence[Any], **options: Any) -> Any:
    """As `jax_scan.scanned`: a Keras layer, whose variables are the stacked ones.

    Keras has no state_dict: load the weights of the modules before, and write them back with `to_modules(layer.
    stacked_params, modules)`. It writes the variables that its modules write. A model with it is saved whole, and
    loaded with `custom_objects={"Scanned": tf_while.modules.scanned_class()}`.
    """
    return scanned_class()(modules, options)


@functools.cache
def scanned_class() -> Any:
    """A class of Keras's, made when it is asked for: importing this folder does not import Keras."""

    class Scanned(_keras().layers.Layer):  # type: ignore[misc]
        """What `scanned` returns."""

        def __init__(self, modules: Sequence[Any], options: dict[str, Any], name: str | None = None) -> None:
            modules = alike.check_modules(modules, _is_module)
            super().__init__(dtype=modules[0].dtype_policy, name=name)
            self.layer, self.params = from_modules(modules)
            # those of all modules, so that Keras trains and saves them too
            self.shared = {name: a for name, a in _arrays(modules[0]).items() if name not in self.params}
            self.frozen = functools.partial(_frozen, modules[0])
            self.is_trained: bool | None = None
            self.num_layers, self.options, self.built = len(modules), options, True

        def get_config(self) -> dict[str, Any]:
            """One module, for all, and what each is; the variables are saved beside it."""
            if self.shared:
                raise alike.saved_whole(sorted(self.shared))
            (module,) = self.frozen.args
            config = {"name": self.name, "num_layers": self.num_layers, "trainable": self.is_trained}
            return config | {"module": _keras().saving.serialize_keras_object(module), "options": self.options}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            modules = [_read(config["module"]) for _ in range(config["num_layers"])]
            made = cls(modules, config["options"], config["name"])
            if config["trainable"] is not None:
                made.trainable = config["trainable"]
            return made

        @property
        def stacked_params(self) -> dict[str, Any]:
            return dict(self.params)

        @property
        def trainable(self) -> Any:
            return super().trainable

        @trainable.setter
        def trainable(self, value: Any) -> None:
            _keras().layers.Layer.trainable.fset(self, value)
            self.is_trained = bool(value)

        def call(self, carry: Any, *args: Any, xs: Any = None, training: Any = None, **kwargs: Any) -> Any:
            is_trained = self.is_trained

            def layer(carry: Any, params: Any, *x: Any) -> tuple[Any, Any]:
                with self.frozen(is_trained):
                    return self.layer(carry, params, *x, *args, training=training, **kwargs)

            stacked_params = self.stacked_params
            carry, state = scan_layers(layer, stacked_params, carry, xs, **self.options)
            for name, array in (state or {}).items():
                stacked_params[name].assign(array)
            return carry

    return Scanned


@contextlib.contextmanager
def _frozen(module: Any, is_trained: bool | None) -> Iterator[None]:
    """`module` for a while as it is where somebody has set `trainable` of its stack: a batch norm asks for that."""
    parts = [part for _, part in _walk(module)]  # a layer before its parts, which it sets too
    before = [part.trainable for part in parts]
    if is_trained is not None:
        module.trainable = is_trained
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            if part.trainable != value:
                part.trainable = value


def _read(config: dict[str, Any]) -> Any:
    """The module that is described, built."""
    keras = _keras()
    module = keras.saving.deserialize_keras_object(config)
    shape = config.get("build_config", {}).get("input_shape")
    if shape and not all(part.built for _, part in _walk(module) if _is_module(part)):  # as one without `build` is
        module(keras.Input(batch_shape=shape))
    return module


def _keras() -> Any:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise alike.not_on_tensorflow(keras.backend.backend())
    return keras


def _is_module(module: Any) -> bool:
    return isinstance(module, _keras().layers.Layer)


def _arrays(module: Any) -> dict[str, Any]:
    """Variables by name, one that is tied once."""
    named = {id(part): name for name, part in _walk(module) if isinstance(part, _keras().Variable)}
    return {named.get(id(variable), variable.path): variable for variable in module.variables}


def _walk(module: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """(name, part) of the layers and variables of a module, by the attributes that hold them: others have a number."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    keras = _keras()
    if isinstance(module, (keras.Variable, keras.layers.Layer)):
        yield name, module
    if isinstance(module, keras.Variable):
        return
    if isinstance(module, Mapping):
        parts = [*module.items()]
    elif isinstance(module, (list, tuple)):
        parts = [*enumerate(module)]
    elif isinstance(module, (keras.layers.Layer, keras.random.SeedGenerator)):
        named = [(key, part) for key, part in vars(module).items() if key not in OF_KERAS]
        parts = [(key.lstrip("_"), part) for key, part in named if not key.startswith("_self_")]  # TensorFlow's own
        parts.append(("layers", getattr(module, "layers", ())))  # of a keras.Model
    else:
        return
    for key, part in parts:
        yield from _walk(part, f"{name}.{key}" if name else f"{key}", seen)


# attributes in which Keras keeps all layers and variables once more
OF_KERAS = ("_layers", "_trainable_variables", "_non_trainable_variables", "_seed_generators", "_metrics", "_tracked")


def _check(modules: list[Any], trees: list[dict[str, Any]]) -> None:
    """Refuse what is not the same in all modules, and would be taken from the first."""
    for i, module in enumerate(modules):
        if not module.built:
            raise alike.not_built(f"modules[{i}]", type(module).__name__)
    layers = [{name: part for name, part in _walk(m) if isinstance(part, _keras().layers.Layer)} for m in modules]
    kinds = [{name: type(part) for name, part in parts.items()} for parts in layers]
    held = [_rest(parts, tree) for parts, tree in zip(layers, trees, strict=True)]
    for i, (tree, kind, rest) in enumerate(zip(trees, kinds, held, strict=True)):
        alike.check_alike("modules", i, kind, kinds[0])
        arguments.check_like(as_leaf, f"modules[{i}]", tree, trees[0], "modules[0]")
        alike.check_alike("modules", i, rest, held[0])


def _rest(layers: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    """What is neither variable nor layer: rates, functions, constants, what is frozen."""
    rest: dict[str, Any] = {f"{name}.trainable": variable.trainable for name, variable in variables.items()}
    rest |= {f"{name}.constraint": _content(variable.constraint, {}) for name, variable in variables.items()}
    names: dict[Any, str] = {id(part): name for name, part in (*layers.items(), *variables.items())}
    names |= {part.name: name for name, part in layers.items()}  # a name that each layer has of its own
    for name, part in layers.items():
        kept = (*_of_any(), *OF_ITS_OWN) if _is_of_keras(part) else _of_any()
        held = {key: value for key, value in vars(part).items() if key not in kept and key[:6] != "_self_"}
        held = _content(held, names)
        with contextlib.suppress(NotImplementedError):  # a layer of the user's own need not have one
            held |= _content(part.get_config(), names, OF_ITS_OWN)
        rest |= {f"{name}.{key}" if name else key: value for key, value in held.items()}
    return rest


# seeds are variables; an id is given where a model is saved or loaded
OF_ITS_OWN = ("name", "seed", "built", "build", "quantize", "shared_object_id")


@functools.cache
def _of_any() -> set[str]:
    """Attributes that Keras gives any layer or model."""
    keras, x = _keras(), _keras().Input([1], name="any")
    model = keras.Model(x, x, name="any")
    model.compile("sgd", "mse")
    return {*vars(keras.layers.Layer(name="any")), *vars(model)}


def _is_of_keras(value: Any) -> bool:
    return type(value).__module__.startswith("keras.")


def _content(value: Any, names: dict[Any, str], without: tuple[str, ...] = ()) -> Any:
    """What can be compared of `value`; of a config without what each layer has of its own."""
    if isinstance(value, Mapping):
        return {key: _content(item, names, without) for key, item in value.items() if key not in without}
    if isinstance(value, (list, tuple)):
        return [_content(item, names, without) for item in value]
    if id(value) in names:
        return names[id(value)]
    if isinstance(value, str):
        return names.get(value, value)
    if tf.is_tensor(value) and hasattr(value, "numpy") and not isinstance(value, tf.Variable):
        return value.numpy()
    if _is_of_keras(value):  # an initializer, a policy of dtypes
        return type(value), _content(value.get_config(), names, OF_ITS_OWN) if hasattr(value, "get_config") else None
    return value
