"""A checkpoint in shards: stacked as the one file of its parts; a part alone, or parts that do not fit, refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from implementations.checkpoints.checkpoint_files import stack_file, unstack_file
from tests.support.checkpoints import assert_refused, checkpoint

INDEX = "model.safetensors.index.json"
FILES = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "published"
    made.mkdir()
    return made


def publish(folder, tensors, files=FILES, metadata=({"format": "pt"},) * 3):
    """`tensors` dealt out to shards in an order that has nothing to do with layers, and their index."""
    where = {name: files[i % len(files)] for i, name in enumerate(tensors)}
    for file, noted in zip(files, metadata, strict=True):
        (folder / file).write_bytes(save({name: tensors[name] for name in tensors if where[name] == file}, noted))
    write_index(folder, where)
    return where


def write_index(folder, where):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": where}))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("given", [INDEX, "."])
def test_shards_are_the_file_that_they_are_parts_of(folder, given, axis, tmp_path):
    """Byte for byte, whether stacked or unstacked again, with every dtype and 12 and 13 layers in two stacks."""
    shapes = ((2,), (3,), (2, 3), (4, 2, 3)) if axis else ((), (3,), (2, 3), (4, 2, 3))
    tensors = checkpoint(shapes=shapes)
    publish(folder, tensors)
    whole, expected, stacked, back = (tmp_path / f"{name}.safetensors" for name in ("whole", "expected", "st", "back"))
    whole.write_bytes(save(tensors, {"format": "pt"}))
    stack_file(whole, expected, axis=axis)
    summary = stack_file(folder / given, stacked, axis=axis)
    assert summary.layers == {"encoder.layer": 12, "decoder.layer": 13}
    assert stacked.read_bytes() == expected.read_bytes()
    unstack_file(stacked, back)
    assert back.read_bytes() == whole.read_bytes()


def test_a_stacked_checkpoint_in_shards_is_unstacked(folder, tmp_path):
    tensors = {"h.w": np.arange(6.0).reshape(3, 2), "h.b": np.arange(12.0).reshape(3, 2, 2), "g.w": np.ones((2, 5))}
    publish(folder, tensors)
    back = tmp_path / "back.safetensors"
    for given, prefix, axis, N in ((".", "h", 0, 3), (INDEX, "g", 1, 5)):
        unstack_file(folder / given, back, prefixes=[prefix], axis=axis)
        made = load_file(back)
        for i in range(N):
            np.testing.assert_array_equal(made[f"{prefix}.{i}.w"], tensors[f"{prefix}.w"].take(i, axis))


def test_a_folder_with_one_file_is_that_file(folder, target):
    (folder / "model.safetensors").write_bytes(save({"h.0.w": np.zeros(2), "h.1.w": np.ones(2)}))
    stack_file(folder, target)
    assert load_file(target)["h.w"].tolist() == [[0, 0], [1, 1]]


def test_links_as_in_a_cache_of_downloads(folder, tmp_path, target):
    """There every name is a link to a file without one, elsewhere."""
    publish(folder, {f"h.{i}.w": np.full(2, i) for i in range(6)})
    linked = tmp_path / "linked"
    linked.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(tmp_path / f"blob{i}")
        (linked / path.name).symlink_to(tmp_path / f"blob{i}")
    stack_file(linked, target)
    assert load_file(target)["h.w"].tolist() == [[i, i] for i in range(6)]


def test_metadata_of_all_shards(folder, target):
    """None is lost; of two for one key the first shard's counts."""
    publish(folder, {f"h.{i}.w": np.full(2, i) for i in range(3)}, metadata=({"a": "1"}, None, {"a": "2", "b": "3"}))
    stack_file(folder, target)
    with safe_open(target, framework="np") as file:
        noted = file.metadata()
    assert {key: noted[key] for key in ("a", "b")} == {"a": "1", "b": "3"}


