"""What is traced and kept, where a stack is called as it stands. JAX needs little of it: `jax.jit` does it.

Source: https://www.tensorflow.org/guide/function#limitations
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from reference import arguments, made_of
from tf_while.edges import as_leaf
from tf_while.private import in_forward_mode
from tf_while.trees import flatten

_programs = made_of.Kept(256)


def as_program(
    run: Callable[..., Any], static: tuple[Any, ...], trees: tuple[Any, ...], deep: tuple[int, ...] = ()
) -> Any:
    """`run(*static, *trees)`: part of the program that is being traced, or else a program of its own, which is kept by
    what `static` is made of: a layer that does the same finds it, one that reads a value that has changed does not.

    Arrays of the trees at the indices `deep` may have any N in that program. In forward mode a stack is none, and runs
    layer by layer: a tangent passes through no list that a graph keeps."""
    arrays, pack = flatten(trees)
    if tf.inside_function() or (deep and in_forward_mode(arrays)):
        return run(*static, *trees)
    any_depth = [i in deep for i, tree in enumerate(trees) for _ in flatten(tree)[0]]
    shapes = [[None, *a.shape[1:]] if any_n else a.shape for a, any_n in zip(arrays, any_depth, strict=True)]
    specs = [tf.TensorSpec(shape, a.dtype) for shape, a in zip(shapes, arrays, strict=True)]
    key = run, made_of.made_of(static), arguments.structure(as_leaf, trees), repr(specs)
    if key not in _programs:
        program = tf.function(lambda *arrays: run(*static, *pack(arrays)), input_signature=specs, autograph=False)
        # traced here and now: where functions are to run eagerly this is a graph still, and has its derivatives
        traced = program.get_concrete_function()
        _programs[key] = traced
    return _programs[key](*arrays)
