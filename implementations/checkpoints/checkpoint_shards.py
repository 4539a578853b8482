"""A checkpoint as it is published: one file, or shards beside an index that says in which one each tensor is.

    model.safetensors.index.json           {"weight_map": {"h.0.w": "model-00001-of-00002.safetensors", ...}}
    model-00001-of-00002.safetensors, ...  each a whole safetensors file, of some of the tensors

A shard alone is a part of a model that looks like one, with half of its layers, so it is refused.
Source: https://huggingface.co/docs/safetensors, https://huggingface.co/docs/transformers/big_models
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from implementations.checkpoints.safetensors_files import Contents, Tensor, read

INDEX = ".safetensors.index.json"
SHARD = re.compile(r"(?P<name>.+)-\d+-of-(?P<number>\d+)\.safetensors", re.DOTALL)


class Source(NamedTuple):
    """What there is to convert, and where: `tensors[name].file` is an index into `files`."""

    contents: Contents
    files: list[Path]
    index_file: Path | None


def read_checkpoint(path: Path) -> Source:
    """The headers of a file, of all shards of an index, or of what a folder holds; no tensor is read.

    The metadata are those of all shards; of a key that shards have in common, the first shard's.

    Raises:
        ValueError, OSError: those of `safetensors_files.read`;
            "model-00001-of-00002.safetensors: expected a whole checkpoint, got one of 2 shards; the index beside them,
            model.safetensors.index.json, stands for all", and those of an index that does not fit its shards
        OSError: "models: expected a folder with one model.safetensors or *.safetensors.index.json, got neither"
    """
    if path.is_dir():
        path = _of_folder(path)
    if not path.name.endswith(".json"):
        _check_whole(path)
        return Source(read(path), [path], None)
    where = _weight_map(path)
    files = [path.parent / name for name in sorted(set(where.values()))]
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] | None = None
    for number, file in enumerate(files):
        if not file.is_file():
            raise FileNotFoundError(f"{path}: expected the shard {file.name!r} beside it, got none")
        shard = read(file)
        if shard.metadata is not None:
            metadata = {**shard.metadata, **(metadata or {})}
        for name, tensor in shard.tensors.items():
            if name in tensors:
                first = files[tensors[name].file].name
                raise ValueError(f"{path}: expected {name!r} in one shard, got it in {first!r} and {file.name!r}")
            if name not in where:
                raise ValueError(f"{path}: expected every tensor of {file.name!r}, got nothing of {name!r}")
            tensors[name] = tensor._replace(file=number)
    for name, shard_name in where.items():
        if name not in tensors or files[tensors[name].file].name != shard_name:
            got = "none" if name not in tensors else f"it in {files[tensors[name].file].name!r}"
            raise ValueError(f"{path}: expected {name!r} in {shard_name!r}, got {got}")
    return Source(Contents(tensors, metadata), files, path)


def _of_folder(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{INDEX}")) + [path for path in [folder / "model.safetensors"] if path.exists()]
    if len(found) == 1:
        return found[0]
    got = f"{' and '.join(path.name for path in found)}: name one of them" if found else "neither"
    raise FileNotFoundError(f"{folder}: expected a folder with one model.safetensors or *{INDEX}, got {got}")


def _check_whole(path: Path) -> None:
    shard = SHARD.fullmatch(path.name)
    index, number = path.with_name(f"{shard['name'] if shard else ''}{INDEX}"), int(shard["number"]) if shard else 1
    if number == 1:
        # A shard by another name is one that an index has beside others.
        for index in sorted(path.parent.glob(f"*{INDEX}")):
            try:
                names = set(_weight_map(index).values())
            except (ValueError, OSError):  # it is not what is asked for
                continue
            if path.name in names and len(names) > 1:
                number = len(names)
                break
    if number > 1 and path.is_file():
        raise ValueError(
            f"{path}: expected a whole checkpoint, got one of {number} shards; the index beside them, {index.name}, "
            "stands for all"
        )


def _weight_map(path: Path) -> dict[str, str]:
    """Name of a tensor -> name of a file in the folder of the index.

    Raises:
        ValueError: "i.json: expected an index of shards, got no JSON: Expecting value: line 1 column 1 (char 0)",
            "i.json: expected an index with a 'weight_map' of names to files, got none", "... got 'h.0.w' twice",
            "i.json: expected a file name ending in .safetensors for 'h.0.w', got '../x.safetensors'"
        OSError: "i.json: expected a file, got none"
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:  # else the last would count without a word
                raise KeyError(key)
            seen[key] = value
        return seen

    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, got none")
    try:
        index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except KeyError as error:
        raise ValueError(f"{path}: expected each name once, got {error.args[0]!r} twice") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected an index of shards, got no JSON: {error}") from error
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        got = "none" if not where else f"{type(where).__name__}"
        raise ValueError(f"{path}: expected an index with a 'weight_map' of names to files, got {got}")
    for name, file in where.items():
        # Of its own folder: an index from elsewhere must not have other files read.
        plain = isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\\0:")
        if not plain:
            raise ValueError(f"{path}: expected a file name ending in .safetensors for {name!r}, got {file!r}")
    return where
