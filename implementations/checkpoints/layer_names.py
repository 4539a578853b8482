"""Which names of a checkpoint are layers of one stack: `encoder.layer.3.w` is layer 3 of `encoder.layer.w`.

    name                 prefix           stack
    encoder.layer.3.w    encoder.layer    encoder.layer.w
    encoder/layer/3/w    encoder/layer/   encoder/layer/w
    encoder.layer_3.w    encoder.layer_   encoder.layer.w     and encoder/layer_3/w in the same way

A prefix ends in the spelling's own sign, but for the dot, so that the way back makes the names that were. The first
index of a name counts: `blocks.0.layers.1.w` is in a stack of `blocks`. After an underscore a number is an index only
behind a word for layers, or where `prefixes` says so: `fc_1` and `fc_2` are no stack.

Names, shapes and dtypes in, a plan out; nothing here sees a value, so arrays in memory (`checkpoint`) and tensors in a
file (`checkpoint_files`) are planned alike, and refused in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from reference.arguments import Leaf, check_like

# A layer's index as Python writes it: of `h.00` or `h.01` the way back would make `h.0`. No empty part before it or
# after it, since a stack named by what is left of `h.0.` could not be told from that of `h.0`.
INDEXED = re.compile(r"(?:\A|(?<=[./_]))(?P<index>0|[1-9][0-9]{0,8})(?=[./]|\Z)")
WORD = re.compile(r"(?:layers?|blocks?|(?:\A|[./])h)_\Z", re.IGNORECASE)  # layers_, encoderblock_, h_


class Plan(NamedTuple):
    """What becomes of the names: every one is in `members`, as a key or as a value, or in `kept`."""

    layers: dict[str, int]  # prefix -> number of layers N
    members: dict[str, list[str]]  # name of a stack -> the names of its N layers, in their order
    kept: list[str]  # what is in no stack


def stack_plan(
    leaves: Mapping[str, Leaf], prefixes: Sequence[str] | None, axis: int, source: object = "tensors"
) -> Plan:
    """How per-layer names become stacked ones, and whether all layers fit together.

    What one layer alone has (a table of positions) is in no stack, and so is what some have and others have something
    else instead of (first layers that are dense, before layers of experts). What is merely missing is refused.

    Args:
        leaves: name -> shape and dtype
        prefixes: the stacks; None for all that are found: what stands before the first index of a name
        axis: where the new axis of layers goes, negative from the end
        source: what an error calls the whole

    Raises:
        TypeError: "layer 2, 'h.2.w': expected float32[4] (that of layer 0), got float16[4]"
        ValueError: "layer 2, 'h.2.w': expected float32[4] (that of layer 0), got float32[8]",
            "layer 2: expected 'h.2.w' (layer 0 has 'h.0.w'), got no array",
            "layer 2: expected no 'h.2.w' (layer 0 has none), got one",
            "layer 2 of 'h': expected layers 0 to 5, got none of this index",
            "layers 0 to 3, 6 of 'h': expected layers 0 to 7, got none of these",
            "tensors: expected names with a layer index, like 'h.0.w', got none",
            "layer 0, 'h.0.w': expected the name 'h.w' to be free for its stack, got a tensor of that name",
            "layer 0, 'a.0.b.w': expected a stack that is not taken for one of 'a.b', got the name 'a.b.w'",
            "prefixes: expected names like 'g.0', got none; found: 'h'",
            "prefixes: expected some tensor that all layers of 'h' have, got none", and that of `stack_axis`
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
            raise ValueError(f"prefixes: expected names like {_layer_name(prefix, 0)!r}, got none{shown}")

    common = {prefix: _common(prefix, layers) for prefix, layers in found.items()}
    for prefix in asked_for or ():
        if not common[prefix]:
            raise ValueError(f"prefixes: expected some tensor that all layers of {prefix!r} have, got none")
    kept += [
        name
        for prefix, layers in found.items()
        for layer in layers.values()
        for rest, name in layer.items()
        if rest not in common[prefix]
    ]
    plan = Plan({}, {}, kept)
    taken = set(kept)
    for prefix, layers in found.items():
        for rest in common[prefix]:
            first = layers[0][rest]
            plan.layers[prefix] = len(layers)
            members = [layers[i][rest] for i in range(len(layers))]
            for i, name in enumerate(members):
                check_like(leaves.get, f"layer {i}, {name!r}", name, first, "layer 0")
            stacked = (_base(prefix) + rest).removeprefix("" if prefix else ".")
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
    if not plan.members:
        raise ValueError(f"{source}: expected names with a layer index, like 'h.0.w', got none")
    return plan


