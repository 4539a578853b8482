"""Which names of a checkpoint are layers of one stack: `encoder.layer.3.w` is layer 3 of `encoder.layer.w`.

Names, shapes and dtypes in, a plan out; nothing here sees a value, so arrays in memory (`checkpoint`) and tensors in a
file (`checkpoint_files`) are planned alike, and refused in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from reference.arguments import Leaf, check_like

# A layer's index as Python writes it: of `h.00` or `h.01` the way back would make `h.0`. No empty part before it or
# after it, since a stack named by what is left of `h.0.` could not be told from that of `h.0`.
INDEXED = re.compile(r"(?:(?P<prefix>.+?)\.)??(?P<index>0|[1-9][0-9]{0,8})(?:\.(?P<rest>.+))?", re.DOTALL)


class Plan(NamedTuple):
    """What becomes of the names: every one is in `members`, as a key or as a value, or in `kept`."""

    layers: dict[str, int]  # prefix -> number of layers N
    members: dict[str, list[str]]  # name of a stack -> the names of its N layers, in their order
    kept: list[str]  # what is in no stack


def stack_plan(leaves: Mapping[str, Leaf], prefixes: Sequence[str] | None, axis: int) -> Plan:
    """How per-layer names become stacked ones, and whether all layers fit together.

    Args:
        leaves: name -> shape and dtype
        prefixes: the stacks; None for all that are found: what stands before the first integer of a dotted name
        axis: where the new axis of layers goes, negative from the end

    Raises:
        TypeError: "layer 2, 'h.2.w': expected float32[4] (that of layer 0), got float16[4]"
        ValueError: "layer 2, 'h.2.w': expected float32[4] (that of layer 0), got float32[8]",
            "layer 2: expected 'h.2.w' (layer 0 has 'h.0.w'), got no array",
            "layer 2: expected no 'h.2.w' (layer 0 has none), got one",
            "layer 2 of 'h': expected layers 0 to 5, got none of this index",
            "layer 0, 'h.0.w': expected the name 'h.w' to be free for its stack, got a tensor of that name",
            "layer 0, 'a.0.b.w': expected a stack that is not taken for one of 'a.b', got the name 'a.b.w'",
            "prefixes: expected names like 'g.0', got none; found: 'h'", and that of `stack_axis`
    """
    check_axis(axis)
    asked_for = None if prefixes is None else check_prefixes(prefixes)
    found: dict[str, dict[int, dict[str, str]]] = {}  # prefix -> index -> rest of the name -> name
    kept = []
    for name in leaves:
        if (split := _split(name, asked_for)) is None:
            kept.append(name)
        else:
            prefix, index, rest = split
            found.setdefault(prefix, {}).setdefault(index, {})[rest] = name
    for prefix in asked_for or ():
        if prefix not in found:
            others = sorted({split[0] for name in leaves if (split := _split(name, None))})
            shown = f"; found: {', '.join(map(repr, others))}" if others else ""
            raise ValueError(f"prefixes: expected names like {_joined(prefix, '0')!r}, got none{shown}")

    plan = Plan({}, {}, kept)
    taken = set(kept)
    for prefix, layers in found.items():
        _check_same_keys(prefix, layers)
        plan.layers[prefix] = len(layers)
        for rest, first in layers[0].items():
            members = [layers[i][rest] for i in range(len(layers))]
            for i, name in enumerate(members):
                check_like(leaves.get, f"layer {i}, {name!r}", name, first, "layer 0")
            stacked = _joined(prefix, rest)
            stack_axis(f"layer 0, {first!r}", leaves[first].shape, axis)
            if stacked in taken:
                raise ValueError(
                    f"layer 0, {first!r}: expected the name {stacked!r} to be free for its stack, got a tensor of "
                    "that name"
                )
            if (other := owner(stacked, found)) != prefix:
                raise ValueError(
                    f"layer 0, {first!r}: expected a stack that is not taken for one of {other!r}, got the name "
                    f"{stacked!r}"
                )
            taken.add(stacked)
            plan.members[stacked] = members
    return plan


def unstack_plan(
    leaves: Mapping[str, Leaf],
    prefixes: Sequence[str],
    axis: int,
    keep: Collection[str] = (),
    layers: Mapping[str, int] | None = None,
) -> Plan:
    """The way back: each name that is a prefix, or begins with it and a dot, is a stack, unless it is one of `keep`.

    Of several prefixes the longest counts. `layers`, prefix -> N, is how many layers are expected, where known.

    Raises:
        ValueError: "'h.w': expected 6 layers along axis 0 (that of 'h.b'), got 5",
            "'h.w': expected an axis 0 of layers, got shape ()", "'h.w': expected at least one layer, got none",
            "'h.w': expected the name 'h.0.w' to be free for its layer 0, got a tensor of that name",
            "prefixes: expected names that begin with 'g.', got none", "keep: expected names of tensors, got 'x'"
    """
    check_axis(axis)
    asked_for = check_prefixes(prefixes)
    for name in keep:
        if name not in leaves:
            raise ValueError(f"keep: expected names of tensors, got {name!r}")
    owners = {name: None if name in keep else owner(name, asked_for) for name in leaves}
    plan = Plan({}, {}, [name for name, prefix in owners.items() if prefix is None])
    expected = {prefix: (N, "the metadata") for prefix, N in (layers or {}).items()}
    taken = set(plan.kept)
    for name, prefix in owners.items():
        if prefix is None:
            continue
        N = layers_along(repr(name), leaves[name].shape, axis)
        if N == 0:  # its name, shape and dtype would be gone
            raise ValueError(f"{name!r}: expected at least one layer, got none")
        wanted, of = expected.setdefault(prefix, (N, repr(name)))
        if wanted != N:
            raise ValueError(f"{name!r}: expected {wanted} layers along axis {axis} (that of {of}), got {N}")
        rest = name[len(prefix) :].removeprefix(".") if prefix else name
        members = [_joined(prefix, str(i), rest) for i in range(N)]
        for i, member in enumerate(members):
            if member in taken:
                raise ValueError(
                    f"{name!r}: expected the name {member!r} to be free for its layer {i}, got a tensor of that name"
                )
        taken.update(members)
        plan.layers[prefix] = N
        plan.members[name] = members
    for prefix in asked_for:
        if prefix not in plan.layers:
            raise ValueError(f"prefixes: expected names that begin with {prefix + '.'!r}, got none")
    return plan


def owner(name: str, prefixes: Collection[str]) -> str | None:
    """The longest of `prefixes` that the stacked `name` can belong to; every name is one of the prefix ''."""
    return max((p for p in prefixes if p in ("", name) or name.startswith(f"{p}.")), key=len, default=None)


def check_axis(axis: Any) -> None:
    """TypeError: "axis: expected an int, got 1.0"."""
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"axis: expected an int, got {axis!r}")


def check_prefixes(prefixes: Any) -> list[str]:
    """TypeError "prefixes: expected a list of strings, got 'h'": a string would be taken for one prefix a letter."""
    if not isinstance(prefixes, Collection) or isinstance(prefixes, (str, bytes)):
        raise TypeError(f"prefixes: expected a list of strings, got {prefixes!r}")
    if not all(isinstance(prefix, str) for prefix in prefixes):
        raise TypeError(f"prefixes: expected a list of strings, got {list(prefixes)!r}")
    return list(prefixes)


def stack_axis(name: str, shape: Any, axis: int) -> int:
    """Where, from 0, the axis of layers goes in a stack of arrays of `shape`.

    Raises:
        ValueError: "axis: expected -2 to 1 (for layer 0['b'] of shape (3,)), got 2"
    """
    rank = len(shape) + 1
    if not -rank <= axis < rank:
        raise ValueError(f"axis: expected {-rank} to {rank - 1} (for {name} of shape {shape}), got {axis}")
    return axis % rank


def layers_along(name: str, shape: Any, axis: int) -> int:
    """How many layers a stack of `shape` has; ValueError "name: expected an axis 1 of layers, got shape (3,)"."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name}: expected an axis {axis} of layers, got shape {shape}")
    return int(shape[axis])


