"""The `.safetensors` format, as much of it as moving bytes needs: check a header, write one, move what follows it.

Eight bytes that say how long the header is; the header, JSON padded with spaces to a multiple of eight; the bytes of
the tensors, without a gap. The library opens and checks every file, also what is written here. The writer is ours,
since the library's wants all tensors in memory; it orders and spells a header as the library does, so that equal
contents are equal files. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from implementations import files

# The order in which the library writes tensors: by dtype as here, then by name.
DTYPES = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ", "F8_E4M3FNUZ",
    "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)  # fmt: skip
PIECE = 1 << 23  # bytes moved at a time


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]  # in elements
    size: int  # in bytes
    begin: int = 0  # of its bytes in the file; of no meaning before it has one
    file: int = 0  # which one of several it is read from


class Contents(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None  # in the file's order, which the library leaves to chance


def read(path: Path) -> Contents:
    """What the file holds, and where.

    Raises:
        ValueError: "model.safetensors: expected a whole safetensors file, got: header too small"
        OSError: "model.safetensors: expected a file, got none", "... got a folder"
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'none'}")
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(f"{path}: expected a whole safetensors file, got: {reason}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length).decode())
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), end - begin, 8 + length + begin)
    return Contents(tensors, metadata)


@contextlib.contextmanager
def writing(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> Iterator[tuple[BinaryIO, dict[str, Tensor]]]:
    """A file with a header for `tensors`, and where the bytes of each belong, which the block writes in any order.

    It becomes `path` at the end of the block, if the library can open it; on any error what was there stays.

    Raises:
        ValueError: "out.safetensors: expected to write what safetensors reads, got: ..."
        OSError: "out.safetensors: expected an existing folder, got ...", "... expected a file, got something else"
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected an existing folder, got {path.parent}")
    if path.exists() and not path.is_file():  # a device would be replaced too
        raise FileExistsError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'something else'}")
    placed, end = {}, 0
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for name, tensor in sorted(tensors.items(), key=lambda item: (_rank(item[1].dtype), item[0])):
        placed[name] = tensor._replace(begin=end)
        end += tensor.size
        offsets = [placed[name].begin, end]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with files.replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        yield file, {name: tensor._replace(begin=start + tensor.begin) for name, tensor in placed.items()}
        file.flush()
        try:
            with safe_open(file.name, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path}: expected to write what safetensors reads, got: {error}") from error


def blocks(name: str, stacked: Tensor, axis: int) -> tuple[int, int]:
    """(outer, inner): as bytes a stack is [outer, N, inner], one of its layers [outer, inner].

    Raises:
        ValueError: "'h.w': expected whole bytes for each layer along axis 1, got F4[4, 2, 3]"
    """
    at = axis % len(stacked.shape)
    outer = math.prod(stacked.shape[:at])
    if stacked.size == 0:
        return outer, 0
    inner, bits = divmod(stacked.size, outer * stacked.shape[at])
    if bits:
        shown = f"{stacked.dtype}{list(stacked.shape)}"
        raise ValueError(f"{name!r}: expected whole bytes for each layer along axis {at}, got {shown}")
    return outer, inner


def gather(
    old: Sequence[BinaryIO], new: BinaryIO, stacked: Tensor, layers: Sequence[Tensor], axis: int
) -> Iterator[int]:
    """Write the stack of `layers`, some rows of all of them at a time, and yield how many bytes that were."""
    outer, inner = blocks("", stacked, axis)
    if outer == 1:
        for i, layer in enumerate(layers):
            yield from copy(old, new, layer, layer._replace(begin=stacked.begin + i * inner))
        return
    for first, rows in _rows(outer, len(layers) * inner):
        block = np.empty((rows, len(layers), inner), np.uint8)
        for i, layer in enumerate(layers):
            piece = _read(old[layer.file], layer.begin + first * inner, rows * inner)
            block[:, i] = np.frombuffer(piece, np.uint8).reshape(rows, inner)
        new.seek(stacked.begin + first * len(layers) * inner)
        yield new.write(block.data)


def scatter(
    old: Sequence[BinaryIO], new: BinaryIO, stacked: Tensor, layers: Sequence[Tensor], axis: int
) -> Iterator[int]:
    """The inverse of `gather`: read some rows of the stack, and write of each layer what is in them."""
    outer, inner = blocks("", stacked, axis)
    if outer == 1:
        for i, layer in enumerate(layers):
            yield from copy(old, new, layer._replace(begin=stacked.begin + i * inner, file=stacked.file), layer)
        return
    for first, rows in _rows(outer, len(layers) * inner):
        piece = _read(old[stacked.file], stacked.begin + first * len(layers) * inner, rows * len(layers) * inner)
        block = np.frombuffer(piece, np.uint8).reshape(rows, len(layers), inner)
        for i, layer in enumerate(layers):
            new.seek(layer.begin + first * inner)
            yield new.write(np.ascontiguousarray(block[:, i]).data)


def _rows(outer: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, how many) of so many rows, each of `size` bytes, as make a piece; no rows of no bytes."""
    step = max(1, PIECE // max(1, size))
    for first in range(0, outer if size else 0, step):
        yield first, min(step, outer - first)


def copy(old: Sequence[BinaryIO], new: BinaryIO, here: Tensor, there: Tensor) -> Iterator[int]:
    new.seek(there.begin)
    for first, size in _rows(there.size, 1):
        yield new.write(_read(old[here.file], here.begin + first, size))


def _read(file: BinaryIO, begin: int, size: int) -> bytes:
    file.seek(begin)
    piece = file.read(size)
    if len(piece) != size:  # the header was right when the file was opened
        raise ValueError(f"{file.name}: expected a whole safetensors file, got one that became shorter")
    return piece


def _rank(dtype: str) -> int:
    return DTYPES.index(dtype) if dtype in DTYPES else len(DTYPES)
