"""What runs on a mesh, and what its program consists of.

Source: https://docs.jax.dev/en/latest/aot.html
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import jax

from jax_scan.autodiff import Apply
from jax_scan.graph import equations, traced


def run_on_mesh(apply: Apply, *args: Any) -> tuple[Any, dict[str, Any]]:
    """`apply(*args)`, a function `on_mesh`, and the counts of its program: "operations" as captured; "collectives" of
    each kind in the bodies of loops as compiled, and "outside" of them; "sent_bytes", of the whole arrays that those in
    loops are about; "temp_bytes" on one device, and "param_bytes", those of args[0] there."""
    captured = traced(apply, args, None)
    program = captured.lower().compile()
    collectives, sent = Counter[str](), 0
    for computation in program.as_text().split("\n\n"):
        is_body = computation.lstrip().startswith(("%region", "%wide", "%body", "%while"))
        for types, kind, rest in _COLLECTIVE.findall(computation):
            collectives[_KINDS[kind] if is_body else "outside"] += 1
            sent += is_body * _bytes(types) * (_group_size(rest) if kind == "reduce-scatter" else 1)
    return program(*args), {
        "operations": equations(captured.jaxpr.jaxpr),
        "collectives": dict(collectives),
        "sent_bytes": sent,
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "param_bytes": sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(args[0])),
    }


_KINDS = {kind: kind for kind in ("all-reduce", "all-gather", "reduce-scatter")} | {"collective-permute": "permute"}
_COLLECTIVE = re.compile(rf" = (\(.*?\)|\S+) ({'|'.join(_KINDS)})\((.*)")


def _bytes(types: str) -> int:
    """Of arrays as HLO writes them, "f64[16,64]{1,0}" or several in parentheses."""
    found = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", types)
    return sum(int(bits) // 8 * math.prod(map(int, filter(None, shape.split(",")))) for bits, shape in found)


def _group_size(rest: str) -> int:
    groups = re.search(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})", rest)
    assert groups is not None, rest
    return int(groups[1]) if groups[1] else groups[2].count(",") + 1