def _split(name: str, prefixes: Sequence[str] | None) -> tuple[str, int, str] | None:
    """(prefix, index, rest) of a layer's tensor; None where `name` is of no layer."""
    if prefixes is None:
        found = INDEXED.fullmatch(name)
        return (found["prefix"] or "", int(found["index"]), found["rest"] or "") if found else None
    for prefix in sorted(prefixes, key=len, reverse=True):
        if not prefix or name.startswith(f"{prefix}."):
            split = _split(name[len(prefix) + 1 :] if prefix else name, None)
            if split and not split[0]:
                return prefix, split[1], split[2]
    return None


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _check_same_keys(prefix: str, layers: Mapping[int, Mapping[str, str]]) -> None:
    """Check that the indices are 0 .. N-1, and that every layer has what the others have."""
    last = max(layers)
    missing = next(i for i in count() if i not in layers)
    if missing < last:
        raise ValueError(f"layer {missing} of {prefix!r}: expected layers 0 to {last}, got none of this index")
    for rest in dict.fromkeys(rest for layer in layers.values() for rest in layer):
        having = [i for i in sorted(layers) if rest in layers[i]]
        lacking = [i for i in sorted(layers) if rest not in layers[i]]
        if not lacking:
            continue
        here, there = (_joined(prefix, str(i), rest) for i in (lacking[0], having[0]))
        if len(lacking) <= len(having):  # the odd one out is the one to look at
            raise ValueError(f"layer {lacking[0]}: expected {here!r} (layer {having[0]} has {there!r}), got no array")
        raise ValueError(f"layer {having[0]}: expected no {there!r} (layer {lacking[0]} has none), got one")