@pytest.mark.parametrize("with_index", [True, False])
def test_a_shard_alone_is_refused(folder, target, with_index):
    """The first shard has layers 0 and 1, so that by its names it would be a whole model, of half the depth."""
    publish(folder, {f"h.{i}.w": np.full(2, i) for i in (0, 2, 4, 1, 3, 5)})
    if not with_index:
        (folder / INDEX).unlink()
    path = folder / FILES[0]
    assert sorted(load_file(path)) == ["h.0.w", "h.1.w"]
    said = f"{path}: expected a whole checkpoint, got one of 3 shards; the index beside them, {INDEX}, stands for all"
    assert_refused(lambda: stack_file(path, target), ValueError, said)
    assert not target.exists()


def test_a_shard_by_another_name_is_known_by_its_index(folder, target):
    publish(
        folder,
        {f"h.{i}.w": np.full(2, i) for i in (0, 1)},
        files=["first.safetensors", "b.safetensors"],
        metadata=[None] * 2,
    )
    (folder / "a.safetensors.index.json").write_text("no JSON")  # not what is asked for
    path = folder / "first.safetensors"
    said = f"{path}: expected a whole checkpoint, got one of 2 shards; the index beside them, {INDEX}, stands for all"
    assert_refused(lambda: stack_file(path, target), ValueError, said)


def test_one_shard_of_one_is_whole(folder, target):
    name = "model-00001-of-00001.safetensors"
    publish(folder, {"h.0.w": np.zeros(2)}, files=[name], metadata=[None])
    for given in (name, INDEX, "."):
        stack_file(folder / given, target)
        assert load_file(target)["h.w"].shape == (1, 2)


