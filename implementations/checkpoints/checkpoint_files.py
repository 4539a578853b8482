"""A per-layer `.safetensors` checkpoint to a stacked file, and back, without it in memory and without a framework.

    stack_file("model.safetensors", "stacked.safetensors")    encoder.layer.{i}.w [...]  ->  encoder.layer.w [N, ...]
    unstack_file("stacked.safetensors", "model.safetensors")  the file it was, byte for byte

Shards, by their index or their folder, are read as the one file that they are parts of; what is written is one file.
Bytes are moved, never decoded, so every dtype of the format survives, the packed ones too. The target is written beside
itself and then takes its place in one step: it may be the source. `checkpoint` does the same in memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from implementations.checkpoints.checkpoint_shards import Source, read_checkpoint
from implementations.checkpoints.layer_names import Plan, check_prefixes, owner, stack_axis, stack_plan, unstack_plan
from implementations.checkpoints.safetensors_files import Contents, Tensor, blocks, copy, gather, scatter, writing
from implementations.progress import Report
from reference.arguments import Leaf

# In `__metadata__`, as JSON: one object for each call of `stack_file`, the last to be undone first. "layers" is
# prefix -> N; "kept" are names that begin as a stack's do and are none; "metadata" is false where there was none.
KEY = "layer_stacks"


class Summary(NamedTuple):
    """What a conversion did."""

    layers: dict[str, int]  # prefix -> N
    before: int  # tensors
    after: int
    size: int  # bytes of the target's tensors


def stack_file(
    source: str | Path,
    target: str | Path,
    prefixes: Sequence[str] | None = None,
    axis: int = 0,
    progress: Report | None = None,
) -> Summary:
    """Write `source` as `target`, with each `prefix.{i}.rest` of its layers i replaced by one stacked `prefix.rest`.

    Args:
        source: a file, the index of a checkpoint in shards, or a folder with one model.safetensors or one index
        target: a file, which may be the source, unless that is in shards
        prefixes: the stacks; None for all that are found: what stands before the first index of a name, as
            `layer_names` finds it
        axis: where the axis of layers goes, negative from the end
        progress: called with bytes done, bytes in all, name of the tensor

    Raises:
        TypeError, ValueError: those of `layer_names.stack_plan`, which name the layer and the key; those of
            `checkpoint_shards.read_checkpoint`, also for a shard alone;
            "model.safetensors: expected a whole safetensors file, got: ...",
            "out.safetensors: expected a file that is no part of model.safetensors.index.json, got one of it",
            "'h.w': expected whole bytes for each layer along axis 1, got F4[4, 2, 3]"
        OSError: "model.safetensors: expected a file, got none", and what reading and writing may raise

    Limits: holds a few pieces of 8 MiB, or half of a tensor of the target if that is more. The way back is byte for
    byte for a file that safetensors wrote; another's tensors come back in safetensors' order. Shards come back as
    one file, the one that safetensors writes of all their tensors: the index is not kept.
    """
    source, target = Path(source), Path(target)
    found = read_checkpoint(source)
    contents = found.contents
    calls = _calls(source, contents.metadata)
    plan = stack_plan(_leaves(contents), prefixes, axis, source)
    call: dict[str, Any] = {"axis": axis, "layers": plan.layers}
    if kept := [name for name in plan.kept if owner(name, plan.layers) is not None]:
        call["kept"] = kept
    if contents.metadata is None:
        call["metadata"] = False
    metadata = {**(contents.metadata or {}), KEY: json.dumps([*calls, call])}

    made = {name: contents.tensors[name] for name in plan.kept}
    for name, members in plan.members.items():
        dtype, shape, size = contents.tensors[members[0]][:3]
        at = stack_axis(name, shape, axis)
        made[name] = Tensor(dtype, (*shape[:at], len(members), *shape[at:]), len(members) * size)
        blocks(name, made[name], at)
    return _write(found, target, Contents(made, metadata), plan, axis, gather, progress)


def unstack_file(
    source: str | Path,
    target: str | Path,
    prefixes: Sequence[str] | None = None,
    axis: int | None = None,
    progress: Report | None = None,
) -> Summary:
    """The inverse of `stack_file`, by what that has written into the metadata.

    Args:
        source, target, progress: as in `stack_file`
        prefixes: the stacks; None for all those of the metadata. Without metadata, every name that begins with one of
            them is a stack.
        axis: that of the layers; None for that of the metadata, and 0 without metadata

    Raises:
        TypeError, ValueError: those of `layer_names.unstack_plan`; those of `stack_file` for a broken file;
            "stacked.safetensors: expected metadata that names its stacks, or prefixes, got neither",
            "prefixes: expected some of 'h' (the last to be stacked, by the metadata of stacked.safetensors), got 'g'",
            "axis: expected 0 (that of the metadata of stacked.safetensors), got 1",
            "prefixes: expected at least one, got none"
        OSError: those of `stack_file`
    """
    source, target = Path(source), Path(target)
    found = read_checkpoint(source)
    contents = found.contents
    leaves, metadata = _leaves(contents), contents.metadata
    if prefixes is not None:
        prefixes = check_prefixes(prefixes)
    if calls := _calls(source, metadata):
        call = calls[-1]
        layers = call["layers"]
        for prefix in prefixes or ():
            if prefix not in layers:
                shown = f"{', '.join(map(repr, layers))} (the last to be stacked, by the metadata of {source})"
                raise ValueError(f"prefixes: expected some of {shown}, got {prefix!r}")
        if axis is not None and axis != call["axis"]:
            raise ValueError(f"axis: expected {call['axis']} (that of the metadata of {source}), got {axis!r}")
        axis, prefixes = call["axis"], list(layers) if prefixes is None else prefixes
        # A name may begin with several prefixes, so it is looked up among all of them.
        keep = {name for name in leaves if name in call.get("kept", ()) or owner(name, layers) not in prefixes}
        plan = unstack_plan(leaves, prefixes, axis, keep, layers)
        metadata = _undone(metadata or {}, calls, plan)
    elif prefixes is None:
        raise ValueError(f"{source}: expected metadata that names its stacks, or prefixes, got neither")
    else:
        axis = 0 if axis is None else axis
        plan = unstack_plan(leaves, prefixes, axis)
    if not plan.members:
        raise ValueError("prefixes: expected at least one, got none")

    made = {name: contents.tensors[name] for name in plan.kept}
    for name, members in plan.members.items():
        dtype, shape, size = contents.tensors[name][:3]
        at = axis % len(shape)
        blocks(name, contents.tensors[name], at)
        made |= dict.fromkeys(members, Tensor(dtype, shape[:at] + shape[at + 1 :], size // len(members)))
    return _write(found, target, Contents(made, metadata), plan, axis, scatter, progress)


def _leaves(contents: Contents) -> dict[str, Leaf]:
    return {name: Leaf(tensor.shape, tensor.dtype) for name, tensor in contents.tensors.items()}


def _calls(path: Path, metadata: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """What earlier calls of `stack_file` have noted.

    Raises:
        ValueError: "model.safetensors: expected metadata 'layer_stacks' as stack_file writes it, got ..."
    """
    if metadata is None or KEY not in metadata:
        return []
    try:
        calls = json.loads(metadata[KEY])
        right = isinstance(calls, list) and all(
            type(call["axis"]) is int
            and all(type(N) is int for N in call["layers"].values())
            and all(isinstance(name, str) for name in call.get("kept", []))
            for call in calls
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        right = False
    if not right:
        raise ValueError(f"{path}: expected metadata {KEY!r} as stack_file writes it, got {metadata[KEY]!r}")
    return list(calls)


def _undone(metadata: Mapping[str, str], calls: list[dict[str, Any]], plan: Plan) -> dict[str, str] | None:
    """The metadata once the stacks of `plan`, all or some of the last call, are no more; None if there were none."""
    last = calls[-1]
    calls = calls[:-1]
    if left := {prefix: N for prefix, N in last["layers"].items() if prefix not in plan.layers}:
        layers = [name for members in plan.members.values() for name in members if owner(name, left) is not None]
        calls = [*calls, {**last, "layers": left, "kept": [*last.get("kept", ()), *layers]}]
    if calls:
        return {**metadata, KEY: json.dumps(calls)}
    others = {key: text for key, text in metadata.items() if key != KEY}
    return others if others or last.get("metadata", True) else None


def _write(
    source: Source,
    target: Path,
    after: Contents,
    plan: Plan,
    axis: int,
    move: Callable[..., Iterator[int]],
    progress: Report | None,
) -> Summary:
    """Make `target`, which will hold `after`: copy what is kept, and `move` (gather or scatter) each stack."""
    before, files = source.contents, source.files
    if source.index_file and any(target.exists() and target.samefile(part) for part in (source.index_file, *files)):
        # One part replaced, the others stand for nothing.
        raise ValueError(f"{target}: expected a file that is no part of {source.index_file}, got one of it")
    done, total = 0, sum(tensor.size for tensor in after.tensors.values())
    with contextlib.ExitStack() as opened:
        old = [opened.enter_context(file.open("rb")) for file in files]
        new, placed = opened.enter_context(writing(target, after.tensors, after.metadata))
        stacks, layers = (placed, before.tensors) if move is gather else (before.tensors, placed)
        moves = {name: copy(old, new, before.tensors[name], placed[name]) for name in plan.kept}
        for name, members in plan.members.items():
            moves[name] = move(old, new, stacks[name], [layers[member] for member in members], axis)
        for name, sizes in moves.items():
            for size in sizes:
                done += size
                if progress:
                    progress(done, total, name)
    return Summary(plan.layers, len(before.tensors), len(after.tensors), total)