def unstack_plan(
    leaves: Mapping[str, Leaf],
    prefixes: Sequence[str],
    axis: int,
    keep: Collection[str] = (),
    layers: Mapping[str, int] | None = None,
) -> Plan:
    """The way back: each name that begins with a prefix, as `owner` says, is a stack, unless it is one of `keep`.

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
        rest = name[len(_base(prefix)) :] if prefix else f".{name}" if name else ""
        members = [_layer_name(prefix, i, rest) for i in range(N)]
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
            begins = _base(prefix) + ("/" if prefix.endswith("/") else ".")
            raise ValueError(f"prefixes: expected names that begin with {begins!r}, got none")
    return plan


def owner(name: str, prefixes: Collection[str]) -> str | None:
    """The longest of `prefixes` that the stacked `name` can belong to; every name is one of the prefix ''."""

    def belongs(prefix: str) -> bool:
        base = _base(prefix)
        signs = {"/": ("/",), "_": (".", "/")}.get(prefix[-1:], (".",))
        return prefix == "" or name == base or (name.startswith(base) and name[len(base) :].startswith(signs))

    return max(filter(belongs, prefixes), key=len, default=None)


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
    """(prefix, index, rest, which begins with its sign) of a layer's tensor; None where `name` is of no layer."""
    splits = {}
    for found in INDEXED.finditer(name):
        before, rest = name[: found.start()], name[found.end() :]
        sign, prefix = before[-1:], before.removesuffix(".")
        # Signs that do not go together, and what would be told from another spelling no more.
        mixed = rest and rest[0] != (sign or ".") and sign != "_"
        other = sign == "." and prefix.endswith(("/", "_"))
        if not (len(rest) == 1 or (before and not before[:-1]) or mixed or other):
            splits[prefix] = prefix, int(found["index"]), rest
    if prefixes is None:
        return next((split for prefix, split in splits.items() if prefix[-1:] != "_" or WORD.search(prefix)), None)
    return splits.get(max((p for p in prefixes if p in splits), key=len, default=None))  # type: ignore[arg-type]


def _base(prefix: str) -> str:
    """What a stack's name begins with."""
    return prefix[:-1] if prefix.endswith(("/", "_")) else prefix


def _layer_name(prefix: str, i: int, rest: str = "") -> str:
    return f"{prefix}{'' if not prefix or prefix.endswith(('/', '_')) else '.'}{i}{rest}"


def _common(prefix: str, layers: Mapping[int, Mapping[str, str]]) -> list[str]:
    """What all layers have. Check that the indices are 0 .. N-1, and that no layer lacks what it should have."""
    last = max(layers)
    indices = sorted(layers)
    gaps = [(a + 1, b - 1) for a, b in zip([-1, *indices], indices, strict=False) if b - a > 1]
    if gaps:
        one = len(gaps) == 1 and gaps[0][0] == gaps[0][1]
        shown = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in gaps)
        got = "none of this index" if one else "none of these"
        raise ValueError(f"layer{'' if one else 's'} {shown} of {prefix!r}: expected layers 0 to {last}, got {got}")
    having: dict[str, set[int]] = {}  # rest -> the layers that have it
    for i in indices:
        for rest in layers[i]:
            having.setdefault(rest, set()).add(i)
    kinds = {frozenset(of) for of in having.values()}
    for rest, of in having.items():
        # Of another kind is a layer that has something which none of these has.
        lacking = [i for i in indices if i not in of and not any(i in kind and not kind & of for kind in kinds)]
        if len(of) == 1 or not lacking:
            continue
        here, there = (_layer_name(prefix, i, rest) for i in (lacking[0], min(of)))
        if len(lacking) <= len(of):  # the odd one out is the one to look at
            raise ValueError(f"layer {lacking[0]}: expected {here!r} (layer {min(of)} has {there!r}), got no array")
        raise ValueError(f"layer {min(of)}: expected no {there!r} (layer {lacking[0]} has none), got one")
    return [rest for rest, of in having.items() if len(of) == len(layers)]