SHARD = FILES[0]
# What becomes of the folder -> the error and its words.
BROKEN: dict[str, Any] = {
    "missing shard": (
        lambda folder, where: (folder / FILES[1]).unlink(),
        FileNotFoundError,
        f"expected the shard '{FILES[1]}' beside it, got none",
    ),
    "missing tensor": (
        lambda folder, where: write_index(folder, where | {"h.9.w": SHARD}),
        ValueError,
        f"expected 'h.9.w' in '{SHARD}', got none",
    ),
    "tensor in another shard": (
        lambda folder, where: write_index(folder, where | {"h.1.w": SHARD}),
        ValueError,
        f"expected 'h.1.w' in '{SHARD}', got it in '{FILES[1]}'",
    ),
    "tensor in two shards": (
        lambda folder, where: (folder / FILES[1]).write_bytes((folder / SHARD).read_bytes()),
        ValueError,
        f"expected 'h.0.w' in one shard, got it in '{SHARD}' and '{FILES[1]}'",
    ),
    "tensor that the index leaves out": (
        lambda folder, where: write_index(folder, {name: where[name] for name in where if name != "h.3.w"}),
        ValueError,
        f"expected every tensor of '{SHARD}', got nothing of 'h.3.w'",
    ),
    **{
        f"file {name!r}": (
            lambda folder, where, name=name: write_index(folder, where | {"h.1.w": name}),
            ValueError,
            f"expected a file name ending in .safetensors for 'h.1.w', got {name!r}",
        )
        for name in ("../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "x.bin", 3, "")
    },
    "no JSON": (
        lambda folder, where: (folder / INDEX).write_text("{"),
        ValueError,
        "expected an index of shards, got no JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)",
    ),
    "bytes": (
        lambda folder, where: (folder / INDEX).write_bytes(b"\xff"),
        ValueError,
        "expected an index of shards, got no JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start "
        "byte",
    ),
    "a name twice": (
        lambda folder, where: (folder / INDEX).write_text('{"weight_map": {"h.0.w": "a", "h.0.w": "b"}}'),
        ValueError,
        "expected each name once, got 'h.0.w' twice",
    ),
    **{
        f"index {text}": (
            lambda folder, where, text=text: (folder / INDEX).write_text(text),
            ValueError,
            f"expected an index with a 'weight_map' of names to files, got {got}",
        )
        for text, got in {
            "[]": "none",
            "{}": "none",
            '{"weight_map": {}}': "none",
            '{"weight_map": [1]}': "list",
        }.items()
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_that_does_not_fit_is_refused(case, folder, target):
    change, kind, message = BROKEN[case]
    change(folder, publish(folder, {f"h.{i}.w": np.full(2, i) for i in range(6)}))
    target.write_bytes(b"old")
    (folder.parent / "x.safetensors").write_bytes(save({"h.1.w": np.zeros(2)}))
    for given in (folder, folder / INDEX):
        assert_refused(lambda given=given: stack_file(given, target), kind, f"{folder / INDEX}: {message}")
    assert target.read_bytes() == b"old"


def test_a_broken_shard_is_named(folder, target):
    publish(folder, {f"h.{i}.w": np.full(2, i) for i in range(3)})
    raw = (folder / FILES[1]).read_bytes()
    (folder / FILES[1]).write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=rf"{FILES[1]}: expected a whole safetensors file, got: "):
        stack_file(folder, target)
    assert not target.exists()


def test_a_part_is_not_written_over(folder):
    publish(folder, {f"h.{i}.w": np.full(2, i) for i in range(3)})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for part in (FILES[2], INDEX):
        said = f"{folder / part}: expected a file that is no part of {folder / INDEX}, got one of it"
        assert_refused(lambda part=part: stack_file(folder, folder / part), ValueError, said)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_leaves_a_choice_is_refused(folder, target):
    publish(folder, {"h.0.w": np.zeros(2)}, files=["a.safetensors"], metadata=[None])
    (folder / "model.safetensors").write_bytes(save({"h.0.w": np.zeros(2)}))
    said = (
        f"{folder}: expected a folder with one model.safetensors or *.safetensors.index.json, got {INDEX} and "
        "model.safetensors: name one of them"
    )
    assert_refused(lambda: stack_file(folder, target), FileNotFoundError, said)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).unlink()
    said = f"{folder}: expected a folder with one model.safetensors or *.safetensors.index.json, got neither"
    assert_refused(lambda: stack_file(folder, target), FileNotFoundError, said)


@pytest.mark.parametrize(
    "pattern", ["h.{}.w", "m.layers_{}.w", "m/layers/{}/w", "m/layers_{}/w", "h_{}/w", "blocks.{}.w"]
)
@pytest.mark.parametrize("own", [True, False], ids=["a table in layer 0", "alike"])
def test_spellings_of_layers_come_back(pattern, own, tmp_path):
    """Also what only the first layer has, what begins as the stack does, and a first layer of another kind."""
    source, stacked, back = (tmp_path / f"{name}.safetensors" for name in ("source", "stacked", "back"))
    tensors: dict[str, Any] = {pattern.format(i): np.full((2, 3), i, np.float32) for i in range(12)}
    end = pattern[-2:]
    if own:
        name = pattern[:-1].format
        tensors |= {f"{name(0)}table": np.zeros(3), f"{name(0)}dense": np.ones(2), f"m{end}": np.ones(2)}
        tensors |= {f"{name(i)}experts.{j}": np.full(2, i + j) for i in range(1, 12) for j in range(2)}
        tensors[pattern.replace("_{}", "").replace(".{}", "").replace("/{}", "")[:-1] + "norm"] = np.ones(1)
    source.write_bytes(save(tensors, {"format": "pt"}))
    summary = stack_file(source, stacked)
    assert list(summary.layers.values()) == [12]
    assert summary.after == len(tensors) - 11
    made = load_file(stacked)
    stack = pattern.replace("_{}", "").replace(".{}", "").replace("/{}", "")
    assert made[stack][:, 0, 0].tolist() == list(range(12))
    unstack_file(stacked, back)
    assert back.read_bytes() == source.read_bytes()
