"""One program that all devices of a mesh call, each from a thread of its own: what `jax.shard_map` is in JAX.

What differs from device to device are arguments of the program: the numbers of its groups, its places in the mesh, and
the token by which its collectives run one after the other. So all devices run the same operations in the same order.
Source: https://www.tensorflow.org/api_docs/python/tf/raw_ops/CollectiveReduceV2
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import ContextVar
from typing import Any, NamedTuple

import tensorflow as tf

from reference import arguments, meshes
from tf_while.parts import Mesh, as_leaf, cut_up, packed
from tf_while.private import abort_collectives
from tf_while.trees import flatten, split

SECONDS = 600.0  # that a call on the mesh may take: of devices that send different things each waits for the others
_instances = itertools.count(1 << 20, 1 << 10)  # numbers of collectives: each program has as many of its own


class Here(NamedTuple):
    """What a device tells the program of all, in arrays of its graph."""

    groups: dict[str, tf.Tensor]
    places: dict[str, tf.Tensor]  # where it is along each axis of the mesh
    token: tf.Tensor
    instances: Iterator[int]


_here: ContextVar[Here | None] = ContextVar("_here", default=None)


def traced(
    f: Callable[..., Any], mesh: Mesh, in_axes: tuple[Any, ...], args: tuple[Any, ...], kept: dict[Any, Any]
) -> tuple[Any, dict[int, list[Any]]]:
    """The program of all devices, found in or added to `kept`, and what each device of this process calls it with."""
    whole = [cut_up(f"args[{j}]", arg, mesh, axes) for j, (arg, axes) in enumerate(zip(args, in_axes, strict=True))]
    names, own = [*mesh.shape], {}
    for i, token in mesh.tokens.items():
        places, groups = mesh.places(i), [mesh.groups[name][i] for name in names]
        trees = [packed(arg, [a.parts[i] for a in cut]) for arg, cut in zip(args, whole, strict=True)]
        arrays, pack = flatten(trees)
        own[i] = [token.handle, *map(tf.constant, [*groups, *places.values()]), *arrays]
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in next(iter(own.values()))]
    key = arguments.structure(as_leaf, args), repr(specs)
    if key not in kept:
        instances = itertools.count(next(_instances))

        def program(token: tf.Tensor, *arrays: tf.Tensor) -> Any:
            *of_device, arrays_ = split(arrays, len(names), len(names))
            groups, places = (dict(zip(names, of, strict=True)) for of in of_device)
            before = _here.set(Here(groups, places, token, instances))
            try:
                return f(*pack(arrays_))
            finally:
                _here.reset(before)

        kept[key] = tf.function(program, input_signature=specs, autograph=False).get_concrete_function()
    return kept[key], own


def inside(mesh: Mesh, name: str) -> Here:
    """Of a program that is being traced."""
    meshes.check_name(mesh.shape, name)
    here = _here.get()
    if here is None:
        raise meshes.outside()
    return here


def together(mesh: Mesh, calls: dict[int, Callable[[], Any]]) -> dict[int, Any]:
    """The results of all calls, each made on its device; when one fails, or all wait, they wait no longer."""

    def call(i: int) -> Any:
        with tf.device(mesh.devices[i]):
            return calls[i]()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = {pool.submit(call, i): i for i in calls}
        try:
            for future in as_completed(futures, timeout=SECONDS):
                error = future.exception()
                if error is not None:
                    error.add_note(f"on {mesh.devices[futures[future]]}")
                    abort_collectives(f"{mesh.devices[futures[future]]}: {error}")
                    raise error
        except TimeoutError:
            abort_collectives(f"a call on the mesh has taken {SECONDS} s")
            raise
    return {i: future.result() for future, i in futures.items()}
