"""Checkpoints to convert, of random bytes, and what their stacks are, byte by byte: without the code under test."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

# Those that safetensors and NumPy both have; random bytes hold NaN payloads, subnormals and integers beyond 2**24.
DTYPES = tuple(
    np.dtype(dtype)
    for dtype in (
        "float32", "float64", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, "bool",
        "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64",
    )
)  # fmt: skip


def random_array(random, shape, dtype):
    size = int(np.prod(shape, dtype=int))
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    return np.frombuffer(bytearray(random.bytes(size * dtype.itemsize)), dtype).reshape(shape)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def as_bytes(array):
    """Dtype, shape and bytes: equal where two arrays are the same, NaN payloads included."""
    return str(array.dtype), array.shape, array.tobytes()


def stacked_bytes(arrays, axis):
    """`as_bytes` of the stack of `arrays`, made of bytes alone."""
    dtype, shape = arrays[0].dtype, arrays[0].shape
    raw = [np.frombuffer(array.tobytes(), np.uint8).reshape(*shape, dtype.itemsize) for array in arrays]
    stack = np.stack(raw, axis if axis >= 0 else axis - 1)
    return str(dtype), stack.shape[:-1], stack.tobytes()


def checkpoint(
    num_layers=12, seed=0, shapes=((), (3,), (2, 3), (4, 2, 3)), prefixes=("encoder.layer", "decoder.layer")
):
    """A flat checkpoint: in each stack one tensor for each dtype, of the shapes in turn, and some without an index."""
    random = np.random.default_rng(seed)
    tensors = {"embed.w": random_array(random, (5, 3), DTYPES[0]), "ids": random_array(random, (1, 7), DTYPES[13])}
    for n, prefix in enumerate(prefixes):
        for i in range(num_layers + n):
            for j, dtype in enumerate(DTYPES):
                shape = shapes[j % len(shapes)]
                tensors[f"{prefix}.{i}.part.{j}.{dtype}"] = random_array(random, shape, dtype)
    return tensors


def stacks_of(tensors, prefixes, axis=0):
    """Name -> `as_bytes` of what `tensors` are once stacked; layers are counted up, not sorted by name."""
    result: dict[str, tuple] = {}
    used: set[str] = set()
    for prefix in prefixes:
        for name in tensors:
            if name.startswith(f"{prefix}.0."):
                rest = name.removeprefix(f"{prefix}.0.")
                layers: list[str] = []
                while (layer := f"{prefix}.{len(layers)}.{rest}") in tensors:
                    layers.append(layer)
                used |= set(layers)
                result[f"{prefix}.{rest}"] = stacked_bytes([tensors[layer] for layer in layers], axis)
    return result | {name: as_bytes(array) for name, array in tensors.items() if name not in used}


def header(path):
    """The JSON of a file, padding included."""
    raw = path.read_bytes()
    return raw[8 : 8 + int.from_bytes(raw[:8], "little")]


def assert_refused(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message
